from pathlib import Path

from helpers.reports import page_of, probe, write_run
from mimkit.report import read_run
from mimkit.report.compare import differences, unique_names
from mimkit.report.verdict import compare


def test_several_runs_are_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first")
    second = write_run(
        tmp_path / "second",
        probes=[probe(0, 38.9), probe(100, 55.0)],
        settings={"lr": 3e-4},
        parts={"target": "LowFreqPixels()", "distance": "squared"},
        recipe="pixmim",
    )
    page = page_of(tmp_path, first, second)
    assert "2 runs compared" in page.text
    assert "second leads by 9.8 points, more than the noise of ±4.5" in page.text
    assert page.count("details") == 2
    for cell in ("45.2 % (+6.3)", "55.0 % (+16.1)", "0.0003", "LowFreqPixels()", "part: target"):
        assert cell in page.text
    assert "compare the shapes, not the heights" in page.text
    rows = differences([read_run(first), read_run(second)], ["first", "second"]).rows
    assert [row[0] for row in rows] == ["part: target", "lr", "out"]

    same = compare([read_run(first)] * 3, ["a", "b", "c"])
    assert same.tone == "open"
    assert "neither is shown to be better" in same.details[0]
    unlabelled = read_run(write_run(tmp_path / "third", probes=[probe(0), probe(100)]))
    assert "fewer than two" in compare([read_run(first), unlabelled], ["first", "third"]).headline
    other = read_run(write_run(tmp_path / "fourth", data={"fingerprint": "f00"}))
    assert "different data" in " ".join(compare([read_run(first), other], ["first", "fourth"]).details)


def test_what_a_half_written_run_does_not_say_is_no_difference(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, settings={"out": "x"})) for name in "abc"]
    (tmp_path / "c" / "run.json").write_text("{")
    runs[2] = read_run(tmp_path / "c")
    assert differences(runs, ["a", "b", "c"]).rows == []
    assert "compare the shapes" not in page_of(tmp_path, *(run.folder for run in runs)).text
    twice = page_of(tmp_path, tmp_path / "a", tmp_path / "b" / ".." / "a")
    assert "compared" not in twice.text


def test_runs_get_the_shortest_names_that_differ(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "z"]
    assert unique_names(folders) == ["x/run", "y/run", "z"]
    assert unique_names([tmp_path / "x", tmp_path / "x"]) == [str(tmp_path / "x")] * 2


def test_both_forms_of_parts_read_the_same(tmp_path: Path) -> None:
    old = {"mask": "RandomMask(ratio=0.75, cell=None)", "decoder": "A(x=1), B", "downstream": "the encoder"}
    new = {
        "mask": {"name": "RandomMask", "values": {"ratio": 0.75, "cell": None}},
        "decoder": [{"name": "A", "values": {"x": 1}}, {"name": "B", "values": {}}],
        "downstream": "the encoder",
    }
    train = {"name": "Train", "values": {"epochs": 10, "milestones": []}}
    first = write_run(tmp_path / "first", parts=old, training="Train(epochs=10, milestones=())", settings={"out": "x"})
    second = write_run(tmp_path / "second", parts=new, training=train, settings={"out": "x"})
    for run in (first, second):
        page = page_of(tmp_path, run)
        for word in (
            "RandomMask(ratio=0.75, cell=None)",
            "A(x=1), B",
            "the encoder",
            "Train(epochs=10, milestones=())",
        ):
            assert word in page.text
        assert "values" not in page.text
    assert differences([read_run(first), read_run(second)], ["first", "second"]).rows == []
    new["mask"] = {"name": "RandomMask", "values": {"ratio": 0.6, "cell": None}}
    third = write_run(tmp_path / "third", parts=new, training=train, settings={"out": "x"})
    assert differences([read_run(first), read_run(third)], ["first", "third"]).rows == [
        ["part: mask", "RandomMask(ratio=0.75, cell=None)", "RandomMask(ratio=0.6, cell=None)"]
    ]
