"""What each of two processes does for test_distributed.py: many short runs, as starting is slow.

RANK=0 WORLD_SIZE=2 ... python tests/helpers/pair.py FOLDER PHOTOS
"""

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `helpers`

import mimkit.training.launch
import mimkit.training.loop
from helpers.regression import VALUES, Batches, FrozenEncoder
from helpers.runs import as_flags
from helpers.tiny import TINY, VIT
from mimkit.cli.main import main
from mimkit.errors import TrainingStopped
from mimkit.method import Method
from mimkit.pretraining import pretrain, resume
from mimkit.progress import Progress
from mimkit.recipes import Recipe, mae
from mimkit.settings import Settings
from mimkit.targets import Features
from mimkit.training import blocks, checkpoint
from mimkit.training.distributed import Parallel, process_group
from mimkit.training.loop import OnAllRanks, fit
from mimkit.training.machine import Machine
from mimkit.training.run_folder import Run

KINDS: tuple[Parallel, ...] = ("ddp", "fsdp")
BATCH: dict[str, Any] = {"batch_size": 12, "micro_batch": 3, "epochs": 1, "warmup_epochs": 0.0, "precision": "fp32"}
BATCH |= {"held_out": 0.0, "skipped_share": 0.2, "log_every": 1}
# One step each, which ends as one process's does.
CASES: dict[str, tuple[str, dict[str, Any]]] = {recipe: (recipe, tiny) for recipe, tiny in TINY.items()} | {
    "complementary masks": ("mae", TINY["mae"] | {"mask": "complementary"}),
    "one mask for a batch": ("mae", TINY["mae"] | {"mask": "shared"}),
    "features of a teacher": (f"{__file__}:taught", TINY["mae"]),
    "dense ConvNeXt": (
        "simmim",
        VIT | {"backbone": "convnext_tiny(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))", "mask_cell": 32},
    ),
    "repeats": ("mae", TINY["mae"] | {"repeats": 3}),
    "clipped and averaged": ("mae", TINY["mae"] | {"clip_grad": 0.1, "ema": 0.8, "epochs": 3}),
    "compiled and computed again": ("greenmim", TINY["greenmim"] | {"compile": True}),
}
# FSDP is slow, and does not care for targets and masks: each kind of backbone, readout and decoder once.
SHARDED = (
    *("mae", "mff", "localmim-swin", "simmim-vit", "mff-simmim", "convmae", "crossmae", "dense ConvNeXt"),
    *("clipped and averaged", "compiled and computed again"),
)


def taught() -> Recipe:
    """MAE that reconstructs the features of a frozen network with random weights."""
    return replace(mae(), target=Features("test_vit", pretrained=False))


def train(case: str, photos: Path, out: Path, kind: Parallel = "ddp", *, shares: bool = False, **changes: Any) -> bool:
    """Train a case, or go on with it, with the processes that the environment tells of; True at the end."""
    recipe, tiny = CASES[case]
    machine = Machine(workers=0, parallel=kind, sharded_checkpoints=shares, recompute="compile" in tiny)
    if (out / "run.json").exists():
        return resume(Run(out), machine=machine)
    return pretrain(recipe, Settings(data=photos, **BATCH | tiny | changes), out, machine=machine)


def exchanges(work: Callable[[], object]) -> int:
    """How often the processes talk during the work, which makes a group of them and leaves it."""
    talks = []
    leave = dist.destroy_process_group

    def count() -> None:
        assert dist.group.WORLD is not None
        talks.append(dist.group.WORLD._get_sequence_number_for_group())
        leave()

    dist.destroy_process_group = count
    work()
    dist.destroy_process_group = leave
    (number,) = talks
    return number


@contextlib.contextmanager
def asked_to_stop(after: int, here: bool = True) -> Iterator[None]:
    """Inside, this process is sent SIGTERM after a step, and once more: by Slurm, as it were, and then by torchrun."""

    class Asked(Progress):
        def step(self, step: int) -> None:
            super().step(step)
            if here and step == after:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

    mimkit.training.loop.Progress = Asked
    try:
        yield
    finally:
        mimkit.training.loop.Progress = Progress


def failing(number: int, error: BaseException, work: Callable[..., object]) -> Callable[..., object]:
    """The function, which fails from this call on."""
    calls = []

    def call(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) >= number:
            raise error
        return work(*args, **options)

    return call


