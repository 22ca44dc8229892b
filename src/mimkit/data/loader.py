"""Batches of views: shuffled without end for training, in order for evaluation.

Every batch is a function of the seed and its number, whatever the number of workers and wherever a run resumed.

Shapes: B batch, C channels, H W pixels.
"""

import atexit
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mimkit.data.decode import BadImage, read_image
from mimkit.data.folder import ImageList
from mimkit.randomness import random_orders, sample_keys
from mimkit.views import CenterCrop, Size, View

EVALUATION_VIEW = CenterCrop()
MOST_BAD_IN_A_ROW = 100
SECONDS_AFTER_SIGTERM = 60


class TooManyBadImages(RuntimeError):
    """One image after the other could not be read."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Views of some images.

    Args:
        images: uint8 [B, C, H, W], contiguous.
        keys: int64 [B], one for each (seed, epoch, image), from which further draws such as masks are made.
        indices: int64 [B], positions in the image list.
        skipped: (path, reason) of each bad image that was met on the way.
    """

    images: Tensor
    keys: Tensor
    indices: Tensor
    skipped: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.indices)

    def inputs(self, device: torch.device | str) -> dict[str, Tensor]:
        """What `Method` is called with, on a device."""
        return {"images": self.images.to(device), "keys": self.keys.to(device)}


@dataclass(frozen=True, eq=False)
class TrainBatches:
    """Random views of all images, shuffled in each epoch; the images that do not fill a last batch wait for the next.

    A batch can come in several equal parts, for steps that accumulate gradients; together they are the same images. A
    bad image is replaced by one that comes soon after its batch in the epoch's order.

    Args:
        images: what to draw from.
        view: makes an array of the size from an image.
        size: (H, W).
        channels: 3 or 1.
        batch_size: images per batch, which is to say per step.
        parts: pieces that a batch comes in.
        seed: of order, views and keys.
        workers: processes that read; 0 reads in this one.

    Raises:
        ValueError: the batch size is below 1 or above the number of images, does not divide into the parts, or another
            value is out of range.
    """

    images: ImageList
    _: KW_ONLY
    view: View
    size: Size
    channels: int = 3
    batch_size: int
    parts: int = 1
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        if self.parts < 1 or self.batch_size % self.parts:
            raise ValueError(f"a batch of {self.batch_size} does not divide into {self.parts} parts")
        if not 1 <= self.batch_size <= len(self.images):
            raise ValueError(f"a batch of {self.batch_size} cannot be drawn from {len(self.images)} images")
        _check(self.channels, self.workers)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images) // self.batch_size

    def starting_at(self, step: int) -> Generator[Batch]:
        """All parts of all batches from global step `step` on, without end. Closing the iterator ends its workers.

        Raises:
            TooManyBadImages: see `part`.
        """
        return _run(self.part, itertools.count(step * self.parts), self.workers)

    def part(self, number: int) -> Batch:
        """One part of a batch, counted over all steps, read in this process.

        Raises:
            TooManyBadImages: 100 candidates in a row, or all images there are, were bad.
        """
        count, views = len(self.images), _Views(self.images, self.view, self.size, self.channels)
        epoch, place = divmod(number, self.steps_per_epoch * self.parts)
        order, size = _order(self.seed, epoch, count), self.batch_size // self.parts
        indices = order[place * size : (place + 1) * size].copy()
        keys = _keys(self.seed, epoch, indices)
        pixels = views.empty(size)
        skipped: dict[str, str] = {}
        for slot in range(size):
            spares = itertools.count(place * size + slot + self.batch_size)
            tries = min(MOST_BAD_IN_A_ROW, count + 1)
            while (bad := views.put(pixels[slot], indices[slot], keys[slot])) is not None:
                skipped[bad.path] = bad.reason
                tries -= 1
                if tries == 0:
                    raise TooManyBadImages(
                        f"{min(MOST_BAD_IN_A_ROW, count)} images in a row cannot be read; the last: {bad}"
                    )
                indices[slot] = order[next(spares) % count]
                keys[slot : slot + 1] = _keys(self.seed, epoch, indices[slot : slot + 1])
        return _batch(pixels, keys, indices, skipped)


