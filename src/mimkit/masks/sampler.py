"""What draws masks, and the small arithmetic that all samplers share."""

import math
from typing import Protocol

import torch
from torch import Tensor

from mimkit.masks.mask import Mask
from mimkit.randomness import scramble


class MaskSampler(Protocol):
    """Draws one mask per key; the same keys give the same masks on every device."""

    def sample(
        self, keys: Tensor, image_size: tuple[int, int], encoder_cell: int, batch_key: Tensor | None = None
    ) -> Mask:
        """One mask for each key, int64 [B]; cells of `encoder_cell` pixels unless the sampler has its own.

        What all samples of a batch share is drawn from the batch's key, int64 [1], the same in all of its parts,
        wherever they are computed. None takes the first of the keys.

        Raises:
            ValueError: the cell does not divide the image, or the grid does not suit the sampler.
        """

    def hiding(self, ratio: float) -> "MaskSampler":
        """The same sampler with another hidden share.

        Raises:
            ValueError: its hidden share is fixed.
        """


def floor(share: float) -> int:
    """The whole part of a product with a ratio: 10 cells at 0.1 are one, despite binary fractions."""
    return math.floor(share + 1e-9)


def random_integers(keys: Tensor, count: int) -> Tensor:
    """Integers uniform in 0 … 2**31 − 1 for each key, independent of its `random_orders`: int64 [B] to [B, count]."""
    streams = scramble(scramble(~keys)[:, None] + torch.arange(count, device=keys.device))
    return streams >> 32 & (1 << 31) - 1


def below(limit: Tensor | int, draws: Tensor) -> Tensor:
    """Integers uniform in 0 … limit − 1 from `random_integers`."""
    return limit * draws >> 31
