"""Randomness without state: every draw is a function of a key, the key of (seed, epoch, image).

There is nothing to save for a resume, and nothing depends on the device, the batch or the number of processes.
"""

import torch
from torch import Tensor

# Constants of SplitMix64 (Steele, Lea, Flood 2014), written as signed 64-bit integers.
_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def scramble(values: Tensor) -> Tensor:
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
