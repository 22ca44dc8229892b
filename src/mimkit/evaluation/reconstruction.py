"""Reconstructions as pictures: what was there, what the encoder saw, what it made of it.

Shapes: B images, C channels, H W pixels.
"""

import io
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mimkit.method import Method

GAP = 4
GREY = 0.5


def columns(method: Method) -> list[str]:
    """What the pictures of a row show, left to right."""
    return ["original", "visible", "reconstruction", "reconstruction + visible", *method.target.reference_names]


@torch.no_grad()
def reconstruct(method: Method, images: Tensor, keys: Tensor) -> Tensor | None:
    """uint8 images [B, C, H, W] to a row of pictures for each mask of each, floats 0..1 [B, columns, C, H, W].

    None where the target has no picture. `keys` draw the masks.
    """
    normalized = method.normalization.from_bytes(images)
    mask = method.mask.sample(keys, (images.shape[-2], images.shape[-1]), method.encoder.cell).scoring_all()
    normalized = normalized.repeat_interleave(mask.copies, dim=0)
    images = images.repeat_interleave(mask.copies, dim=0)
    output = method(normalized, mask=replace(mask, copies=1))
    prediction = method.target.picture(output.predictions[0].float(), normalized)
    if prediction is None:
        return None
    hidden = output.mask.on((images.shape[-2], images.shape[-1]))[:, None]
    original, predicted = images.float() / 255, method.normalization.undo(prediction)
    row = [original, original * (1 - hidden) + GREY * hidden, predicted, original * (1 - hidden) + predicted * hidden]
    row += [method.normalization.undo(reference) for reference in method.target.references(normalized)]
    return torch.stack(row, dim=1).clamp(0, 1)


def sheet(rows: Tensor) -> Image.Image:
    """Rows of pictures [B, columns, C, H, W] on one white sheet."""
    b, k, c, h, w = rows.shape
    canvas = np.full((b * (h + GAP) - GAP, k * (w + GAP) - GAP, 3), 255, dtype=np.uint8)
    shown = rows[:, :, :3] if c >= 3 else rows[:, :, :1].expand(-1, -1, 3, -1, -1)
    pixels = (shown * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()
    for i in range(b):
        for j in range(k):
            canvas[i * (h + GAP) : i * (h + GAP) + h, j * (w + GAP) : j * (w + GAP) + w] = pixels[i, j]
    return Image.fromarray(canvas)


def png(image: Image.Image) -> bytes:
    """The picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
