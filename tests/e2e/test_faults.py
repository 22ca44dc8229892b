"""What a machine does to a run: it ends with one line and exit code 1, what was saved stays, and resuming goes on."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.runs import as_flags, fingerprint, settings
from mimkit.cli.main import main
from mimkit.evaluation import probes
from mimkit.method import Method
from mimkit.progress import Progress
from mimkit.training import checkpoint
from mimkit.training.checkpoint import load_newest

LATE = 8  # a step in the middle of 20


def command(photos: Path, out: Path, workers: int = 0) -> list[str]:
    short = replace(settings(photos), epochs=5, probe_every=2)
    wanted = [*as_flags(short), "--precision", "fp32", "--out", str(out)]
    return ["pretrain", "small", *wanted, "--workers", str(workers), "--checkpoint-minutes", "0"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, photos) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(command(photos, out)) == 0
    return fingerprint(out)


def after(step: int, work: Callable[[], None]) -> Callable[..., None]:
    """Progress's own method, which also does some work once a step is done."""
    told = Progress.step

    def tell(self: Progress, done: int) -> None:
        told(self, done)
        if done == step:
            work()

    return tell


def calling(number: int, error: BaseException, work: Callable[..., object]) -> Callable[..., object]:
    """The function, which fails when it is called for this time."""
    calls = []

    def call(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == number:
            raise error
        return work(*args, **options)

    return call


def kill_worker() -> None:
    workers = [child for child in multiprocessing.active_children() if child.name.startswith("Process")]
    assert workers[0].pid is not None
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].join()


# What is broken how, and what is said of it.
FAULTS = {
    "no memory on the device": (
        lambda patch: patch.setattr(
            Method, "forward", calling(30, torch.OutOfMemoryError("CUDA out of memory. Tried ..."), Method.forward)
        ),
        "out of memory in step {step}, with --micro-batch 4; {kept} --micro-batch 2",
    ),
    "no memory": (
        lambda patch: patch.setattr(
            Method,
            "forward",
            calling(30, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), Method.forward),
        ),
        "out of memory in step {step}, with --micro-batch 4; {kept} --micro-batch 2",
    ),
    "a full disk": (
        lambda patch: patch.setattr(
            checkpoint, "save_file", calling(17, OSError(28, "No space left on device"), checkpoint.save_file)
        ),
        "cannot be written, earlier checkpoints are kept: [Errno 28] No space left on device; "
        "what was saved is kept, go on with: mimkit resume {run}",
    ),
    "a dead data worker": (
        lambda patch: patch.setattr(Progress, "step", after(LATE, kill_worker)),
        "a data worker died in step {step}: DataLoader worker",
    ),
    "an error of another library": (
        lambda patch: patch.setattr(probes, "linear", calling(3, ValueError("Input X contains\nNaN."), probes.linear)),
        "step {step}: ValueError in test_faults.py:",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_in_a_line_and_the_run_goes_on(fault, photos, undisturbed, tmp_path, monkeypatch, capfd):
    cause, told = FAULTS[fault]
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        cause(patch)
        assert main(command(photos, out, workers=int("worker" in fault))) == 1
    saved = load_newest(out / "checkpoints")
    assert saved is not None
    step = saved.state["step"] + 1
    assert 5 < step < 19
    kept = f"the last checkpoint is kept, go on with: mimkit resume {out}"
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("mimkit: ")
    assert told.format(step=step, kept=kept, run=out) in last
    assert f"mimkit resume {out}" in last
    assert main(["resume", str(out), "--workers", "0"]) == 0
    assert fingerprint(out) == undisturbed


def test_a_file_that_vanishes_is_replaced_and_counted(photos, tmp_path, make_photos, monkeypatch):
    own = make_photos(tmp_path / "photos", count=40, classes=2)
    gone = sorted(own.rglob("*.png"))[7]
    monkeypatch.setattr(Progress, "step", after(LATE, gone.unlink))
    assert main(command(own, tmp_path / "run")) == 0
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    skipped = [line for line in log if '"kind": "skipped"' in line]
    assert len(skipped) == 1
    assert gone.name in skipped[0]
