"""Trial steps: how many images are computed at once so that they fit into memory and are computed fast.

Trials compute on random bytes, with a copy of the method or in a process of their own, and leave torch's generators as
they were: nothing that is trained notices.
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
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mimkit.compose import compose
from mimkit.efficiency import tune
from mimkit.method import Method
from mimkit.randomness import scramble
from mimkit.recipes import Recipe, build
from mimkit.settings import Settings
from mimkit.training.blocks import prepare_blocks
from mimkit.training.distributed import World
from mimkit.training.failures import out_of_memory
from mimkit.training.hardware import available_memory, resident
from mimkit.training.optim import Train
from mimkit.training.precision import autocast, for_training
from mimkit.training.state import State

SPARE = 0.2  # share of the free memory that stays free: for fragments, readers and probes
RISE = 0.03  # by which share more images per second must be computed to be worth more memory
PATIENCE = 30.0  # seconds that trials may take, but for the first three


@dataclass(frozen=True)
class Trial:
    """Forward and backward passes of so many images at once.

    Args:
        images: at once.
        images_per_second: of the quickest pass.
        mib: memory at its peak, with weights, gradients, moments and averages.
    """

    images: int
    images_per_second: float
    mib: float


def find_micro_batch(
    name: str,
    settings: Settings,
    recipe: Recipe,
    method: Method,
    sizes: Sequence[int],
    device: torch.device,
    world: World,
    *,
    recomputed: bool = False,
) -> tuple[int, list[Trial]]:
    """How many images each process should compute at once, the same for all, and what this one has tried.

    A GPU is tried with a copy of the method. On a CPU, where a process is killed for want of memory, another process
    tries, and only what smaller sizes let expect to fit. Memory is that of the whole model, also where training keeps
    shares of it, and blocks are not compiled.

    Args:
        name: of the recipe, as `compose` takes it.
        settings: what it was composed with.
        recipe: as it is trained.
        method: what was built from it.
        sizes: to choose from, rising.
        device: where to compute.
        world: who shares each batch.
        recomputed: see `prepare_blocks`.

    Raises:
        ValueError: the first size does not fit, or the system does not tell how much memory there is.
    """
    if device.type == "cpu":
        free = available_memory()
    else:
        free = torch.cuda.mem_get_info(device)[0] / 2**20 if device.type == "cuda" else math.inf
    if free == math.inf:
        raise ValueError(f"--micro-batch auto: nothing tells how much memory {device} has; give a number")
    room = (1 - SPARE) * free
    if device.type == "cpu":
        trials = tried_elsewhere(name, settings, recipe.train, sizes, room, recomputed)
    else:
        used = torch.cuda.memory_reserved(device) / 2**20
        with torch.random.fork_rng(devices=[device]):
            trials = tried(a_copy(method, recomputed), recipe, sizes, device, room=room, used=used)
        forget(device)
    found = world.gather(cheapest(trials).images if trials else 0)
    if not min(found):
        hint = "; the shares of --parallel fsdp need less: give a number" if world.sharded else ""
        raise ValueError(
            f"--micro-batch auto: weights, moments and {sizes[0]} image{'s' * (sizes[0] > 1)} at once need more than "
            f"{room:,.0f} MiB, what is free without the last {SPARE:.0%}{hint}"
        )
    return min(found), trials


def tried_elsewhere(
    name: str, settings: Settings, values: Train, sizes: Sequence[int], room: float, recomputed: bool
) -> list[Trial]:
    """What `tried` finds on the CPU in a process of its own; nothing where the system has killed that one.

    Raises:
        RuntimeError: it failed for another reason.
    """
    request: dict[str, Any] = {"name": name, "settings": settings.to_json(), "train": asdict(values)}
    request |= {"sizes": sizes, "room": room, "recomputed": recomputed, "threads": torch.get_num_threads()}
    # Not by `multiprocessing`, which would run the user's own script again.
    done = subprocess.run(
        [sys.executable, "-m", "mimkit.training.auto_batch"],
        input=json.dumps(request),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode > 0:
        raise RuntimeError(f"trial steps failed: {done.stderr}")
    return [] if done.returncode else [Trial(**trial) for trial in json.loads(done.stdout.splitlines()[-1])]


def answer(request: dict[str, Any]) -> list[Trial]:
    """The other side of `tried_elsewhere`."""
    torch.set_num_threads(request["threads"])
    cpu, used = torch.device("cpu"), resident("VmRSS")
    values = Train(**request["train"])
    recipe = replace(compose(request["name"], Settings.from_json(request["settings"])), train=values)
    method = build(recipe)
    tune(method, cpu, values.precision)
    prepare_blocks(method, recomputed=request["recomputed"])
    return tried(method, recipe, request["sizes"], cpu, room=request["room"], used=used)


def tried(
    method: Method, recipe: Recipe, sizes: Sequence[int], device: torch.device, *, room: float, used: float
) -> list[Trial]:
    """Trials of ever larger micro-batches, see `search`; the method is used up.

    Args:
        method: goes to the device.
        recipe: what it was built from.
        sizes: rising.
        device: where to compute.
        room: MiB that there are.
        used: MiB that this process had taken before the method was there.
    """
    state: list[State] = []

    def attempt(images: int) -> Trial | None:
        forget(device)
        try:
            if not state:
                state.append(State(for_training(method, device, recipe.train.precision), recipe.train))
            work = a_pass(method, recipe, images, device)
            if images == sizes[0]:
                state[0].update(work(), 0.0)  # makes the moments
            seconds = quickest(work)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                return None
            raise
        return Trial(images, images / seconds, peak(device) - used)

    pure = recipe.train.precision == "bf16-pure"
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    copies = 3 + (recipe.train.ema is not None) + pure  # gradients, two moments; averages; remainders
    fixed = (megabytes(method.parameters()) + copies * megabytes(trained)) * (0.5 if pure else 1.0)
    return search(attempt, doubling(sizes), room, fixed)


def search(attempt: Callable[[int], Trial | None], sizes: Sequence[int], room: float, fixed: float) -> list[Trial]:
    """Attempts at ever larger sizes, while memory is enough, speed rises within two sizes, and patience lasts.

    Args:
        attempt: computes so many images at once; None where memory was not enough.
        sizes: each at least twice the one before.
        room: MiB that there are.
        fixed: MiB that are needed however few images there are.
    """
    trials: list[Trial] = []
    needed = {-1: fixed, 0: fixed}
    taken = spent = 0.0
    for size in sizes:
        if on_a_line(needed, size) > room or (len(trials) > 2 and spent + 2 * taken > PATIENCE):
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


def on_a_line(values: Mapping[int, float], images: int) -> float:
    """A value for more images, on the line through the last two that are known, or as the last if they fall."""
    (before, first), (last, second) = list(values.items())[-2:]
    return second + max(0.0, second - first) / (last - before) * (images - last)


def cheapest(trials: Sequence[Trial]) -> Trial:
    """The smallest size that is as fast as any, but for what is not worth the memory."""
    most = max(trial.images_per_second for trial in trials)
    return next(trial for trial in trials if (1 + RISE) * trial.images_per_second >= most)


def speed_of(method: Method, recipe: Recipe, micro_batch: int, device: torch.device) -> float | None:
    """Images per second of forward and backward passes; None where they fail, which training will explain.

    A GPU computes whole micro-batches. A CPU computes 1, 2, 8, 32 ... images until half a second is over; a micro-batch
    takes as long as the line through the last two says, without the first, which takes longer for being the first.

    Args:
        method: is used up.
        recipe: what it was built from.
        micro_batch: images at once.
        device: where to compute.
    """
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for_training(method, device, recipe.train.precision)
            if device.type != "cpu":
                return micro_batch / quickest(a_pass(method, recipe, micro_batch, device))
            first = quickest(a_pass(method, recipe, 1, device), calls=1)
            spent, images, seconds = first, 2, {0: 0.0}
            while images <= micro_batch and (spent < 0.5 or (spent < 1 and len(seconds) < 3)):
                seconds[images] = quickest(a_pass(method, recipe, images, device), calls=1)
                spent += seconds[images]
                images *= 4
            return micro_batch / on_a_line(seconds if len(seconds) > 1 else {0: 0.0, 1: first}, micro_batch)
    except Exception:
        return None
    finally:
        forget(device)


def a_copy(method: Method, recomputed: bool) -> Method:
    """A copy to try, computed as the method will be but for compiling."""
    copied = copy.deepcopy(method)
    prepare_blocks(copied, recomputed=recomputed)
    return copied


def a_pass(method: Method, recipe: Recipe, images: int, device: torch.device) -> Callable[[], Tensor]:
    """A forward and backward pass over random bytes, which gives the loss. Gradients add up, as in an accumulated step.

    Args:
        method: on its device, in training mode.
        recipe: what it was built from.
        images: at once.
        device: the method's.
    """
    drawn = torch.Generator().manual_seed(0)
    shape = (images, recipe.channels, *recipe.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=drawn).to(device)
    keys = scramble(torch.arange(images)).to(device)

    def work() -> Tensor:
        with autocast(device, recipe.train.precision):
            loss: Tensor = method(pixels, keys=keys).loss
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return loss.detach()

    return work


def quickest(work: Callable[[], object], calls: int | None = None) -> float:
    """Seconds of the quickest of some calls, or of as many as take 0.3 seconds together."""
    taken: list[float] = []
    while len(taken) < calls if calls else sum(taken) < 0.3:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def divisors(share: int, repeats: int) -> list[int]:
    """The micro-batches that a process's share of a batch can be cut into, of all views of so many images each."""
    return [size for size in range(repeats, share + 1, repeats) if share % size == 0]


def doubling(sizes: Sequence[int]) -> list[int]:
    """Of rising sizes the first, and each that is at least twice the one before."""
    found: list[int] = []
    for size in sizes:
        if not found or size >= 2 * found[-1]:
            found.append(size)
    return found


def megabytes(parameters: Iterable[Tensor]) -> float:
    """MiB of some tensors."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 2**20


def peak(device: torch.device) -> float:
    """MiB that this process needed at most: on a GPU since `forget`, on a CPU ever."""
    return torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else resident("VmHWM")


def forget(device: torch.device) -> None:
    """Give back what a GPU's allocator keeps for later, and its record of the most it had."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


if __name__ == "__main__":
    print(json.dumps([asdict(trial) for trial in answer(json.load(sys.stdin))]))
