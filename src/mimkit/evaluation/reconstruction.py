"""Reconstructions as pictures: the original, what the encoder saw, and what the method predicts.

Shapes: B images, C channels, H W pixels.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mimkit.compose import with_fields
from mimkit.errors import BadImage, naming
from mimkit.files import home, refuse_unwritable, write_bytes
from mimkit.image_encoder import ImageEncoder
from mimkit.method import Method
from mimkit.randomness import sample_keys
from mimkit.recipes import Recipe
from mimkit.sources import load_method
from mimkit.training.hardware import choose_device

GAP = 4
GREY = 0.5


def columns(method: Method) -> list[str]:
    """Titles of the pictures in a row, left to right."""
    return ["original", "visible", "reconstruction", "reconstruction + visible", *method.target.reference_names]


@torch.no_grad()
def reconstruct_batch(method: Method, images: Tensor, keys: Tensor) -> Tensor | None:
    """uint8 images [B, C, H, W] to a row of pictures for each mask of each image, floats 0..1 [B, columns, C, H, W].

    None where the target has no picture. `keys` draw the masks.
    """
    normalized = method.normalization.from_bytes(images)
    grid = method.mask.grid((images.shape[-2], images.shape[-1]), method.encoder.cell)
    mask = method.mask.sample(keys, grid).scoring_all()
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


def reconstruct(
    source: str | Path,
    *,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    mask_ratio: float | None = None,
    seed: int = 0,
    device: str = "auto",
    recipe: str | Recipe | None = None,
) -> list[Path]:
    """Write one PNG for each image: original, visible, reconstruction; returns their paths.

    Args:
        source: run folder or exported file.
        images: image files, one or several; `~` is expanded, as it is in `out`.
        out: folder to write to.
        mask_ratio: hidden share; None as trained.
        seed: of the masks.
        device: cpu, cuda, ...
        recipe: FILE.py:NAME or the recipe itself, for sources made with a recipe of the user's own.

    Raises:
        ValueError: no images, one that cannot be read, or a target that has no picture; or `out` cannot be written.
    """
    paths = [home(image) for image in ([images] if isinstance(images, str | Path) else images)]
    if not paths:
        raise ValueError("IMAGES: name at least one image file")
    out = home(out)
    refuse_unwritable(out / "0000.png")
    torch_device = choose_device(device)
    method = load_method(source, recipe=recipe).to(torch_device)
    if mask_ratio is not None:
        with naming("--mask-ratio"):
            method.mask = with_fields(method.mask, {"ratio": mask_ratio})
    encoder = ImageEncoder.of(method)
    sheets: dict[Path, bytes] = {}  # all or none are written
    for number, path in enumerate(paths):
        try:
            pixels = encoder.read([path]).to(torch_device)
        except BadImage as error:
            raise ValueError(f"IMAGES: {error}") from error
        with naming("--mask-ratio"):
            rows = reconstruct_batch(method, pixels, sample_keys(seed, 0, torch.tensor([number])).to(torch_device))
        if rows is None:
            raise ValueError(f"{type(method.target).__name__}, what {source} predicts, cannot be shown as a picture")
        sheets[out / f"{number:04d}-{path.stem}.png"] = png(sheet(rows))
    out.mkdir(parents=True, exist_ok=True)
    for path, picture in sheets.items():
        write_bytes(path, picture)
    return list(sheets)
