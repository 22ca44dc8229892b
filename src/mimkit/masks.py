"""What is hidden, and how it is drawn.

Shapes: B batch, h w cells of the mask's own grid, K visible cells of a sample.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from mimkit.grids import Grid, grid_for, resample
from mimkit.randomness import random_orders


@dataclass(frozen=True, eq=False)
class Mask:
    """Which cells of an image are hidden; every sample hides the same number, so that shapes are static.

    Args:
        hidden: bool [B, h, w] on the mask's own grid, True = hidden.
        count: hidden cells of each sample. Samplers, which know it, pass it; left out, it is read from `hidden`
            (which waits for the device) and checked.

    Raises:
        ValueError: samples hide different numbers of cells.
    """

    hidden: Tensor
    count: int = field(default=-1)

    def __post_init__(self) -> None:
        if self.count < 0:
            counts = self.hidden.flatten(1).sum(dim=1).unique().tolist()
            if len(counts) != 1:
                raise ValueError(f"every sample must hide the same number of cells, got {counts}")
            object.__setattr__(self, "count", counts[0])

    @property
    def grid(self) -> Grid:
        return self.hidden.shape[1], self.hidden.shape[2]

    def on(self, grid: Grid) -> Tensor:
        """The hidden share of each cell of a nesting grid, float32 [B, h', w']: 0 or 1, or between where coarser."""
        return resample(self.hidden.float(), grid)

    def visible_ids(self, grid: Grid) -> Tensor:
        """Raster positions of the visible cells on this or a finer grid, ascending: int64 [B, K].

        Raises:
            ValueError: the grid is coarser than the mask's, where a cell may be half hidden.
        """
        h, w = self.grid
        if grid[0] < h or grid[1] < w:
            raise ValueError(f"cells of a {grid[0]} x {grid[1]} grid may be half hidden by a mask on {h} x {w} cells")
        cells = grid[0] * grid[1]
        visible = cells - self.count * (cells // (h * w))
        hidden = resample(self.hidden, grid).flatten(1)
        return hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :visible]


class MaskSampler(Protocol):
    """Draws one mask per key; the same keys give the same masks on every device."""

    def sample(self, keys: Tensor, image_size: tuple[int, int], encoder_cell: int) -> Mask: ...

    def hiding(self, ratio: float) -> "MaskSampler":
        """The same sampler with another hidden share."""


@dataclass(frozen=True)
class RandomMask:
    """Cells hidden uniformly at random, afresh for each sample (MAE §3, SimMIM §3.2).

    Keeps floor(N·(1 − ratio)) of N cells: 49 of 196 at 0.75, 14 of 36 at SimMIM's 0.6.

    Args:
        ratio: hidden share, between 0 and 1.
        cell: side of a cell in pixels; None takes the encoder's.

    Raises:
        ValueError: the ratio is outside (0, 1), or leaves nothing visible or nothing hidden.
    """

    ratio: float = 0.75
    cell: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"mask ratio must lie between 0 and 1, got {self.ratio}")

    def hiding(self, ratio: float) -> "RandomMask":
        return replace(self, ratio=ratio)

    def sample(self, keys: Tensor, image_size: tuple[int, int], encoder_cell: int) -> Mask:
        h, w = grid_for(image_size, self.cell or encoder_cell)
        visible = math.floor(h * w * (1 - self.ratio) + 1e-9)  # 10 cells at 0.9 keep one, despite binary fractions
        if not 0 < visible < h * w:
            raise ValueError(f"mask ratio {self.ratio} leaves {visible} of {h * w} cells visible")
        ranks = random_orders(keys, h * w)
        return Mask((ranks >= visible).unflatten(1, (h, w)), count=h * w - visible)
