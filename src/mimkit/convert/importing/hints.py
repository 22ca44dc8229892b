"""Hints in a checkpoint beside its weights: the run's arguments, or a Hugging Face configuration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mimkit.convert.importing.read_file import CheckpointFile


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What the shapes of weights do not tell; None where the checkpoint does not say it.

    Args:
        kind: Hugging Face's `model_type`.
        heads, decoder_heads: of attention.
        image_size: (H, W) pixels.
        mask_ratio: hidden share of the cells.
        normalized: whether the target is normalised cell by cell.
        mean, std: what images are normalised with.
        norm_eps: epsilon of the LayerNorms, where it is not the published one.
    """

    kind: str | None = None
    heads: int | None = None
    decoder_heads: int | None = None
    image_size: tuple[int, int] | None = None
    mask_ratio: float | None = None
    normalized: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    norm_eps: float | None = None


def hints_of(checkpoint: CheckpointFile) -> Hints:
    """The hints in a checkpoint's arguments or configuration.

    Raises:
        ValueError: it is of a Hugging Face model that cannot be imported.
    """
    if checkpoint.config.get("model_type"):
        return huggingface_hints(checkpoint.config, checkpoint.processor)
    args = checkpoint.args
    data = args.get("DATA")
    if isinstance(data, Mapping):  # SimMIM's configuration
        return Hints(image_size=height_width(data.get("IMG_SIZE")), mask_ratio=fraction(data.get("MASK_RATIO")))
    normalized = args.get("norm_pix_loss")
    return Hints(
        image_size=height_width(args.get("input_size")),
        mask_ratio=fraction(args.get("mask_ratio")),
        normalized=normalized if isinstance(normalized, bool) else None,
    )


def huggingface_hints(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Hints:
    """The hints in a Hugging Face configuration.

    Raises:
        ValueError: the model is of another kind, or has another activation function.
    """
    kind = config["model_type"]
    if kind not in ("vit_mae", "vit", "swin"):
        raise ValueError(f"config.json is of a {kind!r}; of Hugging Face's models ViT, ViTMAE and Swin can be imported")
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"config.json has hidden_act {config['hidden_act']!r}; only gelu can be imported")
    published, epsilon = 1e-5 if kind == "swin" else 1e-6, fraction(config.get("layer_norm_eps"))
    mean, std = processor.get("image_mean"), processor.get("image_std")
    return Hints(
        kind=kind,
        heads=positive_int(config.get("num_attention_heads")),
        decoder_heads=positive_int(config.get("decoder_num_attention_heads")),
        image_size=height_width(config.get("image_size")),
        mask_ratio=fraction(config.get("mask_ratio")),
        normalized=bool(config.get("norm_pix_loss", False)) if kind == "vit_mae" else None,
        mean=tuple(mean) if mean else None,
        std=tuple(std) if std else None,
        norm_eps=None if epsilon == published else epsilon,
    )


def positive_int(value: Any) -> int | None:
    """The value where it is a positive whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def fraction(value: Any) -> float | None:
    """The value where it is a number between 0 and 1."""
    return float(value) if isinstance(value, float) and math.isfinite(value) and 0 < value < 1 else None


def height_width(value: Any) -> tuple[int, int] | None:
    """A side, or two, as (H, W)."""
    if isinstance(value, list | tuple) and len(value) == 2 and positive_int(value[0]) and positive_int(value[1]):
        return value[0], value[1]
    return (value, value) if positive_int(value) else None
