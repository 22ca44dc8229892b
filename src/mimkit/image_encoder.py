"""An encoder with its normalisation, which reads images: the start of every probe, task and analysis.

Shapes: B batch, C image channels, H W pixels, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mimkit.backbones import Encoder, Latent
from mimkit.data import read_image
from mimkit.views import CenterCrop, Normalization


class HasEncoder(Protocol):
    """What `ImageEncoder.of` takes: a `Method`, or anything else with these two attributes."""

    @property
    def encoder(self) -> Encoder: ...

    @property
    def normalization(self) -> Normalization: ...


class ImageEncoder(nn.Module):
    """An encoder with its normalisation, which reads images.

    Args:
        encoder: the backbone.
        normalization: of the images it takes.
    """

    def __init__(self, encoder: Encoder, normalization: Normalization) -> None:
        super().__init__()
        self.encoder = encoder
        self.normalization = normalization
        self.train(encoder.training)

    @classmethod
    def of(cls, method: HasEncoder) -> "ImageEncoder":
        """A method's own encoder and normalisation, not a copy."""
        return cls(method.encoder, method.normalization)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.encoder.image_size

    def read(self, paths: Sequence[str | Path]) -> Tensor:
        """Image files, resized and cut at the centre to the encoder's size: uint8 [B, C, H, W].

        Raises:
            BadImage: a file is no readable image.
        """
        pixels = [CenterCrop()(read_image(Path(path), self.encoder.channels), self.image_size) for path in paths]
        height, width = self.image_size
        return torch.from_numpy(np.stack(pixels)).view(len(pixels), height, width, -1).permute(0, 3, 1, 2).contiguous()

    def latent(self, images: Tensor) -> Latent:
        """Images (uint8, or floats already normalised) to the normed latent of the last block, nothing hidden."""
        if images.dtype == torch.uint8:
            images = self.normalization.from_bytes(images)
        (last,) = self.encoder(images)
        return last.map(self.encoder.norm)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to features [B, D]."""
        return self.latent(images).tokens.mean(dim=1)
