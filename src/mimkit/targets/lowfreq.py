"""PixMIM's target: the pixels of a low-pass filtered image (arXiv 2303.02416 §3.2).

Shapes: B batch, C image channels, H W pixels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mimkit.grids import Grid
from mimkit.targets.pixels import Pixels
from mimkit.targets.target import Target
from mimkit.views import IMAGENET, Normalization


@dataclass(frozen=True)
class LowFreqPixels(Target):
    """Pixels with the high frequencies removed by an ideal circular filter; the encoder still sees the whole image.

    Args:
        radius: of the kept disc, in frequency bins of a 224-pixel image; scales with the image, so that 448 pixels
            keep 80 bins, the same band.
        normalized: patch normalisation, as in `Pixels`.
        filter: "centred" is the filter that the paper describes, real and exact. "mmselfsup" is the one that its
            code applies: the disc sits half a bin off zero frequency and the complex result is replaced by its
            magnitude (mean difference 0.002 to 0.008 on photographs in 0..1). Use it to reproduce published runs.
        normalization: the images' own, which "mmselfsup" must undo; the centred filter, being linear, need not.
    """

    radius: float = 40.0
    normalized: bool = True
    filter: Literal["centred", "mmselfsup"] = "centred"
    normalization: Normalization = IMAGENET

    @property
    def pixels(self) -> Pixels:
        return Pixels(normalized=self.normalized)

    def values(self, cell: int, channels: int) -> int:
        return self.pixels.values(cell, channels)

    def __call__(self, images: Tensor, grids: list[Grid]) -> list[Tensor]:
        return self.pixels(self.low_pass(images), grids)

    @property
    def reference_names(self) -> tuple[str, ...]:
        return ("low-pass target",)

    @property
    def picture_note(self) -> str:
        return self.pixels.picture_note

    def references(self, images: Tensor) -> list[Tensor]:
        return [self.low_pass(images)]

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        return self.pixels.picture(prediction, self.low_pass(images))

    def low_pass(self, images: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] without their high frequencies, float32."""
        images = images.float()
        if self.filter == "mmselfsup":
            return self.normalization.apply(_published_low_pass(self.normalization.undo(images), self.radius))
        height, width = images.shape[-2:]
        rows = torch.fft.fftfreq(height, device=images.device)
        columns = torch.fft.rfftfreq(width, device=images.device)
        # Cycles per pixel; the slack keeps bins that lie exactly on the circle, such as (24, 32) at radius 40.
        keep = rows[:, None].square() + columns.square() <= (self.radius / 224) ** 2 * (1 + 1e-5)
        return torch.fft.irfft2(torch.fft.rfft2(images) * keep, s=(height, width))


def _published_low_pass(pixels: Tensor, radius: float) -> Tensor:
    height, width = pixels.shape[-2:]
    rows = torch.arange(height, device=pixels.device) - (height - 1) / 2  # not height / 2, where zero frequency is
    columns = torch.arange(width, device=pixels.device) - (width - 1) / 2
    keep = rows[:, None].square() + columns.square() <= (radius * min(height, width) / 224) ** 2
    spectrum = torch.fft.fftshift(torch.fft.fft2(pixels), dim=(-2, -1))
    return torch.fft.ifft2(spectrum * keep).abs()
