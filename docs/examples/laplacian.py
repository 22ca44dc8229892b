"""A target of one's own: the Laplacian pyramid of an image, band by band.

    mimkit pretrain docs/examples/laplacian.py:recipe --data ~/photos --out runs/laplacian

The class below is all that a target takes; `recipe`, one line, puts it into MAE.

Shapes: B batch, C image channels, H W pixels, h w cells, p side of a cell in pixels.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.grids import Grid, patchify, unpatchify
from mimkit.recipes import Recipe, mae
from mimkit.targets import Target


@dataclass(frozen=True)
class LaplacianPyramid(Target):
    """The bands of a cell: what each halving of the resolution loses (Burt and Adelson 1983), and what is left at last.

    Each band has the resolution it was lost at, so that a cell of p pixels has p², p²/4, p²/16, ... values per channel.

    Args:
        bands: how many, the last one being what is left; cells must be divisible by 2^(bands − 1).
        gains: what each band is multiplied with; finer ones are fainter. As many as bands.
    """

    bands: int = 3
    gains: tuple[float, ...] = (4.0, 2.0, 1.0)

    picture_note = "The predicted bands added up, nothing taken from the image."

    def values(self, cell: int, channels: int) -> int:
        if cell % 2 ** (self.bands - 1):
            raise ValueError(f"a cell of {cell} pixels cannot be halved {self.bands - 1} times")
        return sum((cell >> band) ** 2 for band in range(self.bands)) * channels

    def __call__(self, images: Tensor, grids: list[Grid]) -> list[Tensor]:
        bands = self.pyramid(images.float())
        return [torch.cat([patchify(band, grid) for band in bands], dim=-1) for grid in grids]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] to their bands, the finest first."""
        bands = []
        for _ in range(self.bands - 1):
            coarse = F.avg_pool2d(images, 2)
            bands.append(images - F.interpolate(coarse, scale_factor=2, mode="nearest"))
            images = coarse
        return [gain * band for gain, band in zip(self.gains, [*bands, images], strict=True)]

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        channels = images.shape[1]
        cell = images.shape[2] // prediction.shape[1]
        sizes = [(cell >> band) ** 2 * channels for band in range(self.bands)]
        *bands, picture = (unpatchify(part, channels) for part in prediction.split(sizes, dim=-1))
        picture = picture / self.gains[-1]
        for band, gain in zip(reversed(bands), reversed(self.gains[:-1]), strict=True):
            picture = F.interpolate(picture, scale_factor=2, mode="nearest") + band / gain
        return picture


def recipe() -> Recipe:
    """MAE that reconstructs the bands instead of the pixels."""
    return replace(mae(), target=LaplacianPyramid(), paper="an example of a target of one's own", published="")
