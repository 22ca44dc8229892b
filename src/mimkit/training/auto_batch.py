"""Trial steps: which micro-batch fits into memory and is fast.

Trials compute on random inputs, with a copy of the model or in a process of their own, and leave torch's generators as
they were: they do not change what is trained.
"""

import copy
import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.training.blocks import prepare_blocks
from mimkit.training.distributed import World
from mimkit.training.failures import out_of_memory
from mimkit.training.hardware import available_memory, resident
from mimkit.training.job import Job
from mimkit.training.optim import Train
from mimkit.training.precision import autocast, for_training
from mimkit.training.state import State

SPARE = 0.2  # share of the free memory that stays free: for fragmentation, data workers and probes
RISE = 0.03  # relative gain in images per second that is worth more memory
PATIENCE = 30.0  # seconds that trials may take, apart from the first three


@dataclass(frozen=True)
class Trial:
    """Forward and backward passes of so many images at once.

    Args:
        images: at once.
        images_per_second: of the fastest pass.
        mib: peak memory, with weights, gradients, optimizer state and moving averages.
    """

    images: int
    images_per_second: float
    mib: float


@dataclass(frozen=True, eq=False)
class TrialModel:
    """What trial steps compute with.

    Args:
        model: as it is trained, on any device.
        train: the values it is trained with.
        random_inputs: what it is called with, for so many samples.
    """

    model: nn.Module
    train: Train
    random_inputs: Callable[[int], dict[str, Tensor]]


def find_micro_batch(
    job: Job, sizes: Sequence[int], device: torch.device, world: World, *, recompute: bool = False
) -> tuple[int, list[Trial]]:
    """The micro-batch, the same on all ranks, and the trials of this rank.

    On a GPU a copy of the model is tried. On a CPU, where the system kills a process that needs too much memory,
    another process tries, and only sizes that should fit by the memory of smaller ones. Memory is that of the whole
    model, also where training shards it, and blocks are not compiled.

    Args:
        job: with the model as it is trained.
        sizes: to choose from, ascending.
        device: where to compute.
        world: the ranks.
        recompute: see `prepare_blocks`.

    Raises:
        ValueError: the first size does not fit, or the system does not say how much memory there is.
    """
    if device.type == "cpu":
        free = available_memory()
    else:
        free = torch.cuda.mem_get_info(device)[0] / 2**20 if device.type == "cuda" else math.inf
    if free == math.inf:
        raise ValueError(f"--micro-batch auto: nothing tells how much memory {device} has; give a number")
    room = (1 - SPARE) * free
    if device.type == "cpu":
        trials = try_in_subprocess(job, sizes, room, recompute)
    else:
        used = torch.cuda.memory_reserved(device) / 2**20
        with torch.random.fork_rng(devices=[device]):
            copied = TrialModel(trial_copy(job.model, recompute), job.train, job.random_inputs)
            trials = try_sizes(copied, sizes, device, room=room, used=used)
        del copied
        release_memory(device)
    found = world.gather(cheapest(trials).images if trials else 0)
    if not min(found):
        hint = "; the shards of --parallel fsdp need less: give a number" if world.sharded else ""
        raise ValueError(
            f"--micro-batch auto: weights, optimizer state and {sizes[0]} image{'s' * (sizes[0] > 1)} at once need "
            f"more than {room:,.0f} MiB, what is free without the last {SPARE:.0%}{hint}"
        )
    return min(found), trials