# What fails in the second process, in the second step: (owner, name, the call that fails, how).
FAULTS: dict[str, tuple[Any, str, int, Exception]] = {
    "disk": (checkpoint.HuggingFaceStorageWriter, "write_data", 2, OSError(28, "No space left on device")),
    "memory": (Method, "forward", 5, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")),
}


@contextlib.contextmanager
def broken(fault: str, rank: int) -> Iterator[None]:
    owner, name, number, error = FAULTS[fault]
    work = getattr(owner, name)
    if rank == 1:
        setattr(owner, name, failing(number, error, work))
    try:
        yield
    finally:
        setattr(owner, name, work)


def failed_callback(out: Path, photos: Path) -> str | bool:
    """What a process is told where a callback fails on the row of the first step: the error, or that it was stopped."""

    def fails(row: dict[str, Any]) -> None:
        if row["step"] == 1:
            raise KeyError("loss")

    asked = Settings(data=photos, **BATCH | TINY["mae"] | {"epochs": 2})
    try:
        return pretrain("mae", asked, out, machine=Machine(workers=0), callbacks=[fails])
    except TrainingStopped as error:
        return str(error)


def command(out: Path, photos: Path) -> list[str]:
    """Two steps of a run that has a probe, and saves shares after each step; the last seven words are the machine's."""
    settings = TINY["mae"] | BATCH | {"held_out": 0.2, "epochs": 2}
    saving = ["--sharded-checkpoints", "--checkpoint-minutes", "0", "--parallel", "fsdp", "--workers", "0"]
    return ["pretrain", "mae", "--data", str(photos), "--out", str(out), *as_flags(settings), *saving]


def newest(out: Path) -> int:
    """The step of the run's last checkpoint."""
    saved = checkpoint.load_newest(out / "checkpoints")
    assert saved is not None
    return saved.state["step"]


def said(arguments: list[str]) -> tuple[int, str]:
    """The command's exit code, and the last line of what it says."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(arguments)
    return code, (errors.getvalue().splitlines() or [""])[-1]


def evaluated_together(out: Path, kind: Parallel) -> None:
    """A model with a frozen encoder, evaluated by both processes: who took part, and whether with the same weights."""
    model, cpu = FrozenEncoder(), torch.device("cpu")
    with process_group(cpu, kind) as world:

        def look(step: int) -> dict[str, Any]:
            found = world.gather([value.tolist() for value in model.state_dict().values()])
            skipped = [(f"{world.rank}.jpg", "broken")] if step == 0 else []
            same = all(weights == found[0] for weights in found)
            return {"kind": "look", "ranks": world.gather(world.rank), "same": same, "skipped": skipped}

        world.on_main(lambda: Run.create(out, {}) and None)
        evaluators = [(4, OnAllRanks(look)), (4, lambda step: {"kind": "main", "head": model.head.weight.tolist()})]
        fit(model, Batches(), VALUES, Run(out), evaluators=evaluators, samples=10, skipped_share=0.5, world=world)


def everything(folder: Path, photos: Path) -> dict[str, Any]:
    """All runs, and what is to be told of them beside what they wrote."""
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {"faults": {}, "exchanges": {}}
    for kind in KINDS:
        for case in CASES if kind == "ddp" else SHARDED:
            assert train(case, photos, folder / kind / case, kind)
        evaluated_together(folder / f"together-{kind}", kind)
        for parts in (1, 3):
            work = partial(train, "mae", photos, folder / f"{kind}-{parts}", kind, micro_batch=6 // parts)
            found["exchanges"][f"{kind} {parts}"] = exchanges(work)
        out = folder / f"interrupted-{kind}"
        with asked_to_stop(after=1, here=rank == 1):
            assert not train("clipped and averaged", photos, out, kind, shares=True)
        assert train("clipped and averaged", photos, out, kind, shares=True)
    with asked_to_stop(after=2, here=rank == 1):
        assert not train("clipped and averaged", photos, folder / "handed on", "fsdp", shares=True)
    found["callback"] = failed_callback(folder / "callback", photos)
    found["undisturbed"] = said(command(folder / "undisturbed", photos))
    for fault in FAULTS:
        out = folder / fault
        with broken(fault, rank):
            found["faults"][fault] = said(command(out, photos))
        if fault == "disk":
            assert newest(out) == 1
            assert said(["resume", str(out), *command(out, photos)[-7:]])[0] == 0
    return found  # and end, which is how the first process learns of the second one's last fault


if __name__ == "__main__":
    torch.set_num_threads(1)
    blocks.BACKEND = "eager"
    mimkit.training.launch.write_report = lambda *_: None
    results = everything(Path(sys.argv[1]), Path(sys.argv[2]))
    (Path(sys.argv[1]) / f"found-{os.environ['RANK']}.json").write_text(json.dumps(results))
