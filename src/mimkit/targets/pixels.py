"""The pixels of a cell, raw or normalised by the cell's own mean and std.

Shapes: B batch, C image channels, H W pixels, h w cells, p side of a cell in pixels.
"""

from dataclasses import dataclass

from torch import Tensor

from mimkit.grids import Grid, patchify, unpatchify
from mimkit.targets.target import Target


@dataclass(frozen=True)
class Pixels(Target):
    """p·p·C pixel values of each cell (MAE §3).

    Args:
        normalized: subtract the cell's mean and divide by its std, jointly over all p·p·C values, with the
            unbiased variance and 1e-6 under the root, as MAE publishes it.
    """

    normalized: bool = True

    def values(self, cell: int, channels: int) -> int:
        return cell * cell * channels

    def __call__(self, images: Tensor, grids: list[Grid]) -> list[Tensor]:
        cells = [patchify(images, grid) for grid in grids]
        return [normalize_cells(values) for values in cells] if self.normalized else cells

    @property
    def picture_note(self) -> str:
        if self.normalized:
            return "Each predicted patch is given the mean and contrast of the true patch, which the target leaves out."
        return "Pixels as predicted, nothing added."

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        if self.normalized:
            mean, std = cell_statistics(patchify(images, (prediction.shape[1], prediction.shape[2])))
            prediction = prediction * std + mean
        return unpatchify(prediction, channels=images.shape[1])


def cell_statistics(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of each cell, [..., 1]."""
    return cells.mean(dim=-1, keepdim=True), (cells.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def normalize_cells(cells: Tensor) -> Tensor:
    """Cells [..., n] of zero mean and unit std each."""
    mean, std = cell_statistics(cells)
    return (cells - mean) / std