def try_in_subprocess(job: Job, sizes: Sequence[int], room: float, recompute: bool) -> list[Trial]:
    """The trials of `try_sizes` on the CPU in a process of its own; none where the system has killed that process.

    Raises:
        RuntimeError: the process failed for another reason.
    """
    request: dict[str, Any] = {"kind": job.kind, "job": job.request(), "sizes": sizes, "room": room}
    request |= {"recompute": recompute, "threads": torch.get_num_threads()}
    # Not by `multiprocessing`, which would run the user's own script again.
    done = subprocess.run(
        [sys.executable, "-m", "mimkit.jobs"],
        input=json.dumps(request),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode > 0:
        raise RuntimeError(f"trial steps failed: {done.stderr}")
    return [] if done.returncode else [Trial(**trial) for trial in json.loads(done.stdout.splitlines()[-1])]


def serve_trials(request: dict[str, Any], make: Callable[[dict[str, Any]], TrialModel]) -> list[Trial]:
    """The other side of `try_in_subprocess`: `make` builds the model from the job's request."""
    torch.set_num_threads(request["threads"])
    used = resident("VmRSS")
    trial_model = make(request["job"])
    prepare_blocks(trial_model.model, recomputed=request["recompute"])
    return try_sizes(trial_model, request["sizes"], torch.device("cpu"), room=request["room"], used=used)


def try_sizes(
    trial_model: TrialModel, sizes: Sequence[int], device: torch.device, *, room: float, used: float
) -> list[Trial]:
    """Trials of ever larger micro-batches, see `search`.

    Args:
        trial_model: its model is modified.
        sizes: ascending.
        device: where to compute.
        room: MiB available.
        used: MiB that this process had taken before it had the model.
    """
    model, train = trial_model.model, trial_model.train
    state: list[State] = []

    def attempt(samples: int) -> Trial | None:
        release_memory(device)
        try:
            if not state:
                state.append(State(for_training(model, device, train.precision), train))
            work = training_pass(model, train, trial_model.random_inputs(samples), device)
            if samples == sizes[0]:
                state[0].update(work(), 0.0)  # creates the optimizer state
            seconds = quickest(work)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                return None
            raise
        return Trial(samples, samples / seconds, peak(device) - used)

    pure = train.precision == "bf16-pure"
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    copies = 3 + (train.ema_decay is not None) + pure  # gradients, AdamW's two moments; moving averages; remainders
    fixed = (megabytes(model.parameters()) + copies * megabytes(trained)) * (0.5 if pure else 1.0)
    return search(attempt, doubling(sizes), room, fixed)


def search(attempt: Callable[[int], Trial | None], sizes: Sequence[int], room: float, fixed: float) -> list[Trial]:
    """Attempts at ever larger sizes, while memory is enough, speed rises within two sizes, and time is left.

    Args:
        attempt: computes so many images at once; None where memory was not enough.
        sizes: each at least twice the one before.
        room: MiB available.
        fixed: MiB that are needed for any number of images.
    """
    trials: list[Trial] = []
    needed = {-1: fixed, 0: fixed}
    taken = spent = 0.0
    for size in sizes:
        if extrapolate(needed, size) > room or (len(trials) > 2 and spent + 2 * taken > PATIENCE):
            break
        started = time.monotonic()
        trial = attempt(size)
        taken = time.monotonic() - started
        spent += taken
        if trial is None or trial.mib > room:
            break
        trials.append(trial)
        needed[size] = trial.mib
        speeds = [trial.images_per_second for trial in trials]
        if len(speeds) > 2 and max(speeds[-2:]) < (1 + RISE) * max(speeds[:-2]):
            break
    return trials


def extrapolate(values: Mapping[int, float], samples: int) -> float:
    """Extrapolate linearly from the values of the last two sizes; the last value if they fall."""
    (before, first), (last, second) = list(values.items())[-2:]
    return second + max(0.0, second - first) / (last - before) * (samples - last)


def cheapest(trials: Sequence[Trial]) -> Trial:
    """The smallest size that is as fast as any, but for what is not worth the memory."""
    most = max(trial.images_per_second for trial in trials)
    return next(trial for trial in trials if (1 + RISE) * trial.images_per_second >= most)


def speed_of(job: Job, micro_batch: int, device: torch.device, *, recompute: bool = False) -> float | None:
    """Samples per second of forward and backward passes; None where they fail: training will raise the error.

    A GPU computes whole micro-batches. A CPU computes 1, 2, 8, 32 ... samples until half a second is over, and the time
    of a micro-batch is extrapolated linearly from the last two; the first call is a warm-up and not used.

    Args:
        job: with the model as it is trained, of which a copy computes.
        micro_batch: samples at once.
        device: where to compute.
        recompute: see `prepare_blocks`.
    """

    def seconds_of(samples: int, calls: int | None = None) -> float:
        return quickest(training_pass(model, job.train, job.random_inputs(samples), device), calls)

    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model = for_training(trial_copy(job.model, recompute), device, job.train.precision)
            if device.type != "cpu":
                return micro_batch / seconds_of(micro_batch)
            first = seconds_of(1, calls=1)
            spent, samples, seconds = first, 2, {0: 0.0}
            while samples <= micro_batch and (spent < 0.5 or (spent < 1 and len(seconds) < 3)):
                seconds[samples] = seconds_of(samples, calls=1)
                spent += seconds[samples]
                samples *= 4
            return micro_batch / extrapolate(seconds if len(seconds) > 1 else {0: 0.0, 1: first}, micro_batch)
    except Exception:
        return None
    finally:
        release_memory(device)


def trial_copy(model: nn.Module, recompute: bool) -> nn.Module:
    """A copy for trials, its blocks prepared but not compiled."""
    copied = copy.deepcopy(model)
    prepare_blocks(copied, recomputed=recompute)
    return copied


def training_pass(
    model: nn.Module, train: Train, inputs: dict[str, Tensor], device: torch.device
) -> Callable[[], Tensor]:
    """A function that runs a forward and backward pass and returns the loss. Gradients accumulate.

    Args:
        model: on its device, in training mode.
        train: for the precision.
        inputs: what it is called with.
        device: the model's.
    """
    inputs = {name: value.to(device) for name, value in inputs.items()}

    def work() -> Tensor:
        with autocast(device, train.precision):
            loss: Tensor = model(**inputs).loss
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return loss.detach()

    return work


def quickest(work: Callable[[], object], calls: int | None = None) -> float:
    """Seconds of the fastest of `calls` calls, or of as many as take 0.3 seconds together."""
    taken: list[float] = []
    while len(taken) < calls if calls else sum(taken) < 0.3:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def doubling(sizes: Sequence[int]) -> list[int]:
    """Of ascending sizes the first, and each that is at least twice the one kept before."""
    found: list[int] = []
    for size in sizes:
        if not found or size >= 2 * found[-1]:
            found.append(size)
    return found


def megabytes(parameters: Iterable[Tensor]) -> float:
    """MiB of some tensors."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 2**20


def peak(device: torch.device) -> float:
    """Peak memory of this process in MiB: on a GPU since `release_memory`, on a CPU since it started."""
    return torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else resident("VmHWM")


def release_memory(device: torch.device) -> None:
    """Give back what a GPU's allocator caches, and reset its record of the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
