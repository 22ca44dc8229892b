"""Progress: plain lines where there is no terminal, a bar where there is one, speeds that leave out other work."""

import pytest

from mimkit import progress
from mimkit.progress import PLAIN_SECONDS, Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (12000, "3 h 20 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_speed_counts_training_and_nothing_else(clock):
    bar = Progress(steps=100, done=0, images_per_step=8)
    for _ in range(10):
        clock.now += 0.5
        with bar.waiting():
            clock.now += 0.25
    with bar.pausing():  # a probe of a minute
        clock.now += 60
    row = bar.speed(10, {"loss": 0.5})
    assert row["images_per_second"] == pytest.approx(10 * 8 / 7.5)
    assert row["data_wait"] == pytest.approx(1 / 3)
    assert row["step"] == 10
    clock.now += 2
    row = bar.speed(12, {"loss": 0.5})  # a new window: nothing of the first one
    assert row["images_per_second"] == pytest.approx(2 * 8 / 2)
    assert row["data_wait"] == 0


def test_speed_after_a_resume_counts_this_process_only(clock):
    bar = Progress(steps=100, done=90, images_per_step=8)
    clock.now += 1
    assert bar.speed(92, {})["images_per_second"] == pytest.approx(16)


def test_plain_lines_now_and_then_and_at_the_end(clock, capsys):
    with Progress(steps=30, done=0, images_per_step=8) as bar:
        for step in range(1, 31):
            clock.now += 1
            if step % 5 == 0:
                bar.speed(step, {"loss": 0.25} if step < 30 else {})
            bar.step(step)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 10/30  loss 0.2500  8 images/s  data wait 0%  20 s left",
        "step 20/30  loss 0.2500  8 images/s  data wait 0%  10 s left",
        "step 30/30  no finite loss  8 images/s  data wait 0%  0 s left",
    ]
    assert PLAIN_SECONDS == 10


def test_time_left_leaves_out_other_work_and_earlier_steps(clock, capsys):
    bar = Progress(steps=100, done=80, images_per_step=8)
    with bar.pausing():
        clock.now += 1000
    clock.now += 20
    bar.step(90)
    assert "20 s left" in capsys.readouterr().err


def test_lines_are_printed_as_they_are(capsys):
    with Progress(steps=3, done=0, images_per_step=8) as bar:
        bar.line("skipped [red]a[/red].jpg: été")
    assert capsys.readouterr().err == "skipped [red]a[/red].jpg: été\n"


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(steps=3, done=1, images_per_step=8) as bar:
        assert bar.bar is not None
        bar.speed(2, {"loss": 0.25})
        bar.line("skipped [red]a[/red].jpg")
        bar.step(3)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err
    assert "loss 0.2500" in err
    assert "skipped [red]a[/red].jpg" in err
