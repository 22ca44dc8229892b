"""Run folders and files of every format that a version has ever written: they are read, used and resumed for good."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import mimkit
from golden.old_runs import RUNS, outcome, photographs
from mimkit.cli.main import main
from mimkit.training.run_folder import FORMAT

FORMATS = sorted(path.name for path in RUNS.iterdir())


@pytest.fixture
def written(request, tmp_path, monkeypatch, one_thread) -> Path:
    """A copy of what a version wrote, as the current folder, with the photographs it was trained on."""
    shutil.copytree(RUNS / request.param, tmp_path, dirs_exist_ok=True)
    photographs(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_format_is_kept():
    assert [f"format-{number + 1}" for number in range(FORMAT)] == FORMATS


@pytest.mark.parametrize("written", FORMATS, indirect=True)
def test_weights_give_what_they_gave(written):
    for source, then in json.loads(Path("expected.json").read_text()).items():
        now = outcome(source)
        assert now.keys() == then.keys()
        torch.testing.assert_close(torch.tensor(now["features"]), torch.tensor(then["features"]), rtol=1e-5, atol=1e-5)
        assert now.get("loss", 0.0) == pytest.approx(then.get("loss", 0.0), rel=1e-5)


@pytest.mark.parametrize("written", FORMATS, indirect=True)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(written):
    assert main(["resume", "run", "--device", "cpu", "--workers", "0"]) == 0
    then, now = (
        [json.loads(line) for line in Path(p).read_text().splitlines()] for p in ("expected.jsonl", "run/log.jsonl")
    )
    assert [row.keys() for row in now] == [row.keys() for row in then]
    for before, after in zip(then, now, strict=True):
        assert after == {k: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for k, v in before.items()}


@pytest.mark.parametrize("written", FORMATS, indirect=True)
def test_every_command_takes_them(written, capsys):
    picture = "photos/class_0/00.png"
    assert main(["probe", "run", "--data", "photos", "--device", "cpu", "--workers", "0"]) == 0
    assert main(["reconstruct", "run", picture, "--out", "pictures", "--device", "cpu"]) == 0
    assert main(["embed", "imported.safetensors", "--data", "photos", "--out", "features.npz", "--workers", "0"]) == 0
    assert main(["report", "run", "--out", "report.html"]) == 0
    assert "TransformerDecoder(width=8, depth=1, heads=2" in Path("report.html").read_text()
    sources = {"run": "again.safetensors", "exported-localmim.safetensors": "localmim.safetensors"}
    sources["imported.safetensors"] = "encoder.safetensors"
    for source, out in sources.items():
        assert main(["export", source, "--format", "safetensors", "--out", out]) == 0
        images = torch.zeros(1, 3, *mimkit.load_encoder(source).image_size)
        assert torch.equal(mimkit.load_encoder(out)(images), mimkit.load_encoder(source)(images))
    assert main(["export", "run", "--format", "timm", "--out", "timm.safetensors"]) == 0


@pytest.mark.parametrize("written", FORMATS, indirect=True)
def test_what_a_newer_version_writes_is_refused(written, capsys):
    facts = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(facts | {"format": FORMAT + 1}))
    assert main(["resume", "run"]) == 2
    assert f"run has format {FORMAT + 1}, which a newer mimkit wrote: this version reads up to {FORMAT}" in (
        capsys.readouterr().err
    )
