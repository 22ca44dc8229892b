"""The base of all mask samplers, and arithmetic that they share."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mimkit.grids import Grid, grid_for
from mimkit.masks.mask import Mask
from mimkit.randomness import scramble


class MaskSampler(ABC):
    """Draws one mask per key; the same keys give the same masks on every device.

    Attributes:
        cell: side of a cell in pixels; None takes the encoder's.
    """

    cell: int | None = None

    @property
    def mask_token(self) -> bool:
        """Whether its masks replace tokens, for which the encoder needs a mask token."""
        return False

    @abstractmethod
    def sample(self, keys: Tensor, grid: Grid, batch_key: Tensor | None = None) -> Mask:
        """One mask for each key.

        Args:
            keys: int64 [B].
            grid: (h, w) cells.
            batch_key: int64 [1], for what all samples of a batch share: the same in all its micro-batches, on
                all ranks. None takes the first of the keys.

        Raises:
            ValueError: the grid does not suit the sampler.
        """

    def grid(self, image_size: tuple[int, int], encoder_cell: int) -> Grid:
        """The grid of its masks over images of (H, W) pixels, for an encoder with cells of that many pixels.

        Raises:
            ValueError: the cell does not divide the image.
        """
        return grid_for(image_size, self.cell or encoder_cell)


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
