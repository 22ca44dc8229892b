"""Frozen features: the one readout that probes, embeddings and the probe shown while training all use.

Features are the mean over all patch tokens of the last block, through the final norm, of the unmasked image.

Shapes: B batch, C image channels, H W pixels, D width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mimkit.backbones import Encoder, Latent
from mimkit.data import ImageList, load_images, read_image
from mimkit.views import CenterCrop, Normalization


class ImageEncoder(nn.Module):
    """An encoder with all it needs to read images.

    Args:
        encoder: the backbone.
        normalization: of its pixels.
    """

    def __init__(self, encoder: Encoder, normalization: Normalization) -> None:
        super().__init__()
        self.encoder = encoder
        self.normalization = normalization
        self.train(encoder.training)

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


def extract(
    encoder: ImageEncoder,
    images: ImageList,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    batch_size: int = 128,
) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    """Features of all readable images of a list, in order.

    Returns:
        features float32 [N, D], the position in the list of each, int64 [N], and what was skipped: (path, reason).
    """
    features, indices, skipped = [], [], []
    was_training = encoder.training
    encoder.to(device).eval()
    with torch.inference_mode():
        for batch in load_images(
            images, encoder.image_size, encoder.encoder.channels, workers=workers, batch_size=batch_size
        ):
            if len(batch.indices):
                features.append(encoder(batch.images.to(device)).float().cpu())
                indices.append(batch.indices)
            skipped += batch.skipped
    encoder.train(was_training)
    nothing = torch.empty(0, encoder.encoder.dim), torch.empty(0, dtype=torch.int64)
    return (torch.cat(features), torch.cat(indices), skipped) if features else (*nothing, skipped)
