"""Several processes train as one does: the same weights to rounding, whatever is interrupted or started again."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import as_flags, fingerprint
from torch import Tensor

from mimkit.checkpoint import Checkpoint, load_newest
from mimkit.pretrain import plan, pretrain, resume
from mimkit.runs import Run
from mimkit.settings import Machine, Settings

STEPS = 12
INTERRUPTED = Path(__file__).with_name("interrupted.py")


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_photos) -> Path:
    folder = make_photos(tmp_path_factory.mktemp("data") / "photos", count=36, classes=2, size=80)
    for path in sorted(folder.rglob("*.png"))[3:5]:
        path.write_bytes(b"no picture")  # what all must replace by the same images, and count once
    return folder


def settings(photos: Path) -> Settings:
    """A dozen steps in float32; each step's batch of 12 comes in parts of 2 images for each process."""
    return Settings(
        data=photos, backbone="test_vit", image_size=(64,), batch_size=12, micro_batch=2, epochs=6, log_every=2,
        probe_every=3, decoder_width=32, decoder_depth=1, decoder_heads=2, warmup_epochs=1.0, base_lr=0.01,
        precision="fp32", clip_grad=1.0, ema=0.9, skipped_share=0.2,
    )  # fmt: skip


def torchrun(folder: Path, *arguments: str, processes: int = 2, restarts: int = 0, interrupt: str = "-1:0:0") -> str:
    """What the processes say, once they have ended well."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    launch += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", str(INTERRUPTED)]
    output = folder / "output.txt"
    environment = {**os.environ, "INTERRUPT": interrupt, "OMP_NUM_THREADS": "1"}
    with output.open("wb") as file:
        code = subprocess.run(
            [*launch, *arguments], stdout=file, stderr=file, env=environment, timeout=120, check=False
        ).returncode
    assert code == 0, output.read_text()
    return output.read_text()


def request(recipe: str, photos: Path, out: Path) -> list[str]:
    return ["pretrain", recipe, *as_flags(settings(photos)), "--out", str(out), "--workers", "0"]


def newest(run: Path) -> Checkpoint:
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All but generators, and but for the keys' biases: attention does not depend on them, so that their gradient is
    rounding, which Adam makes steps of.
    """
    found = {f"weights/{name}": value for name, value in checkpoint.weights.items()} | checkpoint.training
    return {
        name: torch.cat(value.chunk(3)[::2]) if name.endswith("qkv.bias") and value.ndim else value
        for name, value in found.items()
        if not name.startswith("generator/")
    }


def assert_same_to_rounding(run: Path, other: Path) -> None:
    """Weights, averages, moments; and every row of the log but for what a probe makes of rounded features."""
    one, two = (tensors(newest(folder)) for folder in (run, other))
    assert one.keys() == two.keys()
    for name, value in one.items():
        error = float((two[name] - value).norm() / value.norm().clamp(min=1e-12))
        assert error < 1e-4, f"{name}: {error:g}"
    rows = log(run)
    assert [(row["kind"], row["step"]) for row in log(other)] == [(row["kind"], row["step"]) for row in rows]
    for row, same in zip(rows, log(other), strict=True):
        numbers = {name: value for name, value in row.items() if isinstance(value, float) and row["kind"] == "train"}
        assert {name: same[name] for name in numbers} == pytest.approx(numbers, rel=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, photos) -> dict[str, Path]:
    """Runs of one process, by recipe."""
    folder = tmp_path_factory.mktemp("alone")
    for recipe in ("mae", "mff"):
        assert pretrain(recipe, settings(photos), folder / recipe, machine=Machine(workers=0))
    return {recipe: folder / recipe for recipe in ("mae", "mff")}


@pytest.fixture(scope="module")
def three(tmp_path_factory, photos) -> Path:
    """A run of three processes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("three")
    said = torchrun(folder, *request("mae", photos, folder / "run"), processes=3)
    assert "2 at once in each of 3 processes, ddp" in said
    assert said.count("training and 4 held-out images") == 1  # one of them speaks
    return folder / "run"


@pytest.mark.parametrize(
    ("processes", "wrong", "said"),
    [
        (5, {}, "5 processes cannot share --batch-size 12"),
        (2, {"micro_batch": 4}, "--micro-batch 4 does not divide the 6 images of each of 2 processes"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(photos, processes, wrong, said):
    with pytest.raises(ValueError, match=said):
        plan("mae", replace(settings(photos), **wrong), device=torch.device("cpu"), processes=processes)


def test_three_processes_train_as_one(alone, three):
    assert_same_to_rounding(alone["mae"], three)
    assert [row["path"] for row in log(three) if row["kind"] == "skipped"]
    generators = [name for name in newest(three).training if name.startswith("generator/cpu")]
    assert generators == ["generator/cpu", "generator/cpu/1", "generator/cpu/2"]


def test_two_processes_with_shares_of_the_parameters_train_as_one(alone, photos, tmp_path):
    """MFF's log has its fusion weights, which must be put together for it."""
    torchrun(tmp_path, *request("mff", photos, tmp_path / "run"), "--parallel", "fsdp")
    assert_same_to_rounding(alone["mff"], tmp_path / "run")
    assert any(name.startswith("fusion/") for row in log(tmp_path / "run") for name in row)


def test_other_numbers_of_processes_go_on(alone, photos, tmp_path, monkeypatch):
    """One process, then two with shares, then one again: the order of images and all else stay."""
    out = tmp_path / "run"
    torchrun(tmp_path, *request("mae", photos, out), processes=1, interrupt=f"0:4:{int(signal.SIGTERM)}")
    assert newest(out).state["step"] == 4
    said = torchrun(
        tmp_path,
        "resume",
        str(out),
        "--workers",
        "0",
        "--parallel",
        "fsdp",
        "--sharded-checkpoints",
        interrupt=f"1:9:{int(signal.SIGTERM)}",
    )
    assert f"resume with: mimkit resume {out}" in said  # the second process was asked, and all stopped
    assert newest(out).state["step"] == 9
    assert resume(Run(out), machine=Machine(workers=0))
    assert_same_to_rounding(alone["mae"], out)


def test_a_lost_process_is_replaced(three, photos, tmp_path):
    """torchrun starts all again, and they go on from the last checkpoint to the same bits."""
    out = tmp_path / "run"
    arguments = [*request("mae", photos, out), "--checkpoint-minutes", "0"]
    torchrun(tmp_path, *arguments, processes=3, restarts=1, interrupt=f"1:7:{int(signal.SIGKILL)}")
    assert fingerprint(out) == fingerprint(three)
