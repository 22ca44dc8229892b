"""In which order a pass takes the images: a function of seed, pass and place.

Shapes: B places, S shards.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch

from mimkit.data.images import ImageList
from mimkit.randomness import sample_keys, scramble, shuffled

SHARDS_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Order:
    """The permutation of all images in each pass, evaluated where it is asked for: nothing is kept for each image.

    Images in shards are shuffled within windows of `SHARDS_AT_ONCE` shards, dealt anew for each pass, so that a pass
    reads a few files at a time.

    Args:
        limits: int64 [S + 1], where each shard's images begin in the list, and the last end. Without shards S = 1.
    """

    limits: np.ndarray

    @classmethod
    def of(cls, images: ImageList) -> "Order":
        shards = images.shards
        if shards is None:
            return cls(np.array([0, len(images)]))
        return cls(np.concatenate([[0], np.flatnonzero(np.diff(shards)) + 1, [len(images)]]))

    def at(self, seed: int, epoch: int, places: np.ndarray) -> np.ndarray:
        """The images at some places of a pass: int64 [B] to int64 [B]."""
        key, shards, ends, windows = _dealt(self, seed, epoch)
        window = np.searchsorted(windows, places, side="right") - 1
        start = windows[window]
        places = start + shuffled(scramble(key + window), places - start, windows[window + 1] - start)
        number = np.searchsorted(ends, places, side="right")
        return self.limits[shards[number] + 1] - (ends[number] - places)

    def windows(self, seed: int, epoch: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of the windows that some places of a pass lie in, and of the window that comes next."""
        _, shards, _, limits = _dealt(self, seed, epoch)
        started = np.searchsorted(limits, first, side="right") - 1
        ended = np.searchsorted(limits, end, side="left")
        now = shards[started * SHARDS_AT_ONCE : ended * SHARDS_AT_ONCE]
        if ended == len(limits) - 1:  # a pass ends; the next one deals anew
            return now, _dealt(self, seed, epoch + 1)[1][:SHARDS_AT_ONCE]
        return now, shards[ended * SHARDS_AT_ONCE : (ended + 1) * SHARDS_AT_ONCE]


@functools.lru_cache(maxsize=2)
def _dealt(order: Order, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A pass's key [1], which is that of image -1, which no view uses; its shards [S] in the order dealt; where each
    has ended [S]; where each window of `SHARDS_AT_ONCE` begins, and the last ends."""
    key = sample_keys(seed, epoch, torch.tensor([-1])).numpy()
    count = len(order.limits) - 1
    shards = shuffled(~key, np.arange(count), np.array([count]))
    ends = np.diff(order.limits)[shards].cumsum()
    windows = np.concatenate([[0], ends[SHARDS_AT_ONCE - 1 : -1 : SHARDS_AT_ONCE], ends[-1:]])
    return key, shards, ends, windows
