"""In which order an epoch takes the images: a function of seed, epoch and position.

Shapes: B positions, S shards, W windows.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch

from mimkit.data.samples import Examples
from mimkit.randomness import sample_keys, scramble, shuffled

SHARDS_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Order:
    """The permutation of all images in each epoch, evaluated on demand: nothing is stored per image.

    Images in shards are shuffled within windows of `SHARDS_AT_ONCE` shards, and the shards anew for each epoch, so that
    only a few files are read at a time.

    Args:
        limits: int64 [S + 1], where each shard's images begin in the list, and the last end. Without shards S = 1.
    """

    limits: np.ndarray

    @classmethod
    def of(cls, examples: Examples) -> "Order":
        """The order of some examples."""
        shards = examples.shards
        if shards is None:
            return cls(np.array([0, len(examples)]))
        return cls(np.concatenate([[0], np.flatnonzero(np.diff(shards)) + 1, [len(examples)]]))

    def at(self, seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The images at some positions of an epoch: int64 [B] to int64 [B]."""
        order = _shard_order(self, seed, epoch)
        window = np.searchsorted(order.windows, positions, side="right") - 1
        start, end = order.windows[window], order.windows[window + 1]
        positions = start + shuffled(scramble(order.key + window), positions - start, end - start)
        number = np.searchsorted(order.ends, positions, side="right")
        return self.limits[order.shards[number] + 1] - (order.ends[number] - positions)

    def windows(self, seed: int, epoch: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of the windows that the positions from `first` to below `end` lie in, and of the next window."""
        order = _shard_order(self, seed, epoch)
        first_window = np.searchsorted(order.windows, first, side="right") - 1
        end_window = np.searchsorted(order.windows, end, side="left")
        current = order.shards[first_window * SHARDS_AT_ONCE : end_window * SHARDS_AT_ONCE]
        if end_window == len(order.windows) - 1:  # the last window of its epoch
            return current, _shard_order(self, seed, epoch + 1).shards[:SHARDS_AT_ONCE]
        return current, order.shards[end_window * SHARDS_AT_ONCE : (end_window + 1) * SHARDS_AT_ONCE]


@dataclass(frozen=True, eq=False)
class _ShardOrder:
    """In which order an epoch reads the shards.

    Args:
        key: int64 [1], what the epoch is shuffled by: the key of image -1, which no view uses.
        shards: int64 [S], the shards in order.
        ends: int64 [S], the position where each of them has ended.
        windows: int64 [W + 1], the position where each window of `SHARDS_AT_ONCE` shards begins, and the last ends.
    """

    key: np.ndarray
    shards: np.ndarray
    ends: np.ndarray
    windows: np.ndarray


@functools.lru_cache(maxsize=2)
def _shard_order(order: Order, seed: int, epoch: int) -> _ShardOrder:
    key = sample_keys(seed, epoch, torch.tensor([-1])).numpy()
    count = len(order.limits) - 1
    shards = shuffled(~key, np.arange(count), np.array([count]))
    ends = np.diff(order.limits)[shards].cumsum()
    windows = np.concatenate([[0], ends[SHARDS_AT_ONCE - 1 : -1 : SHARDS_AT_ONCE], ends[-1:]])
    return _ShardOrder(key, shards, ends, windows)
