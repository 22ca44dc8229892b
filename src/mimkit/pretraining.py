"""Pre-training, composed: settings to parts, data, evaluators and a run folder, and the loop over them."""

import contextlib
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from mimkit.account import describe, facts, fingerprint
from mimkit.data import Cache, DataUnreachable
from mimkit.errors import TrainingStopped
from mimkit.evaluation.online import Probe, Reconstructions, subset
from mimkit.files import absolute
from mimkit.plan import PICTURES, Plan, plan
from mimkit.settings import Machine, Settings
from mimkit.sources import recompose
from mimkit.training.auto_workers import Tuning, tuned
from mimkit.training.blocks import prepare_blocks
from mimkit.training.distributed import ALONE, World, job, joined
from mimkit.training.hardware import choose_device
from mimkit.training.loggers import require_sinks, tensorboard_sink
from mimkit.training.loop import Evaluator, fit
from mimkit.training.run_folder import Run, refuse_nonempty

HERE = Machine()


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
    batches = request.batches(tuning.workers, world, prefetch=tuning.prefetch, pin_memory=device.type == "cuda")
    every = request.probe_every * batches.steps_per_epoch
    method = request.method
    evaluators: list[tuple[int, Evaluator]] = []
    if len(request.held_out):
        bank = subset(request.train, request.settings.probe_images)
        test = subset(request.held_out, request.settings.probe_images)
        probe = Probe(method, bank, test, device=device, workers=tuning.workers, batch_size=batches.micro_batch)
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
