"""Choose micro-batch, data workers and prefetch from short measurements before a job starts.

None of this changes what is trained: micro-batches add up to the same batch, and batches are the same for any number
of workers.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any

import torch

from mimkit.errors import CannotBeSent
from mimkit.training.auto_batch import Trial, find_micro_batch, speed_of
from mimkit.training.distributed import World
from mimkit.training.hardware import available_memory, choose_workers, cores, shared_memory
from mimkit.training.job import Job
from mimkit.training.machine import Machine

MARGIN = 1.5  # each worker is slower the more there are: they share disk, caches and memory
MOST_WORKERS = 16
PREFETCH_MIB = 1024.0  # most memory for batches that are read ahead


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was chosen for a run, and the measurements behind it.

    Args:
        workers: data workers.
        prefetch: micro-batches that each worker reads ahead.
        trials: of micro-batches; none where the micro-batch was given.
        read: images per second that one worker reads; None where it was not measured.
        computed: images per second that this rank computes; None likewise.
        why_none: why there are no workers, where there could not be any.
    """

    workers: int
    prefetch: int = 2
    trials: Sequence[Trial] = ()
    read: float | None = None
    computed: float | None = None
    why_none: str = ""

    def to_json(self) -> dict[str, Any]:
        """What run.json keeps."""
        return {
            "micro_batch_trials": [asdict(trial) for trial in self.trials],
            "read_images_per_second": self.read,
            "computed_images_per_second": self.computed,
            "workers": self.workers,
            "prefetch": self.prefetch,
        }

    def describe(self) -> list[str]:
        """The measurements in a line or two; none where nothing was measured."""
        lines = [f"reading in this process: {self.why_none}"] if self.why_none else []
        if self.trials:
            tried = ", ".join(f"{t.images}: {t.images_per_second:.3g} in {t.mib:,.0f} MiB" for t in self.trials)
            lines.append(f"trials, images/s by images at once: {tried}")
        if self.read is not None and self.computed is not None:
            short = "" if self.workers * self.read > self.computed else "; computing will wait for images"
            lines.append(
                f"reading: {self.workers} worker{'s' * (self.workers > 1)}, {self.prefetch} batches ahead each, as "
                f"one reads {self.read:.3g} images/s and {self.computed:.3g} are computed{short}"
            )
        return lines


def tuned(job: Job, machine: Machine, device: torch.device, world: World) -> tuple[Job, Tuning]:
    """The job with its micro-batch, from trials where it is "auto"; and workers and prefetch, as given or chosen so
    that computing does not wait for data.

    Raises:
        ValueError: see `find_micro_batch`.
    """
    trials: list[Trial] = []
    if job.micro_batch == "auto":
        sizes = job.micro_batches(world)
        if not sizes or (device.type == "cpu" and not job.request()):
            raise ValueError(
                f"--micro-batch auto: a job of kind {job.kind} cannot be tried out on {device}; give a number"
            )
        if world.is_main:
            print("trying how many images to compute at once", file=sys.stderr, flush=True)
        micro_batch, trials = find_micro_batch(job, sizes, device, world, recompute=machine.recompute)
        job = job.with_micro_batch(micro_batch, world)
    if machine.workers is not None:
        return job, Tuning(workers=machine.workers, trials=trials)
    try:
        job.batches(1, world)
    except CannotBeSent as error:
        return job, Tuning(workers=0, trials=trials, why_none=str(error))

    assert isinstance(job.micro_batch, int)
    speeds = [trial.images_per_second for trial in trials if trial.images == job.micro_batch]
    reading = job.reading(world)
    computed = None
    if reading is not None:
        computed = speeds[0] if speeds else speed_of(job, job.micro_batch, device, recompute=machine.recompute)
    if reading is None or computed is None:
        return job, Tuning(workers=choose_workers(None), trials=trials)
    room = min(PREFETCH_MIB, 0.1 * available_memory(), 0.5 * shared_memory())
    needed = computed * (2 if job.compile else 1)  # compiled blocks may be twice as fast
    most, fitting = min(MOST_WORKERS, cores()), int(room / reading.mib)
    workers, prefetch = workers_and_prefetch(reading.seconds, needed, job.micro_batch, most=most, fitting=fitting)
    read = 1 / fmean(reading.seconds)
    return job, Tuning(workers=workers, prefetch=prefetch, trials=trials, read=read, computed=computed)


def workers_and_prefetch(
    seconds: Sequence[float], computed: float, batch: int, *, most: int, fitting: int
) -> tuple[int, int]:
    """Workers enough to read faster than images are computed, and prefetch enough to bridge a slow batch.

    Args:
        seconds: that one worker took for each of some images.
        computed: images per second.
        batch: images in a micro-batch.
        most: workers at most.
        fitting: micro-batches that memory holds.
    """
    workers = max(1, min(math.ceil(MARGIN * computed * fmean(seconds)), most, fitting))
    slow = batch * fmean(seconds) + 3 * math.sqrt(batch) * pstdev(seconds)  # mean + 3 std: one batch in a thousand
    ahead = math.ceil(slow * computed / batch / workers)  # computed meanwhile
    return workers, max(1, min(max(2, ahead), fitting // workers))
