"""What a job finds out before it starts: how much it computes at once, how many data workers read, how far ahead.

None of this changes what is trained: micro-batches add up to the same batch, and batches are the same however many
workers read them.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any

import torch

from mimkit.training.auto_batch import Trial, find_micro_batch, speed_of
from mimkit.training.distributed import World
from mimkit.training.hardware import available_memory, choose_workers, cores, shared_memory
from mimkit.training.job import Job
from mimkit.training.machine import Machine

MARGIN = 1.5  # workers get slower the more there are: they share disk, caches and memory
MOST_WORKERS = 16
PREFETCH_MIB = 1024.0  # that batches read ahead may take, at most


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was chosen for a run, and what it was chosen by.

    Args:
        workers: data workers.
        prefetch: micro-batches that each of them reads ahead.
        trials: of micro-batches; none where the micro-batch was given.
        read: images per second that one worker reads; None where it was not measured.
        computed: images per second that this process computes, likewise.
    """

    workers: int
    prefetch: int = 2
    trials: Sequence[Trial] = ()
    read: float | None = None
    computed: float | None = None

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
        """What was measured, in a line or two; nothing where nothing was."""
        lines = []
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
    """The job with the micro-batch that trials found, if it was left to them, and how it reads: with as many workers as
    it was asked to, or so that computing does not wait for data.

    Raises:
        ValueError: see `find_micro_batch`.
    """
    trials: list[Trial] = []
    if job.micro_batch == "auto":
        if world.is_main:
            print("trying how many images to compute at once", file=sys.stderr, flush=True)
        sizes = job.micro_batches(world)
        micro_batch, trials = find_micro_batch(job, sizes, device, world, recompute=machine.recompute)
        job = job.with_micro_batch(micro_batch, world)
    if machine.workers is not None:
        return job, Tuning(workers=machine.workers, trials=trials)

    assert isinstance(job.micro_batch, int)
    speeds = [trial.images_per_second for trial in trials if trial.images == job.micro_batch]
    reading = job.reading(world)
    computed = None
    if reading is not None:
        computed = speeds[0] if speeds else speed_of(job, job.micro_batch, device, recompute=machine.recompute)
    if reading is None or computed is None:
        return job, Tuning(workers=choose_workers(None), trials=trials)
    room = min(PREFETCH_MIB, 0.1 * available_memory(), 0.5 * shared_memory())
    needed = computed * (2 if job.compile else 1)  # what is compiled may be twice as fast
    most, fitting = min(MOST_WORKERS, cores()), int(room / reading.mib)
    workers, prefetch = readers(reading.seconds, needed, job.micro_batch, most=most, fitting=fitting)
    read = 1 / fmean(reading.seconds)
    return job, Tuning(workers=workers, prefetch=prefetch, trials=trials, read=read, computed=computed)


def readers(seconds: Sequence[float], computed: float, batch: int, *, most: int, fitting: int) -> tuple[int, int]:
    """Workers that read faster than images are computed, and batches that each is ahead to outlast a slow one.

    Args:
        seconds: that one worker took for each of some images.
        computed: images per second.
        batch: images that are delivered together.
        most: workers.
        fitting: batches that may lie ready.
    """
    workers = max(1, min(math.ceil(MARGIN * computed * fmean(seconds)), most, fitting))
    slow = batch * fmean(seconds) + 3 * math.sqrt(batch) * pstdev(seconds)  # of a thousand batches, about one
    ahead = math.ceil(slow * computed / batch / workers)  # computed meanwhile
    return workers, max(1, min(max(2, ahead), fitting // workers))
