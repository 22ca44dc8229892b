"""A translated checkpoint, and the renaming that all translations use."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Weights = dict[str, Tensor]
Rules = Sequence[tuple[str, str]]

UNUSED: Rules = (
    (
        r"(?:head|head_dist|lm_head|classifier|(?:\w+\.)?pooler)\..*",
        "a classifier's, not used in pre-training",
    ),
    (r"data_preprocessor\..*", "mean and std of the pixels"),
    (r".*relative_position_index", "indices, computed anew"),
    (r".*attn_mask", "the shifted windows' mask, computed anew"),
)
NO_DECODER: Rules = ((r"mask_token|decoder_pos_embed", "the decoder's, which is missing"),)


@dataclass(frozen=True, kw_only=True, eq=False)
class Translation:
    """A checkpoint with our names.

    Args:
        recipe: the method, by name.
        backbone: as `create_encoder` takes it.
        image_size: (H, W) that the encoder's table of positions is for.
        settings: others that the recipe needs.
        weights: by our names; unknown ones keep theirs.
        dropped: names of weights that are left out on purpose, with the reasons.
        notes: what the user should know.
        encoder_only: whether there is no decoder.
    """

    recipe: str
    backbone: str
    image_size: tuple[int, int]
    settings: dict[str, Any] = field(default_factory=dict)
    weights: Weights
    dropped: dict[str, str]
    notes: list[str] = field(default_factory=list)
    encoder_only: bool


def rename(weights: Weights, rules: Rules) -> Weights:
    """The weights under new names, each by the first rule (pattern of a whole name, replacement) that matches it."""

    def renamed(name: str) -> str:
        for pattern, new in rules:
            match = re.fullmatch(pattern, name)
            if match:
                return match.expand(new)
        return name

    return {renamed(name): value for name, value in weights.items()}


def drop(weights: Weights, reasons: Rules) -> tuple[Weights, dict[str, str]]:
    """The weights whose whole names match no pattern, and for each of the others the reason."""
    dropped = {}
    for name in weights:
        reason = next((reason for pattern, reason in reasons if re.fullmatch(pattern, name)), None)
        if reason:
            dropped[name] = reason
    return {name: value for name, value in weights.items() if name not in dropped}, dropped


def move_fc_norm(weights: Weights) -> tuple[Weights, list[str]]:
    """The weights with the norm after pooling of a fine-tuned model as the final norm, and a note that says so."""
    if "norm.weight" in weights or "fc_norm.weight" not in weights:
        return weights, []
    moved = rename(weights, ((r"fc_norm\.(\w+)", r"norm.\1"),))
    return moved, ["fine-tuned: fc_norm, which followed the pooling, becomes the final norm of each token"]


def count(weights: Weights, pattern: str) -> int:
    """Number of distinct values of the pattern's group, over all names that begin with the pattern."""
    return len({match[1] for match in (re.match(pattern, name) for name in weights) if match})


def backbone_name(base: str, **options: Any) -> str:
    """A backbone's name with its keyword arguments."""
    written = ",".join(f"{key}={value!r}".replace(" ", "") for key, value in options.items())
    return f"{base}({written})" if written else base
