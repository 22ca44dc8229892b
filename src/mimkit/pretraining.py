"""Pre-training, composed: settings to parts, data, evaluators and a run folder, and the loop over them."""

import contextlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from mimkit.account import describe, facts, fingerprint
from mimkit.compose import compose
from mimkit.data import Cache, DataUnreachable, ImageList, TrainBatches, choose_decoder, split
from mimkit.efficiency import choose_precision, tune
from mimkit.evaluation.online import Probe, Reconstructions, subset
from mimkit.flags import naming
from mimkit.locations import absolute
from mimkit.method import Method
from mimkit.recipes import Recipe, build
from mimkit.settings import Machine, Settings
from mimkit.sources import recompose
from mimkit.training.adamw_bf16 import refuse_batch_norms
from mimkit.training.auto_batch import divisors
from mimkit.training.auto_workers import Tuning, tuned
from mimkit.training.blocks import prepare_blocks, require_compiler
from mimkit.training.distributed import ALONE, World, job, joined
from mimkit.training.hardware import choose_device, require_sinks, tensorboard_sink
from mimkit.training.loop import Evaluator, TrainingStopped, fit
from mimkit.training.run_folder import Run, refuse_nonempty

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

    def batches(self, workers: int, world: World = ALONE, *, prefetch: int = 2, pinned: bool = False) -> TrainBatches:
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
            prefetch=prefetch,
            pinned=pinned,
            rank=world.rank,
            world=world.size,
        )


def plan(
    name: str, settings: Settings, *, device: torch.device, processes: int = 1, cache: Cache | None = None
) -> Plan:
    """Resolve and build a request: read the folder, fix every value, make the method with the seed's weights.

    With --micro-batch auto, the default's parts stand until `tuned` has found others.

    Args:
        name: of the recipe.
        settings: the request.
        device: where it is to run.
        processes: that share each batch.
        cache: of shards that come from elsewhere.

    Raises:
        ValueError: a value that is wrong or does not fit another; the message names both.
        FileNotFoundError: no such data.
        DataUnreachable: it lies elsewhere, and cannot be fetched.
    """
    recipe = compose(name, settings)
    if settings.compile:
        require_compiler(device)
    with naming("--data"):
        train, held_out = split(settings.data, settings.held_out, cache)
    notes = []
    batch_size, repeats = recipe.train.batch_size, settings.repeats
    if batch_size > len(train) * repeats:
        given = f"{len(train)} training images in {settings.data}" + f" give with --repeats {repeats}" * (repeats > 1)
        if settings.batch_size is not None:
            raise ValueError(f"--batch-size {batch_size} is more than the {given}")
        batch_size = repeats << (len(train).bit_length() - 1)
        notes.append(f"the recipe's batch of {recipe.train.batch_size} is more than the {given}: {batch_size}")
    if batch_size % processes:
        raise ValueError(f"{processes} processes cannot share --batch-size {batch_size} equally")
    share = batch_size // processes
    of = f"the {share} images of each of {processes} processes" if processes > 1 else f"the batch size of {share}"
    if share % repeats:
        raise ValueError(f"--repeats {repeats} does not divide the {share} images that a process computes in a step")
    sizes = divisors(share, repeats)
    micro = settings.micro_batch if isinstance(settings.micro_batch, int) else default_micro_batch(sizes, device)
    if share % micro:
        raise ValueError(f"--micro-batch {micro} does not divide {of}")
    if micro % repeats:
        raise ValueError(f"--repeats {repeats} does not divide the {micro} images computed at once")
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
        data=absolute(settings.data),
        decode=choose_decoder(settings.decode),
        image_size=recipe.image_size,
        micro_batch="auto" if settings.micro_batch == "auto" else micro,
        probe_every=probe_every,
    )
    torch.manual_seed(settings.seed)
    method = build(recipe)
    tune(method, device, precision)
    if precision == "bf16-pure" and processes > 1:
        refuse_batch_norms(method, processes)
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
        here = isinstance(settings.data, Path) and settings.data.is_dir()
        if here and out.resolve().is_relative_to(absolute(settings.data)):
            raise ValueError(f"--out {out} lies inside --data {settings.data}: the run's pictures would become data")
        cache = Cache.at(machine.cache, machine.cache_gb)
        request = plan(recipe, settings, device=device, processes=world.size, cache=cache)
        request, tuning = tuned(request, machine, device, world)

        def create() -> None:
            Run.create(out, facts(request, tuning, device, world), overwrite=overwrite)

        world.first(create)
        return execute(request, tuning, Run(out), machine, device, world)


