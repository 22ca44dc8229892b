"""An encoder with its normalisation, which reads images: the start of every probe, task and analysis.

Shapes: B batch, C image channels, H W pixels, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mimkit.backbones import Encoder, Latent
from mimkit.data import read_image
from mimkit.files import home
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

    def read(self, paths: str | Path | Sequence[str | Path]) -> Tensor:
        """Image files, resized and cut at the centre to the encoder's size: uint8 [B, C, H, W]; of one path B is 1.

        Raises:
            ValueError: no path is given.
            BadImage: a file is no readable image.
        """
        files = [home(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        if not files:
            raise ValueError("paths: name at least one image file, got none")
        pixels = [CenterCrop()(read_image(file, self.encoder.channels), self.image_size) for file in files]
        height, width = self.image_size
        return torch.from_numpy(np.stack(pixels)).view(len(pixels), height, width, -1).permute(0, 3, 1, 2).contiguous()

    def latent(self, images: Tensor) -> Latent:
        """Images [B, C, H, W] to the normed latent of the last block, nothing hidden.

        Args:
            images: uint8, or floats that `normalization.apply` has normalised (not 0..1); float64 becomes float32.

        Raises:
            TypeError: they are no tensor, or of another type.
            ValueError: they are no batch, or have another number of channels.
        """
        refuse_other_than_images(images, self.encoder.channels)
        if images.dtype == torch.float64:
            images = images.float()
        if images.dtype == torch.uint8:
            images = self.normalization.from_bytes(images)
        (last,) = self.encoder(images)
        return last.map(self.encoder.norm)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to features [B, D]."""
        return self.latent(images).tokens.mean(dim=1)


def refuse_other_than_images(images: object, channels: int) -> None:
    """Raise TypeError or ValueError, in a line that says what to do, for what is no batch of so many channels."""
    if not isinstance(images, Tensor):
        given = "one image or a list of them" if isinstance(images, list | tuple | Image.Image) else "no tensor"
        raise TypeError(
            f"an encoder takes a tensor [B, {channels}, H, W], got {given} ({type(images).__name__}): "
            "encoder.read(paths) makes one of image files"
        )
    shape = list(images.shape)
    if images.ndim == 3:
        raise ValueError(f"an encoder takes a batch [B, {channels}, H, W], got one image {shape}: give images[None]")
    if images.ndim != 4 or shape[1] != channels:
        raise ValueError(f"an encoder of {channels} channels takes images [B, {channels}, H, W], got {shape}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"an encoder takes uint8 images of 0..255 or normalised floats, got {images.dtype}")
