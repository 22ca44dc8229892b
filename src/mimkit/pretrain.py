"""Pre-training, composed: settings to parts, data, evaluators and a run folder, and the loop over them."""

import contextlib
import math
import platform
import sys
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mimkit.backbones import DenseEncoder, VisibleSwin
from mimkit.compose import compose
from mimkit.data import ImageList, TrainBatches, choose_decoder, split
from mimkit.distributed import ALONE, World, job, joined, repeated
from mimkit.evaluators import Probe, Reconstructions, subset
from mimkit.flags import naming
from mimkit.machine import (
    choose_device,
    choose_workers,
    git_commit,
    machine_in_words,
    require_sinks,
    tensorboard_sink,
)
from mimkit.method import Method
from mimkit.precision import choose_precision, tune
from mimkit.recipes import Recipe, build, parts_in_words
from mimkit.runs import Run, refuse_nonempty
from mimkit.settings import Machine, Settings
from mimkit.sources import recompose
from mimkit.train import Evaluator, TrainingStopped, fit

PICTURES = 8
HERE = Machine()


@dataclass(frozen=True)
class Plan:
    """A request with everything resolved and built, before anything is written."""

    name: str
    recipe: Recipe
    settings: Settings
    method: Method
    train: ImageList
    held_out: ImageList
    parts: int
    probe_every: int
    notes: list[str]

    def batches(self, workers: int, world: World = ALONE) -> TrainBatches:
        return TrainBatches(
            self.train,
            view=self.recipe.view,
            size=self.recipe.image_size,
            channels=self.recipe.channels,
            batch_size=self.recipe.train.batch_size,
            parts=self.parts,
            repeats=self.settings.repeats,
            decode=self.settings.decode,
            seed=self.settings.seed,
            workers=workers,
            rank=world.rank,
            world=world.size,
        )


