"""A mask: whole columns of cells, as where a scanner or a satellite loses lines.

Shapes: B batch, h w cells.
"""

from dataclasses import dataclass

from torch import Tensor

from mimkit.grids import Grid
from mimkit.masks.mask import Mask
from mimkit.masks.sampler import MaskSampler, floor
from mimkit.randomness import random_orders


@dataclass(frozen=True)
class StripeMask(MaskSampler):
    """Columns of cells hidden at random, afresh for each sample.

    Args:
        ratio: hidden share of the columns, rounded down.
        cell: side of a cell in pixels; None takes the encoder's.

    Raises:
        ValueError: the ratio hides no column, or all of them.
    """

    ratio: float = 0.5
    cell: int | None = None

    def sample(self, keys: Tensor, grid: Grid, batch_key: Tensor | None = None) -> Mask:
        h, w = grid
        columns = floor(w * self.ratio)
        if not 0 < columns < w:
            raise ValueError(f"mask ratio {self.ratio} hides {columns} of {w} columns")
        hidden = random_orders(keys, w) < columns
        return Mask(hidden[:, None].expand(-1, h, -1), columns * h)
