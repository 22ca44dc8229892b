"""Cells hidden in rectangles.

Shapes: B batch, h w cells of the mask's own grid, N = h·w.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.grids import Grid
from mimkit.masks.mask import Mask
from mimkit.masks.sampler import MaskSampler, below, floor, random_integers


@dataclass(frozen=True)
class BlockMask(MaskSampler):
    """Cells hidden in rectangles, one over another, until exactly floor(N·ratio) of N are (BEiT, MaskFeat).

    A rectangle's area is uniform between `smallest` and what is still to hide, its aspect log-uniform (256 steps),
    its place uniform among those inside the grid; one that would hide too much is dropped. The published generator
    gives up after ten dropped in a row, so that some samples hide a few cells less. Here `tries` rectangles are drawn
    for each sample, and what they leave over is put where most neighbours are hidden, nearest to a random cell among
    equals.

    Args:
        ratio: hidden share, between 0 and 1: 78 of 196 cells at 0.4.
        cell: side of a cell in pixels; None takes the encoder's.
        smallest: area of a rectangle in cells.
        aspect: of the most upright one, height to width or the other way round.
        tries: rectangles drawn for each sample.

    Raises:
        ValueError: the ratio is outside (0, 1) or hides nothing, the smallest area or the number of tries is below
            1, or the aspect outside (0, 1].
    """

    ratio: float = 0.4
    cell: int | None = None
    smallest: int = 16
    aspect: float = 0.3
    tries: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"mask ratio must lie between 0 and 1, got {self.ratio}")
        if self.smallest < 1 or self.tries < 1:
            raise ValueError(f"blocks need an area and tries of at least 1, got {self.smallest} and {self.tries}")
        if not 0 < self.aspect <= 1:
            raise ValueError(f"aspect of blocks must be above 0 and at most 1, got {self.aspect}")

    def sample(self, keys: Tensor, grid: Grid, batch_key: Tensor | None = None) -> Mask:
        h, w = grid
        count = floor(h * w * self.ratio)
        if count == 0:
            raise ValueError(f"mask ratio {self.ratio} hides none of {h * w} cells")
        rows = torch.arange(h, device=keys.device)[:, None]
        columns = torch.arange(w, device=keys.device)
        draws = random_integers(keys, 4 * self.tries + 2)[:, :, None, None]
        stretches = self._stretches(draws[:, : self.tries])
        hidden = torch.zeros(len(keys), h, w, dtype=torch.bool, device=keys.device)
        for i in range(self.tries):
            area_draw, top_draw, left_draw = draws[:, self.tries + 3 * i :][:, :3].unbind(1)
            left_over = count - hidden.sum(dim=(1, 2))[:, None, None]
            low, high = left_over.clamp(max=self.smallest), left_over.clamp(min=self.smallest)
            side = (low + below(high - low + 1, area_draw)).float().sqrt()
            height = (side * stretches[:, i]).round().long()
            width = (side / stretches[:, i]).round().long()
            top, left = below(h - height + 1, top_draw), below(w - width + 1, left_draw)
            inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
            new = inside & ~hidden & (height <= h) & (width <= w)
            hidden = hidden | (new & (new.sum(dim=(1, 2), keepdim=True) <= left_over))
        return Mask(grown(hidden, count, draws[:, -2:]), count)

    def _stretches(self, draws: Tensor) -> Tensor:
        """Square roots of log-uniform aspects. As products, which all devices round alike; they differ in `exp`."""
        stretches = torch.full(draws.shape, math.sqrt(self.aspect), dtype=torch.float32, device=draws.device)
        for bit in range(8):
            factor = self.aspect ** -(2**bit / 255)
            stretches = torch.where((draws >> bit & 1).bool(), stretches * factor, stretches)
        return stretches


def grown(hidden: Tensor, count: int, draws: Tensor) -> Tensor:
    """Cells [B, h, w] grown to `count` in each sample, around those already hidden or else a random cell.

    `draws` [B, 2, 1, 1] are that cell's row and column.
    """
    h, w = hidden.shape[1:]
    rows = torch.arange(h, device=hidden.device)[:, None]
    columns = torch.arange(w, device=hidden.device)
    distance = torch.maximum((rows - below(h, draws[:, 0])).abs(), (columns - below(w, draws[:, 1])).abs())
    neighbours = F.avg_pool2d(hidden.float(), 3, stride=1, padding=1, divisor_override=1).long()  # their sum
    worth = (neighbours * (h + w) - distance).masked_fill(hidden, 9 * (h + w))
    chosen = worth.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :count]
    return hidden.flatten(1).scatter(1, chosen, torch.ones_like(chosen, dtype=torch.bool)).view_as(hidden)
