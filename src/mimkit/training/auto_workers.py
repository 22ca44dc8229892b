"""What a run finds out before it starts: how much it computes at once, how many processes read, how far ahead.

None of this changes what is trained: micro-batches add up to the same batch, and batches are the same however many
processes read them.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import torch

from mimkit.settings import Machine
from mimkit.training.auto_batch import Trial, a_copy, divisors, find_micro_batch, speed_of
from mimkit.training.distributed import World
from mimkit.training.hardware import available_memory, choose_workers, cores, shared_memory

if TYPE_CHECKING:
    from mimkit.plan import Plan

MARGIN = 1.5  # readers get slower the more there are: they share disk, caches and memory
MOST_WORKERS = 16
PIXELS = 1024.0  # MiB that batches read ahead may take, at most


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was chosen for a run, and what it was chosen by.

    Args:
        workers: processes that read.
        prefetch: micro-batches that each of them reads ahead.
        trials: of micro-batches; none where the micro-batch was given.
        read: images per second that one process reads; None where it was not measured.
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

    def in_words(self) -> list[str]:
        """What was measured, in a line or two; nothing where nothing was."""
        lines = []
        if self.trials:
            tried = ", ".join(f"{t.images}: {t.images_per_second:.3g} in {t.mib:,.0f} MiB" for t in self.trials)
            lines.append(f"trials, images/s by images at once: {tried}")
        if self.read is not None and self.computed is not None:
            short = "" if self.workers * self.read > self.computed else "; computing will wait for images"
            lines.append(
                f"reading: {self.workers} process{'es' * (self.workers > 1)}, {self.prefetch} batches ahead each, as "
                f"one reads {self.read:.3g} images/s and {self.computed:.3g} are computed{short}"
            )
        return lines


def tuned(request: "Plan", machine: Machine, device: torch.device, world: World) -> "tuple[Plan, Tuning]":
    """The request with the micro-batch that trials found, if it was left to them, and how it reads: with as many
    processes as it was asked to, or so that computing does not wait for images.

    Raises:
        ValueError: see `find_micro_batch`.
    """
    trials: list[Trial] = []
    if request.settings.micro_batch == "auto":
        share = request.recipe.train.batch_size // world.size
        if world.leads:
            print("trying how many images to compute at once", file=sys.stderr, flush=True)
        micro_batch, trials = find_micro_batch(
            request.name,
            request.settings,
            request.recipe,
            request.method,
            divisors(share, request.settings.repeats),
            device,
            world,
            recomputed=machine.recompute,
        )
        request = replace(
            request, settings=replace(request.settings, micro_batch=micro_batch), parts=share // micro_batch
        )
    if machine.workers is not None:
        return request, Tuning(workers=machine.workers, trials=trials)

    batches = request.batches(0, world)
    speeds = [trial.images_per_second for trial in trials if trial.images == batches.micro_batch]
    computed = (
        speeds[0]
        if speeds
        else speed_of(a_copy(request.method, machine.recompute), request.recipe, batches.micro_batch, device)
    )
    seconds = batches.reading_times()
    if computed is None or not seconds:
        return request, Tuning(workers=choose_workers(None), trials=trials)
    each = [taken / batches.repeats for taken in seconds]
    mib = batches.micro_batch * batches.channels * math.prod(batches.size) / 2**20
    room = min(PIXELS, 0.1 * available_memory(), 0.5 * shared_memory())
    needed = computed * (2 if request.settings.compile else 1)  # what is compiled may be twice as fast
    workers, prefetch = readers(
        each, needed, batches.micro_batch, most=min(MOST_WORKERS, cores()), fitting=int(room / mib)
    )
    return request, Tuning(workers=workers, prefetch=prefetch, trials=trials, read=1 / fmean(each), computed=computed)


def readers(seconds: Sequence[float], computed: float, batch: int, *, most: int, fitting: int) -> tuple[int, int]:
    """Processes that read faster than images are computed, and batches that each is ahead to outlast a slow one.

    Args:
        seconds: that one process took for each of some images.
        computed: images per second.
        batch: images that are delivered together.
        most: processes.
        fitting: batches that may lie ready.
    """
    workers = max(1, min(math.ceil(MARGIN * computed * fmean(seconds)), most, fitting))
    slow = batch * fmean(seconds) + 3 * math.sqrt(batch) * pstdev(seconds)  # of a thousand batches, about one
    ahead = math.ceil(slow * computed / batch / workers)  # computed meanwhile
    return workers, max(1, min(max(2, ahead), fitting // workers))