def plan(name: str, settings: Settings, *, device: torch.device, processes: int = 1) -> Plan:
    """Resolve and build a request: read the folder, fix every value, make the method with the seed's weights.

    Args:
        name: of the recipe.
        settings: the request.
        device: where it is to run.
        processes: that share each batch.

    Raises:
        ValueError: a value that is wrong or does not fit another; the message names both.
        FileNotFoundError: no such data.
    """
    recipe = compose(name, settings)
    with naming("--data"):
        train, held_out = split(settings.data, settings.held_out)
    notes = []
    batch_size = recipe.train.batch_size
    if batch_size > len(train):
        if settings.batch_size is not None:
            raise ValueError(
                f"--batch-size {batch_size} is more than the {len(train)} training images in {settings.data}"
            )
        batch_size = 1 << (len(train).bit_length() - 1)
        notes.append(
            f"the recipe's batch of {recipe.train.batch_size} is more than the {len(train)} images: {batch_size}"
        )
    if batch_size % processes:
        raise ValueError(f"{processes} processes cannot share --batch-size {batch_size} equally")
    share = batch_size // processes
    micro = settings.micro_batch or default_micro_batch(share, device)
    if share % micro:
        of = f"the {share} images of each of {processes} processes" if processes > 1 else f"the batch size of {share}"
        raise ValueError(f"--micro-batch {micro} does not divide {of}")
    if micro % settings.repeats:
        raise ValueError(f"--repeats {settings.repeats} does not divide the {micro} images computed at once")
    precision = settings.precision or choose_precision(device)
    recipe = replace(recipe, train=replace(recipe.train, batch_size=batch_size, precision=precision))
    if len(train) // batch_size < 10 and settings.batch_size is None and name != "small":
        notes.append(
            f"only {len(train) // batch_size} steps in an epoch of {len(train)} images: "
            "with few images, try the recipe `small`, or a --batch-size of 128"
        )
    probe_every = settings.probe_every or -(-recipe.train.epochs // 5)
    values: dict[str, Any] = {
        f.name: getattr(recipe.train, f.name) for f in fields(Settings) if hasattr(recipe.train, f.name)
    }
    values["channels"] = recipe.channels
    settings = replace(
        settings,
        **values,
        data=settings.data.resolve(),
        decode=choose_decoder(settings.decode),
        image_size=recipe.image_size,
        micro_batch=micro,
        probe_every=probe_every,
    )
    torch.manual_seed(settings.seed)
    method = build(recipe)
    tune(method, device, precision)
    return Plan(name, recipe, settings, method, train, held_out, share // micro, probe_every, notes)


def pretrain(recipe: str, settings: Settings, out: Path, *, machine: Machine = HERE, overwrite: bool = False) -> bool:
    """Pre-train into a new run folder. True at the end, False where a signal stopped it early.

    Args:
        recipe: a name of `mimkit recipes`.
        settings: what to train, on what.
        out: the run folder; refused when it is not empty.
        machine: device, reading processes and the like.
        overwrite: replace a run that is there. One that the same job of torchrun began is continued instead.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: a request that cannot be met; nothing has been written.
        TrainingStopped: the run cannot go on.
    """
    out = Path(out)
    device = choose_device(machine.device)
    require_sinks(machine)
    with joined(device, machine.parallel) as world:
        if world.first(lambda: is_of_this_job(out)):
            return go_on(Run(out), machine, device, world, recipe=recipe if ":" in recipe else None)
        world.first(lambda: refuse_nonempty(out, overwrite=overwrite))
        if settings.data.is_dir() and out.resolve().is_relative_to(settings.data.resolve()):
            raise ValueError(f"--out {out} lies inside --data {settings.data}: the run's pictures would become data")
        request = plan(recipe, settings, device=device, processes=world.size)

        def create() -> None:
            Run.create(out, facts(request, device, world), overwrite=overwrite)

        world.first(create)
        return execute(request, Run(out), machine, device, world)


def is_of_this_job(out: Path) -> bool:
    """Whether the folder's run was begun by the same job of torchrun, which then lost a process and started again."""
    return job() is not None and (out / "run.json").is_file() and Run(out).facts.get("job") == job()


def resume(run: Run, *, machine: Machine = HERE, recipe: str | None = None, micro_batch: int | None = None) -> bool:
    """Continue a run exactly where its last checkpoint left it, with however many processes.

    Args:
        run: what to continue.
        machine: device, reading processes and the like.
        recipe: FILE.py:NAME, for a run made with a recipe from a file of your own.
        micro_batch: images computed at once from now on; other numbers than before change results by rounding, and
            batch normalisation's statistics.

    Raises:
        ValueError: the images are not those the run began with.
    """
    device = choose_device(machine.device)
    require_sinks(machine)
    with joined(device, machine.parallel) as world:
        return go_on(run, machine, device, world, recipe=recipe, micro_batch=micro_batch)


def go_on(
    run: Run,
    machine: Machine,
    device: torch.device,
    world: World,
    *,
    recipe: str | None = None,
    micro_batch: int | None = None,
) -> bool:
    """What `resume` does, with the other processes."""
    recompose(run.facts, run.folder, recipe)
    settings = Settings.from_json(run.facts["settings"])
    if micro_batch is None and settings.batch_size is not None and settings.micro_batch is not None:
        share = settings.batch_size // world.size
        micro_batch = (
            settings.micro_batch if share % settings.micro_batch == 0 else math.gcd(share, settings.micro_batch)
        )
    settings = replace(settings, micro_batch=micro_batch)
    request = plan(recipe or run.facts["recipe"], settings, device=device, processes=world.size)
    if run.facts["training"] != str(request.recipe.train):
        raise ValueError(f"{run.folder} began with {run.facts['training']}, which is {request.recipe.train} now")
    if run.facts["data"]["fingerprint"] != fingerprint(request):
        raise ValueError(f"the images in {request.settings.data} are no longer those that {run.folder} began with")
    return execute(request, run, machine, device, world)


def execute(request: Plan, run: Run, machine: Machine, device: torch.device, world: World = ALONE) -> bool:
    """Train a plan in its run folder; the first process writes the report."""
    from mimkit.report import write_report

    for line in (*describe(request, world), *request.notes) if world.leads else ():
        print(line, file=sys.stderr)
    workers = choose_workers(machine.workers)
    batches = request.batches(workers, world)
    every = request.probe_every * batches.steps_per_epoch
    method = request.method
    evaluators: list[tuple[int, Evaluator]] = []
    if len(request.held_out):
        bank = subset(request.train, request.settings.probe_images)
        test = subset(request.held_out, request.settings.probe_images)
        at_once = request.settings.micro_batch or 1
        probe = Probe(method, bank, test, device=device, workers=workers, batch_size=at_once)
        shown = Reconstructions(method, subset(request.held_out, PICTURES), run.folder, device=device)
        evaluators = [(every, probe), (every, shown)]
    try:
        with run.locked() if world.leads else contextlib.nullcontext():
            return fit(
                method,
                batches,
                request.recipe.train,
                run,
                evaluators=evaluators,
                scalars=method.scalars,
                device=device,
                log_every=request.settings.log_every,
                checkpoint_minutes=machine.checkpoint_minutes,
                sharded_checkpoints=machine.sharded_checkpoints and world.size > 1,
                skipped_share=request.settings.skipped_share,
                images=len(request.train) + len(request.held_out),
                sinks=[tensorboard_sink(run.folder)] if machine.tensorboard and world.leads else [],
                world=world,
                blocks=blocks,
            )
    except OSError as error:  # a full disk, a folder gone: the request was fine, the work failed
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise TrainingStopped(f"{what}; what was saved is kept, go on with: mimkit resume {run.folder}") from error
    finally:
        if world.leads:
            with contextlib.suppress(OSError):
                write_report([run.folder], run.folder / "report.html")


def blocks(method: torch.nn.Module) -> list[torch.nn.Module]:
    """What FSDP shards as one: the blocks that are called as such. `VisibleSwin` calls the parts of its blocks."""
    assert isinstance(method, Method)
    parts = [method.readout, method.decoders]
    return [
        block
        for part in (parts if isinstance(method.encoder, VisibleSwin) else [method.encoder, *parts])
        for block in repeated(part)
    ]


def fingerprint(request: Plan) -> str:
    """Of the names and labels of all images, training and held out."""
    return f"{request.train.fingerprint()}-{request.held_out.fingerprint()}"


def describe(request: Plan, world: World = ALONE) -> list[str]:
    """A few lines that say what is about to be trained."""
    values, settings, encoder = request.recipe.train, request.settings, request.method.encoder
    height, width = request.recipe.image_size
    how = "computing on visible tokens only"
    if isinstance(encoder, DenseEncoder):
        how = "mask tokens in place of hidden cells" + (f" ({encoder.why})" if encoder.why else "")
    processes = f" in each of {world.size} processes, {world.parallel}" if world.size > 1 else ""
    labels = f"{len(request.train.classes)} classes" if request.train.classes else "no class folders"
    return [
        f"{request.name}: {encoder.name} at {height} x {width}, {parameters(encoder):,} parameters, {how}",
        f"data: {len(request.train):,} training and {len(request.held_out):,} held-out images, {labels}",
        f"training: {values.epochs} epochs, batch {values.batch_size} ({settings.micro_batch} at once{processes}), "
        f"peak learning rate {values.peak_lr:.3g} = {values.base_lr:g} x {values.batch_size} / {values.lr_batch}, "
        f"{values.precision}",
    ]


def facts(request: Plan, device: torch.device, world: World = ALONE) -> dict[str, Any]:
    """What run.json says."""
    method, recipe = request.method, request.recipe
    batches = request.batches(workers=0)
    return {
        "mimkit": version("mimkit"),
        "recipe": request.name,
        "settings": request.settings.to_json(),
        "parts": parts_in_words(recipe)
        | {"downstream": "the encoder with its final norm; readout and decoder serve pre-training only"},
        "training": str(recipe.train),
        "data": {
            "path": str(request.settings.data),
            "train_images": len(request.train),
            "held_out_images": len(request.held_out),
            "classes": request.train.classes,
            "fingerprint": fingerprint(request),
        },
        "steps": recipe.train.epochs * batches.steps_per_epoch,
        "steps_per_epoch": batches.steps_per_epoch,
        "parameters": {
            "encoder": parameters(method.encoder),
            "readout": parameters(method.readout),
            "decoder": parameters(method.decoders),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "timm", "numpy", "pillow")},
        "machine": machine_in_words(device),
        "processes": world.size,
        "job": job(),
        "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def parameters(module: torch.nn.Module) -> int:
    """How many numbers a module consists of."""
    return sum(p.numel() for p in module.parameters())


def default_micro_batch(batch_size: int, device: torch.device) -> int:
    """The largest divisor of the batch size up to 256 on an accelerator, 128 on a CPU."""
    most = 128 if device.type == "cpu" else 256
    return max(n for n in range(1, min(most, batch_size) + 1) if batch_size % n == 0)
