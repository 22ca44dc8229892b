"""Jobs started in a new run folder, or continued from one: tuned, described, locked, trained, reported."""

import contextlib
import multiprocessing
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mimkit.errors import DataUnreachable, TrainingStopped
from mimkit.files import home
from mimkit.records import record_of
from mimkit.report import write_report
from mimkit.training.auto_workers import Tuning, tuned
from mimkit.training.distributed import World, process_group, torchrun_job
from mimkit.training.hardware import choose_device, git_commit, machine_in_words
from mimkit.training.job import Job, differences
from mimkit.training.loggers import require_loggers, tensorboard_sink
from mimkit.training.loop import fit
from mimkit.training.machine import Machine
from mimkit.training.recorder import Callback, require_callable
from mimkit.training.run_folder import FORMAT, Run, refuse_nonempty

DEFAULT_MACHINE = Machine()


@contextlib.contextmanager
def on_machine(machine: Machine) -> Iterator[tuple[torch.device, World]]:
    """Inside, the device of this process, and the processes that torchrun started, or this one alone.

    Raises:
        ValueError: there is no such device, or a package that an option needs is missing; or this is a data worker that
            runs the program which started it once more.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ValueError('data workers import this program: put what it does below `if __name__ == "__main__":`')
    device = choose_device(machine.device)
    require_loggers(machine)
    with process_group(device, machine.parallel) as world:
        yield device, world


def start_or_resume(
    make: Callable[[torch.device, World], Job],
    out: str | Path,
    machine: Machine = DEFAULT_MACHINE,
    *,
    callbacks: Sequence[Callback] = (),
) -> bool:
    """Begin a job, or continue it where its run folder is there: what a program of one's own calls. True at the end.

    Args:
        make: makes the job, the same each time.
        out: the run folder.
        machine: device, workers, checkpoints and the like.
        callbacks: see `fit`'s `sinks`.

    Raises:
        See `start` and `resume`.
    """
    out = home(out)
    with on_machine(machine) as (device, world):
        there = world.on_main((out / "run.json").is_file)
        if not there:
            world.on_main(lambda: refuse_nonempty(out, overwrite=False))
        job = make(device, world)
        if there:
            return resume(job, Run(out), machine, device, world, callbacks=callbacks)
        return start(job, out, machine, device, world, callbacks=callbacks)


def start(
    job: Job,
    out: Path,
    machine: Machine,
    device: torch.device,
    world: World,
    *,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
) -> bool:
    """Train a job in a new run folder. True at the end, False where a signal stopped it early.

    Args:
        job: what to train.
        out: the run folder; refused when it is not empty.
        machine: workers, checkpoints and the like.
        device: where to train.
        world: the ranks, see `process_group`.
        overwrite: replace a run that is there.
        callbacks: see `fit`'s `sinks`.

    Raises:
        ValueError: a micro-batch that no trial found room for.
        FileExistsError: the folder is not empty.
        TrainingStopped: the run cannot continue.
    """
    require_callable(callbacks)
    job, tuning = tuned(job, machine, device, world)

    def create() -> None:
        Run.create(out, run_facts(job, tuning, device, world), overwrite=overwrite)

    world.on_main(create)
    return execute(job, tuning, Run(out), machine, device, world, callbacks)


def resume(
    job: Job,
    run: Run,
    machine: Machine,
    device: torch.device,
    world: World,
    *,
    callbacks: Sequence[Callback] = (),
) -> bool:
    """Continue a run exactly where its last checkpoint left it; see `start`.

    Args:
        job: built again as it was when the run began.

    Raises:
        ValueError: its kind or its training values are not those that the run began with.
    """
    require_callable(callbacks)
    if job.kind != run.kind:
        raise ValueError(f"{run.folder} is a run of kind {run.kind}, and this job is of kind {job.kind}")
    for name, then, now in differences(asdict(run.train), asdict(job.train)):
        raise ValueError(f"{run.folder} began with {name} {then}, which is {now} now")
    job.refuse_other(run)
    job, tuning = tuned(job, machine, device, world)
    return execute(job, tuning, run, machine, device, world, callbacks)


def execute(
    job: Job,
    tuning: Tuning,
    run: Run,
    machine: Machine,
    device: torch.device,
    world: World,
    callbacks: Sequence[Callback],
) -> bool:
    """Train a job in its run folder; the main process writes the report, and says of a stop how to go on."""
    for line in (*job.describe(world), *tuning.describe()) if world.is_main else ():
        print(line, file=sys.stderr)
    workers = tuning.workers
    sinks = [*callbacks, tensorboard_sink(run.folder)] if machine.tensorboard and world.is_main else callbacks
    try:
        with contextlib.ExitStack() as held:
            world.on_main(lambda: held.enter_context(run.locked()))
            finished = fit(
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
                samples=job.samples,
                sinks=sinks,
                world=world,
                compiled=job.compile,
                recomputed=machine.recompute,
            )
        if world.is_main and not finished:
            print(run.stopped("stopped"), file=sys.stderr)
        return finished
    except KeyboardInterrupt:
        if world.is_main:
            print(run.stopped("interrupted"), file=sys.stderr)
        raise
    except OSError as error:  # a full disk, a folder gone: the request was fine, the work failed
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise TrainingStopped(f"{what}; what was saved is kept, go on with: {run.resume_hint}") from error
    except DataUnreachable as error:
        raise TrainingStopped(f"{error}; what was saved is kept, go on with: {run.resume_hint}") from error
    finally:
        if world.is_main:
            with contextlib.suppress(OSError):
                write_report(run.folder, run.folder / "report.html")


def run_facts(job: Job, tuning: Tuning, device: torch.device, world: World) -> dict[str, Any]:
    """What run.json says: the job's own facts, and those of every run.

    Raises:
        ValueError: there is no step in an epoch, or the job's facts have a name of those of every run.
    """
    steps_per_epoch = job.batches(tuning.workers, world).steps_per_epoch
    if steps_per_epoch < 1:
        raise ValueError(f"--batch-size {job.train.batch_size} is more than there is to train on: an epoch has no step")
    own = job.facts()
    shared = {
        "format": FORMAT,
        "kind": job.kind,
        "resumable": job.resumable,
        **({"needs": list(job.needs)} if job.needs else {}),
        "mimkit": version("mimkit"),
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
    if own.keys() & shared.keys():
        raise ValueError(f"facts of a job cannot be called {', '.join(sorted(own.keys() & shared.keys()))}")
    return shared | own
