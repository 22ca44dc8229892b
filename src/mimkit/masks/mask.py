"""What is hidden.

Shapes: B batch, h w cells of the mask's own grid, N = h·w, K cells present of a sample, S scored ones.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mimkit.grids import Grid, resample


@dataclass(frozen=True, eq=False)
class Mask:
    """Which cells of an image are hidden; every sample hides the same number, so that shapes are static.

    Samplers, which know the counts, pass them. A count left out is read from its cells, which waits for the device,
    and the cells are checked.

    Args:
        hidden: bool [B, h, w] on the mask's own grid, True = hidden: the encoder may not see the cell's pixels.
        count: hidden cells of each sample.
        replaced: bool [B, h, w], of the hidden cells those that keep their place among the encoder's tokens, as mask
            tokens (UM-MAE's secondary masking). None: the encoder decides for all alike.
        replaced_count: replaced cells of each sample.
        scored: bool [B, h, w], of the hidden cells those that the loss counts (CrossMAE). None: all.
        scored_count: cells of each sample that the loss counts.
        shared: all samples have the same mask (GreenMIM).
        copies: rows for each image, one after another: rows i·copies … i·copies + copies − 1 are image i's
            (FastConvMAE). B counts rows.

    Raises:
        ValueError: shapes differ, the rows are no multiple of the copies; or, of cells whose count is read, samples
            have different numbers, or some that must be hidden are not.
    """

    hidden: Tensor
    count: int = field(default=-1)
    replaced: Tensor | None = None
    replaced_count: int = field(default=-1)
    scored: Tensor | None = None
    scored_count: int = field(default=-1)
    shared: bool = False
    copies: int = 1

    def __post_init__(self) -> None:
        if len(self.hidden) % self.copies:
            raise ValueError(f"{len(self.hidden)} rows of a mask are no multiple of its {self.copies} copies")
        if self.count < 0:
            object.__setattr__(self, "count", same_count(self.hidden, "hide"))
        for name, verb, default in (("replaced", "replace", 0), ("scored", "score", self.count)):
            cells, count = getattr(self, name), getattr(self, f"{name}_count")
            if cells is None:
                count = default
            elif cells.shape != self.hidden.shape:
                raise ValueError(f"{name} cells of shape {[*cells.shape]} for hidden ones of {[*self.hidden.shape]}")
            elif count < 0:
                count = same_count(cells, verb)
                if (cells & ~self.hidden).any():
                    raise ValueError(f"{name} cells must be hidden ones")
            object.__setattr__(self, f"{name}_count", count)

    @property
    def grid(self) -> Grid:
        return self.hidden.shape[1], self.hidden.shape[2]

    def on(self, grid: Grid) -> Tensor:
        """The hidden share of each cell of a nesting grid, float32 [B, h', w']: 0 or 1, or between where coarser."""
        return resample(self.hidden.float(), grid)

    def weights(self, grid: Grid) -> Tensor:
        """What each cell of a nesting grid weighs in the loss, float32 [B, h', w']: its scored share."""
        return self.on(grid) if self.scored is None else resample(self.scored.float(), grid)

    def visible_ids(self, grid: Grid) -> Tensor:
        """Raster positions of the cells present on this or a finer grid, ascending: int64 [B, K].

        Present are the visible cells and the replaced ones.

        Raises:
            ValueError: the grid is coarser than the mask's, where a cell may be half hidden.
        """
        absent = self.hidden if self.replaced is None else self.hidden & ~self.replaced
        return self._ids(~absent, math.prod(self.grid) - self.count + self.replaced_count, grid)

    def scored_ids(self, grid: Grid) -> Tensor:
        """Raster positions of the cells that the loss counts on this or a finer grid, ascending: int64 [B, S].

        Raises:
            ValueError: the grid is coarser than the mask's.
        """
        return self._ids(self.hidden if self.scored is None else self.scored, self.scored_count, grid)

    def replaced_on(self, grid: Grid) -> Tensor | None:
        """The replaced cells on this or a finer grid, bool [B, h', w'], or None where no cell is.

        Raises:
            ValueError: the grid is coarser than the mask's.
        """
        self._refuse_coarser(grid)
        return None if self.replaced is None else resample(self.replaced, grid)

    def scoring_all(self) -> "Mask":
        """The same mask, with all hidden cells in the loss."""
        return replace(self, scored=None, scored_count=-1)

    def _ids(self, cells: Tensor, count: int, grid: Grid) -> Tensor:
        """Where `count` chosen cells of each sample lie on this or a finer grid."""
        self._refuse_coarser(grid)
        chosen = resample(cells, grid).flatten(1)
        count *= math.prod(grid) // math.prod(self.grid)
        return (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]

    def _refuse_coarser(self, grid: Grid) -> None:
        h, w = self.grid
        if grid[0] < h or grid[1] < w:
            raise ValueError(f"cells of a {grid[0]} x {grid[1]} grid may be half hidden by a mask on {h} x {w} cells")


def same_count(cells: Tensor, verb: str) -> int:
    """How many of the cells [B, h, w] each sample has; waits for the device.

    Raises:
        ValueError: samples differ.
    """
    counts = cells.flatten(1).sum(dim=1).unique().tolist()
    if len(counts) != 1:
        raise ValueError(f"every sample must {verb} the same number of cells, got {counts}")
    return counts[0]
