"""What the translation of a format gives, and the renaming they all use."""

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
        "a classifier's, of no use to pre-training",
    ),
    (r"data_preprocessor\..*", "mean and deviation of the pixels"),
    (r".*relative_position_index", "indices, made afresh"),
    (r".*attn_mask", "the shifted windows' mask, made afresh"),
)
NO_DECODER: Rules = ((r"mask_token|decoder_pos_embed", "the decoder's, which is missing"),)


@dataclass(frozen=True, kw_only=True, eq=False)
class Translation:
    """A checkpoint, translated.

    Args:
        recipe: the method, by name.
        backbone: as `create_encoder` takes it.
        image_size: (H, W) that the encoder's table of positions is for.
        settings: others that the recipe needs.
        weights: by our names, and those not understood by their own.
        dropped: what is left out on purpose, by its name, and why.
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
    """The weights under new names: the first rule (pattern of a whole name, what it becomes) that fits each."""

    def renamed(name: str) -> str:
        for pattern, new in rules:
            match = re.fullmatch(pattern, name)
            if match:
                return match.expand(new)
        return name

    return {renamed(name): value for name, value in weights.items()}


def drop(weights: Weights, reasons: Rules) -> tuple[Weights, dict[str, str]]:
    """The weights that no pattern of a whole name fits, and the reason for each that one does."""
    dropped = {}
    for name in weights:
        reason = next((reason for pattern, reason in reasons if re.fullmatch(pattern, name)), None)
        if reason:
            dropped[name] = reason
    return {name: value for name, value in weights.items() if name not in dropped}, dropped


def move_fc_norm(weights: Weights) -> tuple[Weights, list[str]]:
    """Fine-tuned models norm after pooling, and have no final norm: theirs takes its place."""
    if "norm.weight" in weights or "fc_norm.weight" not in weights:
        return weights, []
    moved = rename(weights, ((r"fc_norm\.(\w+)", r"norm.\1"),))
    return moved, ["fine-tuned: fc_norm, which stood behind the pooling, becomes the final norm of each token"]


def count(weights: Weights, pattern: str) -> int:
    """How many values the group of a pattern takes at the beginnings of names."""
    return len({match[1] for match in (re.match(pattern, name) for name in weights) if match})


def backbone_name(base: str, **options: Any) -> str:
    """A backbone's name with its keyword arguments."""
    written = ",".join(f"{key}={value!r}".replace(" ", "") for key, value in options.items())
    return f"{base}({written})" if written else base
