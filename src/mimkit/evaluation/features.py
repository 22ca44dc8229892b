"""Frozen features, the same for probes, embeddings and the online probe.

Features are the mean over all patch tokens of the last block, through the final norm, of the unmasked image.

Shapes: B batch, C image channels, H W pixels, D width.
"""

import torch
from torch import Tensor

from mimkit.backbones import Encoder
from mimkit.data import ImageList, Samples, load_in_order
from mimkit.image_encoder import ImageEncoder
from mimkit.views import CenterCrop


def centred(images: ImageList, encoder: Encoder) -> Samples:
    """Images as an encoder sees them in evaluations: the middle of each, at its size."""
    return Samples(images, view=CenterCrop(), size=encoder.image_size, channels=encoder.channels)


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
        features float32 [N, D], the position in the list of each, int64 [N], and (path, reason) of skipped images.
    """
    features, indices, skipped = [], [], []
    was_training = encoder.training
    encoder.to(device).eval()
    with torch.inference_mode():
        for batch in load_in_order(centred(images, encoder.encoder), workers=workers, batch_size=batch_size):
            if len(batch.indices):
                features.append(encoder(batch.images.to(device)).float().cpu())
                indices.append(batch.indices)
            skipped += batch.skipped
    encoder.train(was_training)
    nothing = torch.empty(0, encoder.encoder.dim), torch.empty(0, dtype=torch.int64)
    return (torch.cat(features), torch.cat(indices), skipped) if features else (*nothing, skipped)
