"""The run folder: started without harm to what is there, logged to line by line, rewound to a checkpoint."""

import json
import subprocess
import sys

import pytest
import torch

from mimkit.report import read_run
from mimkit.training.checkpoint import Checkpoint
from mimkit.training.run_folder import Run, refuse_nonempty


def checkpoint() -> Checkpoint:
    return Checkpoint({"w": torch.ones(2)}, {"generator/cpu": torch.get_rng_state()}, {"nonfinite": 0})


def test_a_new_run(tmp_path):
    facts = {"recipe": "small", "data": {"path": "/été/東京"}, "steps": 3}
    run = Run.create(tmp_path / "deep" / "run", facts)
    assert run.facts == facts
    assert [path.name for path in run.folder.iterdir()] == ["run.json"]
    assert Run(run.folder).facts == facts
    assert run.latest() is None
    assert run.rows("train") == []


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "run").mkdir()
    Run.create(tmp_path / "run", {})


def test_what_is_there_is_not_overwritten_unasked(tmp_path):
    run = Run.create(tmp_path / "run", {"recipe": "first"})
    with pytest.raises(FileExistsError, match="--overwrite"):
        Run.create(tmp_path / "run", {"recipe": "second"})
    assert Run(run.folder).facts == {"recipe": "first"}


def test_what_is_no_run_is_never_overwritten(tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="not empty"):
            Run.create(tmp_path, {}, overwrite=overwrite)
        with pytest.raises(FileExistsError, match="file, not a folder"):
            refuse_nonempty(tmp_path / "photo.jpg", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_overwriting_removes_what_runs_write_and_nothing_else(tmp_path):
    run = Run.create(tmp_path / "run", {"recipe": "first"})
    run.log({"kind": "train", "step": 1})
    run.log_speed({"step": 1})
    run.save(1, checkpoint())
    for name in ("reconstructions", "tensorboard", "mine"):
        (run.folder / name).mkdir()
        (run.folder / name / "file").write_text("")
    (run.folder / "report.html").write_text("")
    (run.folder / "notes.txt").write_text("mine")
    again = Run.create(run.folder, {"recipe": "second"}, overwrite=True)
    assert sorted(path.name for path in run.folder.iterdir()) == ["mine", "notes.txt", "run.json"]
    assert again.facts == {"recipe": "second"}


def test_one_process_trains_a_run(tmp_path):
    """Another one is refused, and may not overwrite it either, for as long as the first one lives."""
    pytest.importorskip("fcntl")
    run = Run.create(tmp_path / "run", {"recipe": "first"})
    code = (
        "import sys; from mimkit.training.run_folder import Run; "
        "run = Run(sys.argv[1]); lock = run.locked(); lock.__enter__(); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="trained by another process"), run.locked():
            pass
        with pytest.raises(ValueError, match="trained by another process"):
            Run.create(run.folder, {"recipe": "second"}, overwrite=True)
        assert Run(run.folder).facts == {"recipe": "first"}
        other.kill()
    with run.locked():
        pass


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        Run(tmp_path)


def test_a_torn_run_json_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"recipe": ')
    with pytest.raises(ValueError, match=r"run\.json cannot be understood"):
        Run(tmp_path)


def test_rows_come_back_by_kind(tmp_path):
    run = Run.create(tmp_path / "run", {})
    rows = [
        {"kind": "train", "step": 1, "loss": 0.1},
        {"kind": "skipped", "step": 1, "path": "été 東京\u2028.jpg", "reason": "line\nbreak"},
        {"kind": "train", "step": 2, "loss": 1e-300},
    ]
    for row in rows:
        run.log(row)
    assert run.rows("train") == [rows[0], rows[2]]
    assert run.rows("skipped") == [rows[1]]
    assert len((run.folder / "log.jsonl").read_bytes().splitlines()) == 3
    assert "été 東京" in (run.folder / "log.jsonl").read_text(encoding="utf-8")


def test_file_names_that_are_no_text(tmp_path):
    """Python gives a file name's odd bytes as lone surrogates, which UTF-8 does not have."""
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    run = Run.create(tmp_path / "run", {"data": {"path": name}})
    run.log({"kind": "skipped", "step": 1, "path": name})
    assert run.rows("skipped")[0]["path"] == name
    assert Run(run.folder).facts["data"]["path"] == name
    for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["path"] == name


def test_rewinding_forgets_what_came_after_the_checkpoint(tmp_path):
    run = Run.create(tmp_path / "run", {})
    run.log({"kind": "train", "step": 1, "note": "東"})
    run.save(1, checkpoint())
    run.log({"kind": "train", "step": 2})
    with (run.folder / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    run.log_speed({"step": 1, "images_per_second": 9.0})
    with (run.folder / "speed.jsonl").open("a") as file:
        file.write('{"step": 2, "ima')

    saved = run.latest()
    assert saved.state["step"] == 1
    run.rewind(saved)
    assert [row["step"] for row in run.rows("train")] == [1]
    run.log({"kind": "train", "step": 2})
    run.log_speed({"step": 2, "images_per_second": 8.0})
    data = read_run(run.folder)
    assert not data.problems
    assert [row["step"] for row in data.train] == [row["step"] for row in data.speed] == [1, 2]

    run.rewind(None)
    assert (run.folder / "log.jsonl").read_bytes() == b""


def test_rewinding_a_run_without_a_log(tmp_path):
    Run.create(tmp_path / "run", {}).rewind(None)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, monkeypatch):
    from mimkit.training import run_folder

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(run_folder, "write_text", full)
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "new" / "deep", tmp_path / "there" / "run", tmp_path / "there"):
        with pytest.raises(OSError, match=rf"--out {folder} cannot be written: No space left on device"):
            Run.create(folder, {})
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