def load_images(
    images: ImageList,
    size: Size,
    channels: int = 3,
    *,
    view: View = EVALUATION_VIEW,
    workers: int = 0,
    batch_size: int = 256,
) -> Iterator[Batch]:
    """All good images once, in order, the last batch smaller; bad ones are left out and reported.

    A batch of bad images only has B = 0. Keys are those of seed 0 and epoch 0.

    Raises:
        ValueError: a value out of range.
    """
    if batch_size < 1:
        raise ValueError(f"a batch needs at least 1 image, got {batch_size}")
    _check(channels, workers)
    read = functools.partial(_read_in_order, _Views(images, view, size, channels), batch_size)
    return _run(read, range(-(-len(images) // batch_size)), workers)


@dataclass(frozen=True, eq=False)
class _Views:
    images: ImageList
    view: View
    size: Size
    channels: int

    def empty(self, count: int) -> np.ndarray:
        return np.empty((count, self.channels, *self.size), dtype=np.uint8)

    def put(self, pixels: np.ndarray, index: int | np.int64, key: int | np.int64) -> BadImage | None:
        """Read one image and write its view into [C, H, W], or tell why there is none."""
        path = self.images.path(int(index))
        try:
            image = read_image(path, self.channels)
        except BadImage as error:
            return error
        try:
            view = self.view(image, self.size, np.random.default_rng(int(key) % 2**64))
        except Exception as error:
            error.add_note(f"while making a view of {path}")
            raise
        if view.ndim == 2:
            view = view[:, :, None]
        if view.shape != (*self.size, self.channels):
            raise ValueError(f"the view made {view.shape} of {path}, expected {(*self.size, self.channels)}")
        pixels[:] = view.transpose(2, 0, 1)
        return None


def _read_in_order(views: _Views, batch_size: int, step: int) -> Batch:
    indices = np.arange(step * batch_size, min((step + 1) * batch_size, len(views.images)))
    keys = _keys(0, 0, indices)
    pixels = views.empty(len(indices))
    good: list[int] = []
    skipped: dict[str, str] = {}
    for i in range(len(indices)):
        bad = views.put(pixels[len(good)], indices[i], keys[i])
        if bad is None:
            good.append(i)
        else:
            skipped[bad.path] = bad.reason
    return _batch(pixels[: len(good)], keys[good], indices[good], skipped)


def _batch(pixels: np.ndarray, keys: np.ndarray, indices: np.ndarray, skipped: dict[str, str]) -> Batch:
    skips = list(skipped.items())
    return Batch(torch.from_numpy(pixels), torch.from_numpy(keys), torch.from_numpy(indices), skips)


def _keys(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    return sample_keys(seed, epoch, torch.from_numpy(indices)).numpy()


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The epoch's permutation of range(count); its key is that of image -1, which no view uses."""
    return random_orders(sample_keys(seed, epoch, torch.tensor([-1])), count)[0].numpy()


def _check(channels: int, workers: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"images are read with 1 or 3 channels, got {channels}")
    if workers < 0:
        raise ValueError(f"the number of workers must be 0 or more, got {workers}")


def _run(make: Callable[[int], Batch], steps: Iterable[int], workers: int) -> Generator[Batch]:
    """The batches of the steps, in their order, made here or by worker processes."""
    if workers == 0:
        yield from map(make, steps)
        return
    loader = DataLoader(
        _Steps(make),
        sampler=steps,
        batch_size=None,  # a worker makes a whole batch
        num_workers=workers,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else it draws its workers' seeds from the global one
    )
    batches = iter(loader)
    end = functools.partial(_end_workers, batches)
    atexit.register(end)
    try:
        for batch in batches:
            if isinstance(batch, TooManyBadImages):
                raise batch
            yield batch
    finally:
        atexit.unregister(end)
        end()


def _end_workers(batches: Any) -> None:
    """Dropping the iterator would do as well, but a traceback may keep it."""
    batches._shutdown_workers()
    for worker in batches._workers:
        worker.kill()  # one that is still deep in a batch


class _Steps(Dataset):
    """What a worker runs. Its expected failure travels as a value: torch would bury the message in a traceback."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Batch | TooManyBadImages:
        try:
            return self.make(step)
        except TooManyBadImages as error:
            return error


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata; what matters comes back as `skipped`
    # A signal to the whole process group asks the main process to stop in good order: it still needs its workers then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    if os.name == "posix":
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM) and None)


def _die_with(parent: BaseProcess) -> None:
    """torch looks only at its direct parent, which may be a fork server that lives as long as this process does."""
    parent.join()
    os._exit(1)
