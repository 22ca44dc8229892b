"""Cells hidden evenly: one of every 2 x 2 keeps its place.

Shapes: B batch, h w cells of the mask's own grid, N = h·w.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mimkit.grids import Grid
from mimkit.masks.mask import Mask
from mimkit.masks.sampler import MaskSampler, below, floor, random_integers
from mimkit.randomness import random_orders


@dataclass(frozen=True)
class UniformMask(MaskSampler):
    """One cell of every 2 x 2 keeps its place, and a share of those is replaced by the mask token (UM-MAE).

    Args:
        secondary: share of the kept cells that is replaced, rounded down: 12 of 49 at 0.25. They are hidden too.
        cell: side of a cell in pixels; None takes the encoder's.

    Raises:
        ValueError: the share is outside [0, 1), or above 0 but replaces none; a side of the grid is odd.
    """

    secondary: float = 0.25
    cell: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.secondary < 1:
            raise ValueError(f"secondary share must be at least 0 and below 1, got {self.secondary}")

    @property
    def mask_token(self) -> bool:
        return self.secondary > 0

    def sample(self, keys: Tensor, grid: Grid, batch_key: Tensor | None = None) -> Mask:
        h, w = grid
        if h % 2 or w % 2:
            raise ValueError(f"a uniform mask keeps one of 2 x 2 cells, which a grid of {h} x {w} cannot be cut into")
        squares = h * w // 4
        replaced_count = floor(squares * self.secondary)
        if self.secondary > 0 and replaced_count == 0:
            raise ValueError(f"secondary share {self.secondary} replaces none of {squares} kept cells")
        kept = below(4, random_integers(keys, squares))
        corners = torch.arange(4, device=keys.device)
        chosen = from_squares(kept[:, :, None] == corners, (h, w))
        is_replaced = random_orders(keys, squares)[:, :, None] < replaced_count
        replaced = chosen & from_squares(is_replaced.expand(-1, -1, 4), (h, w))
        return Mask(
            ~chosen | replaced,
            h * w - squares + replaced_count,
            replaced=replaced if replaced_count else None,
            replaced_count=replaced_count,
        )


def from_squares(cells: Tensor, grid: Grid) -> Tensor:
    """[B, N/4, 4], squares of 2 x 2 cells in raster order and cells in them, to [B, h, w]."""
    h, w = grid
    return cells.reshape(-1, h // 2, w // 2, 2, 2).transpose(2, 3).reshape(-1, h, w)
