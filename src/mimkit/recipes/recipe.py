"""Recipe: the parts of a method, not yet built, and the values it is trained with."""

import re
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from mimkit.backbones import Encoder
from mimkit.errors import naming
from mimkit.grids import grid_for
from mimkit.losses import Distance
from mimkit.masks import MaskSampler
from mimkit.method import Method
from mimkit.readouts import Readout
from mimkit.records import name_of, record_of
from mimkit.targets import Target
from mimkit.training.optim import Train
from mimkit.views import Normalization, View

DecoderMaker = Callable[..., nn.Module]
PARTS = ("view", "mask", "encoder", "readout", "decoder", "target", "distance")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The seven parts of a method, and how it is trained. Nothing is built until `build`.

    Args:
        view: the training crop.
        mask: draws what is hidden.
        encoder: makes the encoder, called with `image_size=(H, W)` and `channels=C`.
        readout: makes the readout for an encoder.
        decoder: makes one level's decoder from (latent width, values per cell, latent's grid, predictions' grid) and
            `complete`, whether the latent has all tokens; several make one level's each, from the first on.
        target: what is reconstructed.
        distance: between prediction and target.
        train: the values it is trained with.
        image_size: (H, W) pixels.
        channels: image channels.
        statistics: mean and std of each channel, pixels in 0..1; None takes the usual ones for so many channels.
        paper, published, verified: what `mimkit recipes` says of it: where it comes from, what was reported, and what
            mimkit's tests hold it against.
    """

    view: View
    mask: MaskSampler
    encoder: Callable[..., Encoder]
    readout: Callable[[Encoder], Readout]
    decoder: DecoderMaker | tuple[DecoderMaker, ...]
    target: Target
    distance: Distance
    train: Train
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    statistics: Normalization | None = None
    paper: str = ""
    published: str = ""
    verified: str = ""

    @property
    def normalization(self) -> Normalization:
        return self.statistics or Normalization.for_channels(self.channels)


def build(recipe: Recipe) -> Method:
    """The recipe's parts with fresh weights from torch's global generator, composed.

    Raises:
        ValueError: parts that do not fit each other or the image size.
    """
    with naming("--backbone", "--image-size"):
        encoder = recipe.encoder(image_size=recipe.image_size, channels=recipe.channels)
    with naming("--mask", "--mask-ratio", "--mask-cell"):  # refused here rather than in the first step
        mask_grid = recipe.mask.grid(recipe.image_size, encoder.cell)
        mask = recipe.mask.sample(torch.zeros(1, dtype=torch.int64), mask_grid)
        mask_cell = recipe.image_size[0] // mask.grid[0]
        if mask.replaced is not None and not encoder.replaces:
            raise ValueError(f"this mask replaces tokens by mask tokens, and {encoder.name} has none")
        if mask_cell % encoder.smallest_cell:
            raise ValueError(
                f"cells of {mask_cell} pixels cannot be hidden from {encoder.name}: "
                f"{'its stem' if encoder.complete else 'an encoder of visible tokens'} needs multiples of "
                f"{encoder.smallest_cell} pixels"
            )
    with naming("--readout", "--image-size"):
        readout = recipe.readout(encoder)
    if isinstance(recipe.target, type) or not hasattr(recipe.target, "values"):
        raise ValueError(f"--target: a mimkit.targets.Target is needed, got {recipe.target!r}")
    makers = recipe.decoder if isinstance(recipe.decoder, tuple) else (recipe.decoder,) * len(readout.levels)
    if len(makers) != len(readout.levels):
        raise ValueError(f"--readout, --decoder: {len(makers)} decoders for {len(readout.levels)} levels")
    decoders, out_grids, expected = [], [], list[tuple[int, ...]]()
    for level, cell, make in zip(readout.levels, readout.cells, makers, strict=True):
        if len(makers) == 1:  # so that no cell is part hidden, part visible; several levels have soft masks instead
            cell = min(cell, mask_cell)
        with naming("--target"):
            values = recipe.target.values(cell, recipe.channels)
        with naming("--decoder", "--decoder-width", "--decoder-heads", "--mask-cell"):
            in_grid, out_grid = grid_for(recipe.image_size, level.cell), grid_for(recipe.image_size, cell)
            decoders.append(make(level.dim, values, in_grid, out_grid, complete=encoder.complete))
            mask.weights(out_grid)
        out_grids.append(out_grid)
        expected.append((1, *out_grid, values))
    with naming("--target"):
        made = recipe.target(torch.zeros(1, recipe.channels, *recipe.image_size), out_grids)
        if [tuple(one.shape) for one in made] != expected:
            given = ", ".join(str(list(one.shape)) for one in made)
            raise ValueError(
                f"{name_of(recipe.target)} must give one tensor [B, h, w, values] for each grid, here "
                f"{', '.join(str(list(shape)) for shape in expected)}, and gave {given}"
            )
    return Method(
        mask=recipe.mask,
        encoder=encoder,
        readout=readout,
        decoders=decoders,
        target=recipe.target,
        distance=recipe.distance,
        normalization=recipe.normalization,
    )


def record_of_parts(recipe: Recipe) -> dict[str, Any]:
    """What files keep of a recipe: records of its parts, see `records`, and of its images' shape and statistics."""
    parts = {name: record_of(getattr(recipe, name)) for name in PARTS}
    return parts | {name: record_of(getattr(recipe, name)) for name in ("image_size", "channels", "statistics")}


def parts_in_words(recipe: Recipe) -> dict[str, str]:
    """The seven parts as they would be written: `TransformerDecoder(width=512, depth=8)`."""
    return {name: _in_words(getattr(recipe, name)) for name in PARTS}


def _in_words(part: Any) -> str:
    if isinstance(part, tuple):
        return ", ".join(_in_words(one) for one in part)
    if isinstance(part, partial):
        arguments = ", ".join(f"{key}={value!r}" for key, value in part.keywords.items())
        return f"{name_of(part.func)}({arguments})"
    if is_dataclass(part):
        return re.sub(r"<\w+\.(\w+): \d+>", r"\1", str(part))  # enumerations by name
    return name_of(part)