def is_of_this_job(out: Path) -> bool:
    """Whether the folder's run was begun by the same job of torchrun, which then lost a process and started again."""
    return job() is not None and (out / "run.json").is_file() and Run(out).facts.get("job") == job()


def resume(
    run: Run,
    *,
    machine: Machine = HERE,
    recipe: str | None = None,
    micro_batch: int | Literal["auto"] | None = None,
) -> bool:
    """Continue a run exactly where its last checkpoint left it, with however many processes.

    Args:
        run: what to continue.
        machine: device, reading processes and the like.
        recipe: FILE.py:NAME, for a run made with a recipe from a file of your own.
        micro_batch: images computed at once from now on, auto for what trials find; another number than before changes
            results by rounding, and batch normalisation's statistics.

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
    micro_batch: int | Literal["auto"] | None = None,
) -> bool:
    """What `resume` does, with the other processes."""
    recompose(run.facts, run.folder, recipe)
    settings = Settings.from_json(run.facts["settings"])
    if micro_batch is None and isinstance(settings.batch_size, int) and isinstance(settings.micro_batch, int):
        share = settings.batch_size // world.size
        micro_batch = (
            settings.micro_batch if share % settings.micro_batch == 0 else math.gcd(share, settings.micro_batch)
        )
    settings = replace(settings, micro_batch=micro_batch)
    cache = Cache.at(machine.cache, machine.cache_gb)
    request = plan(recipe or run.facts["recipe"], settings, device=device, processes=world.size, cache=cache)
    if run.facts["training"] != str(request.recipe.train):
        raise ValueError(f"{run.folder} began with {run.facts['training']}, which is {request.recipe.train} now")
    if run.facts["data"]["fingerprint"] != fingerprint(request):
        raise ValueError(f"the images in {request.settings.data} are no longer those that {run.folder} began with")
    request, tuning = tuned(request, machine, device, world)
    return execute(request, tuning, run, machine, device, world)


def execute(
    request: Plan, tuning: Tuning, run: Run, machine: Machine, device: torch.device, world: World = ALONE
) -> bool:
    """Train a plan in its run folder; the first process writes the report."""
    from mimkit.report import write_report

    for line in (*describe(request, world), *request.notes, *tuning.in_words()) if world.leads else ():
        print(line, file=sys.stderr)
    batches = request.batches(tuning.workers, world, prefetch=tuning.prefetch, pinned=device.type == "cuda")
    every = request.probe_every * batches.steps_per_epoch
    method = request.method
    evaluators: list[tuple[int, Evaluator]] = []
    if len(request.held_out):
        bank = subset(request.train, request.settings.probe_images)
        test = subset(request.held_out, request.settings.probe_images)
        probe = Probe(method, bank, test, device=device, workers=tuning.workers, batch_size=batches.share)
        shown = Reconstructions(method, subset(request.held_out, PICTURES), run.folder, device=device)
        evaluators = [(every, probe), (every, shown)]
    try:
        with contextlib.ExitStack() as held:
            world.first(lambda: held.enter_context(run.locked()))
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
                prepare=partial(prepare_blocks, compiled=request.settings.compile, recomputed=machine.recompute),
            )
    except OSError as error:  # a full disk, a folder gone: the request was fine, the work failed
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise TrainingStopped(f"{what}; what was saved is kept, go on with: mimkit resume {run.folder}") from error
    except DataUnreachable as error:
        raise TrainingStopped(f"{error}; what was saved is kept, go on with: mimkit resume {run.folder}") from error
    finally:
        if world.leads:
            with contextlib.suppress(OSError):
                write_report([run.folder], run.folder / "report.html")


def default_micro_batch(sizes: Sequence[int], device: torch.device) -> int:
    """The largest of rising sizes up to 256 on an accelerator, 128 on a CPU."""
    most = 128 if device.type == "cpu" else 256
    return max((size for size in sizes if size <= most), default=sizes[0])
