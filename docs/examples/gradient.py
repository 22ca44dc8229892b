"""A target: how strong the edges of a cell are, pixel by pixel.

Shapes: B batch, C image channels, H W pixels, h w cells, p side of a cell in pixels.
"""

from dataclasses import dataclass

from torch import Tensor

from mimkit.grids import Grid, patchify
from mimkit.targets.hog import gradients
from mimkit.targets.target import Target


@dataclass(frozen=True)
class GradientMagnitude(Target):
    """The length of Sobel's gradient at each pixel of a cell, for each channel."""

    def values(self, cell: int, channels: int) -> int:
        return cell * cell * channels

    def __call__(self, images: Tensor, grids: list[Grid]) -> list[Tensor]:
        length, _ = gradients(images)
        return [patchify(length, grid) for grid in grids]
