"""The example in docs/examples is true: a task outside the package learns, resumes exactly and is reported."""

import importlib.util
import itertools
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.reports import labels_of, page_of
from helpers.runs import fingerprint
from mimkit.cli.main import main
from mimkit.data import load_in_order
from mimkit.training import launch
from mimkit.training.checkpoint import load_newest
from mimkit.training.distributed import SINGLE
from mimkit.training.machine import Machine
from mimkit.training.optim import Train
from mimkit.training.run_folder import Run

FILE = Path(__file__).parents[2] / "docs" / "examples" / "segmentation.py"
TINY = "random:vit_tiny_patch16_224(embed_dim=24,depth=2,num_heads=3)"
HERE = Machine(device="cpu", workers=0)


@pytest.fixture(scope="module")
def example():
    specification = importlib.util.spec_from_file_location("segmentation_example", FILE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["made", "CamVid"])
def camvid(request, tmp_path_factory) -> Path:
    """CamVid where there is test data, and always a folder of its layout: bright and dark halves to tell apart."""
    if request.param == "CamVid":
        folder = request.getfixturevalue("data_root") / "camvid"
        return folder if folder.is_dir() else pytest.skip(f"no CamVid at {folder}")
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    (folder / "classes.txt").write_text("dark\nbright\n")
    for split, count in (("train", 120), ("val", 6)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            labels = np.repeat(rng.integers(2, size=(2, 1)), 40, axis=0).repeat(96, axis=1).astype(np.uint8)
            pixels = (60 + 120 * labels + rng.integers(40, size=labels.shape)).astype(np.uint8)
            Image.fromarray(labels).save(folder / "annotations" / split / f"{number}.png")
            Image.fromarray(pixels).convert("RGB").save(folder / "images" / split / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def run(example, camvid, tmp_path_factory) -> Path:
    """A run that nothing interrupts: 30 steps."""
    out = tmp_path_factory.mktemp("segmentation") / "run"
    command(example, camvid, out)
    return out


def command(example, camvid: Path, out: Path, **others: object) -> None:
    example.main(TINY, HERE, data=camvid, out=out, **{"epochs": 2, **others})


def test_it_learns(run):
    rows = Run(run).rows("segmentation")
    assert [row["step"] for row in rows] == [0, 15, 30]
    for name in ("mIoU", "pixel_accuracy"):
        before, after = rows[0][name], rows[-1][name]
        assert after > 1.5 * before or 100 - after < (100 - before) / 2
    assert Run(run).facts["kind"] == "segmentation"


def test_the_same_command_goes_on_exactly(example, camvid, run, tmp_path, monkeypatch):
    """SIGTERM in step 17; then to the end, and once more when there is nothing left to do."""
    from_step = example.TrainBatches.from_step

    def interrupted(batches, step):
        for number, batch in enumerate(from_step(batches, step), start=step + 1):
            if number == 17:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(example.TrainBatches, "from_step", interrupted)
        command(example, camvid, out)
    assert load_newest(out / "checkpoints").state["step"] == 17
    (out / "reconstructions").mkdir()  # that `fingerprint` looks into
    (run / "reconstructions").mkdir(exist_ok=True)
    for _ in range(2):
        command(example, camvid, out)
        assert fingerprint(out) == fingerprint(run)
    with pytest.raises(ValueError, match=r"began with settings.source random:.*, which is random:resnet18 now"):
        example.main("random:resnet18", HERE, data=camvid, out=out, epochs=2)
    with pytest.raises(ValueError, match=r"began with epochs 2, which is 3 now"):
        command(example, camvid, out, epochs=3)


def test_other_images_are_noticed(example, camvid, tmp_path):
    """One more, when a run goes on."""
    if (camvid / "classes.txt").read_text() != "dark\nbright\n":
        pytest.skip("the made folder is copied")
    shutil.copytree(camvid, tmp_path / "camvid")
    command(example, tmp_path / "camvid", tmp_path / "run", epochs=1)
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        folder = tmp_path / "camvid" / kind / "train"
        shutil.copy(folder / f"0.{suffix}", folder / f"x.{suffix}")
    with pytest.raises(ValueError, match=r"began with settings.fingerprints .* now"):
        command(example, tmp_path / "camvid", tmp_path / "run", epochs=1)


def test_checkpoints_hold_the_head_alone(run):
    """Its weights, their two moments and torch's generator."""
    weights = load_newest(run / "checkpoints").weights
    assert weights.keys() == {"head.weight", "head.bias"}
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    head = 4 * sum(value.numel() for value in weights.values())
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) < 3 * head + 10_000


def test_no_tensor_of_the_encoder_changes(example, camvid, tmp_path):
    """Batch norms and their statistics included."""
    train = Train(epochs=1, batch_size=60, base_lr=0.01, lr_batch=60, warmup_epochs=0, precision="fp32")
    job = example.Segmentation("random:resnet18", camvid, train)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    assert any("running_var" in name for name in before)
    assert launch.start(job, tmp_path / "run", HERE, torch.device("cpu"), SINGLE)
    changed = {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert sum(file.stat().st_size for file in (tmp_path / "run").rglob("*.safetensors")) < 100_000


def test_masks_follow_their_images(example, camvid):
    """In the made folder, bright pixels are of the class bright, whatever was cut."""
    if (camvid / "classes.txt").read_text() != "dark\nbright\n":
        pytest.skip("CamVid's classes are no brightness")
    job = example.Segmentation(TINY, camvid, Train(epochs=1, batch_size=8, base_lr=0.01, warmup_epochs=0))
    for batch in itertools.islice(job.batches().from_step(0), 10):
        bright = batch.images.float().mean(dim=1) > 139
        assert (bright == batch.tensors["labels"].bool()).float().mean() > 0.98  # but for the mixed edge


def test_scores_are_those_of_the_confusion_matrix(example, camvid):
    """Of classes that occur in truth or prediction only, or not at all."""
    job = example.Segmentation(TINY, camvid, Train(epochs=1, batch_size=8, base_lr=0.01, warmup_epochs=0))
    row, k = job.scores(torch.device("cpu")), job.model.head.out_features
    confusion = torch.zeros(k, k, dtype=torch.int64)
    for batch in load_in_order(job.held_out):
        found, truth = job.model(**batch.inputs("cpu")).found, batch.tensors["labels"].long()
        for true, guessed in itertools.product(range(k), repeat=2):
            confusion[true, guessed] += ((truth == true) & (found == guessed)).sum()
    hits, either = confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()
    assert row["mIoU"] == pytest.approx(100 * (hits / either)[either > 0].mean().item())
    assert row["pixel_accuracy"] == pytest.approx(100 * (hits.sum() / confusion.sum()).item())


def test_commands_take_the_run_for_what_it_is(run, tmp_path, capsys):
    assert main(["resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "a run of kind 'segmentation'" in said
    assert "continue it with the program that began it" in said
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    assert "segmentation: mIoU by step" in labels_of(page_of(tmp_path, run))
    assert "segmentation: mIoU by step" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_wrong_requests(example, tmp_path):
    (tmp_path / "classes.txt").write_text("sky\n")
    with pytest.raises(FileNotFoundError, match=r"images.train does not exist"):
        command(example, tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
