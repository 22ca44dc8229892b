"""Jobs started in a new run folder, or continued from one: tuned, described, locked, trained, reported."""

import contextlib
import platform
import sys
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mimkit.errors import DataUnreachable, TrainingStopped
from mimkit.records import record_of
from mimkit.report import write_report
from mimkit.training.auto_workers import Tuning, tuned
from mimkit.training.blocks import prepare_blocks
from mimkit.training.distributed import World, torchrun_job
from mimkit.training.hardware import git_commit, machine_in_words
from mimkit.training.job import Job
from mimkit.training.loggers import tensorboard_sink
from mimkit.training.loop import fit
from mimkit.training.machine import Machine
from mimkit.training.run_folder import FORMAT, Run


def start(
    job: Job, out: Path, machine: Machine, device: torch.device, world: World, *, overwrite: bool = False
) -> bool:
    """Train a job in a new run folder. True at the end, False where a signal stopped it early.

    Args:
        job: what to train.
        out: the run folder; refused when it is not empty.
        machine: workers, checkpoints and the like.
        device: where to train.
        world: the ranks, see `process_group`.
        overwrite: replace a run that is there.

    Raises:
        ValueError: a micro-batch that no trial found room for.
        FileExistsError: the folder is not empty.
        TrainingStopped: the run cannot continue.
    """
    job, tuning = tuned(job, machine, device, world)

    def create() -> None:
        Run.create(out, run_facts(job, tuning, device, world), overwrite=overwrite)

    world.on_main(create)
    return execute(job, tuning, Run(out), machine, device, world)


def proceed(job: Job, run: Run, machine: Machine, device: torch.device, world: World) -> bool:
    """Continue a run exactly where its last checkpoint left it; see `start`.

    Args:
        job: built again as it was when the run began.

    Raises:
        ValueError: its kind or its training values are not those that the run began with.
    """
    if job.kind != run.kind:
        raise ValueError(f"{run.folder} is a run of kind {run.kind}, and this job is of kind {job.kind}")
    if run.train != job.train:
        raise ValueError(f"{run.folder} began with {run.train}, which is {job.train} now")
    job, tuning = tuned(job, machine, device, world)
    return execute(job, tuning, run, machine, device, world)


def execute(job: Job, tuning: Tuning, run: Run, machine: Machine, device: torch.device, world: World) -> bool:
    """Train a job in its run folder; the main process writes the report."""
    for line in (*job.describe(world), *tuning.describe()) if world.is_main else ():
        print(line, file=sys.stderr)
    workers = tuning.workers
    try:
        with contextlib.ExitStack() as held:
            world.on_main(lambda: held.enter_context(run.locked()))
            return fit(
                job.model,
                job.batches(workers, world, prefetch=tuning.prefetch, pin_memory=device.type == "cuda"),
                job.train,
                run,
                evaluators=job.evaluators(run, device=device, workers=workers, world=world),
                scalars=job.scalars,
                groups=job.parameter_groups,
                device=device,
                log_every=job.log_every,
                checkpoint_minutes=machine.checkpoint_minutes,
                sharded_checkpoints=machine.sharded_checkpoints and world.size > 1,
                skipped_share=job.skipped_share,
                images=job.samples,
                sinks=[tensorboard_sink(run.folder)] if machine.tensorboard and world.is_main else [],
                world=world,
                prepare=partial(prepare_blocks, compiled=job.compile, recomputed=machine.recompute),
            )
    except OSError as error:  # a full disk, a folder gone: the request was fine, the work failed
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise TrainingStopped(f"{what}; what was saved is kept, go on with: mimkit resume {run.folder}") from error
    except DataUnreachable as error:
        raise TrainingStopped(f"{error}; what was saved is kept, go on with: mimkit resume {run.folder}") from error
    finally:
        if world.is_main:
            with contextlib.suppress(OSError):
                write_report([run.folder], run.folder / "report.html")


def run_facts(job: Job, tuning: Tuning, device: torch.device, world: World) -> dict[str, Any]:
    """What run.json says: the job's own facts, and those of every run."""
    steps_per_epoch = job.batches().steps_per_epoch
    return {
        "format": FORMAT,
        "kind": job.kind,
        "mimkit": version("mimkit"),
        **job.facts(),
        "training": record_of(job.train),
        "steps": job.train.epochs * steps_per_epoch,
        "steps_per_epoch": steps_per_epoch,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "timm", "numpy", "pillow")},
        "machine": machine_in_words(device),
        "processes": world.size,
        "tuning": tuning.to_json(),
        "job": torchrun_job(),
        "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
