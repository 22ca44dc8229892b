"""Histograms of oriented gradients, as MaskFeat (arXiv 2112.09133) and LocalMIM (arXiv 2303.05251) define them.

Shapes: B batch, C image channels, H W pixels, h w cells, n bins.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.grids import Grid
from mimkit.targets.target import Target


@dataclass(frozen=True)
class Hog(Target):
    """Where the edges of a cell point: for each channel a histogram of unsigned gradient directions, of unit length.

    Gradients are 3 x 3 Sobel's of the normalised image, with reflected borders; each pixel votes with its gradient's
    length for the one bin its direction falls in (no interpolation); votes are summed over the cell. A cell's values
    run channel by channel.

    Args:
        bins: of 180 / bins degrees each: 9 in MaskFeat and LocalMIM ViT-B, 18 in LocalMIM's larger models.
        offsets: a constant (across, down) added to all gradients, one pair for each grid asked for, or none. The code
            that LocalMIM's larger models were trained with adds random ones, drawn once; only to reproduce it.
    """

    bins: int = 9
    offsets: tuple[tuple[float, float], ...] = ()

    def values(self, cell: int, channels: int) -> int:
        return channels * self.bins

    def __call__(self, images: Tensor, grids: list[Grid]) -> list[Tensor]:
        if self.offsets:
            if len(self.offsets) != len(grids):
                raise ValueError(f"{len(self.offsets)} offsets of gradients for {len(grids)} grids")
            votes = [self.votes(images, grid, offset) for grid, offset in zip(grids, self.offsets, strict=True)]
            return [self.histograms(v, grid) for v, grid in zip(votes, grids, strict=True)]
        finest = max(h for h, _ in grids), max(w for _, w in grids)
        shared = self.votes(images, finest)
        return [self.histograms(shared, grid) for grid in grids]

    def votes(self, images: Tensor, grid: Grid, offset: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Sums of gradient lengths by direction for each cell of a grid, [B, C, h, w, n]."""
        batch, channels, height, width = images.shape
        length, direction = gradients(images, offset)
        h, w = grid
        rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        cell = (rows // (height // h) * w)[:, None] + columns // (width // w)
        plane = torch.arange(batch * channels, device=images.device).view(batch, channels, 1, 1) * (h * w)
        # Directions run from −π to π, both included: 2n + 1 bins, of which the second half repeats the first.
        slots = 2 * self.bins + 1
        slot = direction.div(math.pi).mul_(self.bins).floor_().long().add_(self.bins).clamp_(max=slots - 1)
        slot += (cell + plane) * slots
        votes = length.new_zeros(batch * channels * h * w * slots).scatter_add_(0, slot.flatten(), length.flatten())
        votes = votes.view(batch, channels, h, w, slots)
        folded = votes[..., : self.bins] + votes[..., self.bins : -1]
        folded[..., 0] += votes[..., -1]
        return folded

    def histograms(self, votes: Tensor, grid: Grid) -> Tensor:
        """Votes [B, C, h', w', n] of finer cells to unit histograms [B, h, w, C·n]."""
        h, w = grid
        pooled = votes.unflatten(3, (w, -1)).unflatten(2, (h, -1)).sum(dim=(3, 5))
        return F.normalize(pooled, dim=-1, eps=1e-12).permute(0, 2, 3, 1, 4).flatten(3)


def gradients(images: Tensor, offset: tuple[float, float] = (0.0, 0.0)) -> tuple[Tensor, Tensor]:
    """Length and direction atan2(gx, gy) of Sobel's gradient of each channel plus an offset, float32 [B, C, H, W].

    The terms are added in the order in which the published code's convolution adds them, on every device. The pixels
    of photographs are whole numbers, so many gradients point exactly along an axis but for the rounding of their sum,
    and that rounding then picks the bin: another order of adding changes a loss by two percent.
    """
    x = F.pad(images.float(), (1, 1, 1, 1), mode="reflect")
    left, middle, right = x[..., :-2], x[..., 1:-1], x[..., 2:]

    def row(values: Tensor, number: int) -> Tensor:
        return values[:, :, number : values.shape[2] - 2 + number]

    across = row(left, 0) - row(right, 0)
    across.add_(row(left, 1), alpha=2).sub_(row(right, 1), alpha=2).add_(row(left, 2)).sub_(row(right, 2))
    down = torch.add(row(left, 0), row(middle, 0), alpha=2).add_(row(right, 0))
    down.sub_(row(left, 2)).sub_(row(middle, 2), alpha=2).sub_(row(right, 2))
    across, down = across.add_(offset[0]), down.add_(offset[1])
    return torch.hypot(across, down), torch.atan2(across, down)
