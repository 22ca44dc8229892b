"""What arrives inside a backward pass is taken after it; who asks a run to stop may ask twice."""

import os
import signal

import pytest

from mimkit.training.signals import stop_signals, uninterrupted

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="needs SIGCHLD")


@pytest.fixture
def raising():
    """A handler as torch's: it raises wherever the program is."""

    def handle(number: int, frame: object) -> None:
        raise RuntimeError("a worker is lost")

    before = signal.signal(signal.SIGCHLD, handle)
    yield handle
    signal.signal(signal.SIGCHLD, before)


def a_pass(reached: list[str], error: Exception | None = None) -> None:
    """Loses a worker in the middle."""
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGCHLD)
        if error is not None:
            raise error
        reached.append("the end of the pass")


def test_a_loss_is_raised_after_the_pass(raising):
    reached = []
    with pytest.raises(RuntimeError, match="a worker is lost"):
        a_pass(reached)
    assert reached == ["the end of the pass"]
    assert signal.getsignal(signal.SIGCHLD) is raising


def test_an_error_of_the_pass_comes_first(raising):
    with pytest.raises(ValueError, match="mine"):
        a_pass([], ValueError("mine"))
    assert signal.getsignal(signal.SIGCHLD) is raising


def test_without_a_handler_nothing_is_changed():
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before)


def asked_twice(number: int) -> bool:
    with stop_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        os.kill(os.getpid(), number)
        return stop()


@pytest.fixture
def interrupting():
    """What a shell's background job has not: SIGINT raises."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_sigterm_may_come_twice(interrupting):
    """From Slurm to all processes, and from torchrun to its own: they still save."""
    handler = signal.getsignal(signal.SIGTERM)
    assert asked_twice(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_second_sigint_acts_at_once_but_under_torchrun(interrupting, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(KeyboardInterrupt):
        asked_twice(signal.SIGINT)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert asked_twice(signal.SIGINT)
