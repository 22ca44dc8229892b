"""Randomness without state: every draw is a function of a key, the key of (seed, epoch, image).

There is nothing to save for a resume, and nothing depends on the device, the batch or the number of processes.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

# Constants of SplitMix64 (Steele, Lea, Flood 2014), written as signed 64-bit integers.
_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15

# With these many rounds the permutations of three and four items are equally likely within 1 in 10,000; more items
# mix faster.
_ROUNDS = 16

Integers = TypeVar("Integers", Tensor, np.ndarray)


def scramble(values: Integers) -> Integers:
    """SplitMix64 on int64: neighbouring integers become independent-looking ones, alike on every device."""
    values = values + _GOLDEN
    values = (values ^ (values >> 30 & (1 << 34) - 1)) * _MIX_1
    values = (values ^ (values >> 27 & (1 << 37) - 1)) * _MIX_2
    return values ^ (values >> 31 & (1 << 33) - 1)


def sample_keys(seed: int, epoch: int, images: Tensor) -> Tensor:
    """One key for each image number of an epoch: int64 [B] to int64 [B]."""
    return scramble(scramble(scramble(torch.tensor(seed)) + epoch) + images)


def random_orders(keys: Tensor, count: int) -> Tensor:
    """A random permutation of range(count) for each key: int64 [B] to int64 [B, count]."""
    return scramble(scramble(keys)[:, None] + _GOLDEN * torch.arange(count, device=keys.device)).argsort(stable=True)


def shuffled(keys: np.ndarray, places: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The values at some places of random permutations, without computing the rest: int64 [B] each, may broadcast.

    Key k's permutation of range(n) has the same value at a place whatever other places are computed; so the cost is
    that of the batch, not of the data set. It is a Feistel network on the smallest square of n numbers or more, applied
    again to results beyond n, which are less than 2 / sqrt(n) of all.
    """
    keys, places, counts = np.broadcast_arrays(keys, places, counts)
    values, beyond = places.copy(), np.ones(places.shape, dtype=bool)
    while beyond.any():
        values[beyond] = _network(keys[beyond], values[beyond], np.ceil(np.sqrt(counts[beyond])).astype(np.int64))
        beyond[beyond] = values[beyond] >= counts[beyond]
    return values


def _network(keys: np.ndarray, values: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """A permutation of range(side * side)."""
    left, right = np.divmod(values, sides)
    for _ in range(_ROUNDS):
        keys = scramble(keys)
        left, right = right, (left + (scramble(keys + right) >> 1)) % sides
    return left * sides + right


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Inside, the global generators of torch (on the CPU), NumPy and Python are seeded from `rng`; after,
    they are as they were.

    For transforms that draw from these, such as torchvision's, in a view of one's own.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seeds = rng.integers(2**32, size=3).tolist()
    try:
        torch.default_generator.manual_seed(seeds[0])
        np.random.seed(seeds[1])
        random.seed(seeds[2])
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
