"""Run folders are read finished or not, and what cannot be read is named."""

from pathlib import Path

from helpers.reports import labels_of, page_of, write_run
from mimkit.report import read_run
from mimkit.report.read import points


def test_a_torn_last_line_is_left_out_silently_and_a_broken_one_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", upto=40)
    log = run / "log.jsonl"
    whole = len(read_run(run).train)
    with log.open("ab") as file:
        file.write('{"kind": "train", "step": 50, "loss": 0.1, "note": "ü'.encode()[:-1])
    torn = read_run(run)
    assert len(torn.train) == whole
    assert torn.problems == []
    with log.open("ab") as file:
        file.write(b'\n[1, 2]\n{"kind": "train", "loss": 1}\n\xff\xfe\n{"kind": "train", "step": 60, "loss": 0.2}\n')
    broken = read_run(run)
    assert [record["step"] for record in broken.train[-2:]] == [40, 60]
    assert broken.problems == ["log.jsonl: 4 unreadable lines were left out."]
    assert "4 unreadable lines" in page_of(tmp_path, run).text


def test_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    again = [{"kind": "train", "step": step, "loss": 9.0} for step in (90, 100)]
    run = read_run(write_run(tmp_path / "run", more=again))
    assert [record["step"] for record in run.train] == list(range(10, 101, 10))
    assert [record["loss"] for record in run.train[-2:]] == [9.0, 9.0]


def test_points_take_numbers_only() -> None:
    records = [{"step": 1, "a": 2}, {"step": 2, "a": True}, {"step": 3}, {"step": 4, "a": "x"}, {"a": 1}]
    assert str(points(records, "a", scale=10)) == "[(1.0, 20.0), (2.0, nan), (4.0, nan)]"


def test_every_kind_of_row_is_read_and_counts_as_a_step(tmp_path: Path) -> None:
    odd = [{"kind": kind, "step": 900, "x": 1} for kind in (None, ["segment"], 3, "", {})]
    more = [{"kind": "skipped", "step": 7, "path": "b"}, {"kind": "skipped", "step": 2, "path": "a"}]
    more += [{"kind": "skipped", "step": 7, "path": "c"}, {"kind": "mine", "step": 250, "x": 1.0}]
    run = read_run(write_run(tmp_path / "run", more=[*odd, *more]))
    assert set(run.rows) == {"train", "probe", "skipped", "mine", "end"}
    assert [row["path"] for row in run.skipped] == ["a", "b", "c"]
    assert run.train is run.rows["train"]
    assert run.probes is run.rows["probe"]
    assert (run.ended, run.nonfinite) == (100, [])
    assert run.step == 250
    assert "mine: x by step" in labels_of(page_of(tmp_path, run.folder))
