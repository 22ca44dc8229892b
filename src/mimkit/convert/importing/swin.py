"""Swin: SimMIM, GreenMIM, MMPretrain's SimMIM, Hugging Face's, Microsoft's and timm's own names.

All other formats are renamed to timm's names first.

Shapes: D width, w side of a window, s side of a cell in pixels.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mimkit.backbones.resize import window_of
from mimkit.convert.importing.hints import Hints
from mimkit.convert.importing.vit import (
    DECODER,
    channel_settings,
    decoder_settings,
    huggingface_blocks,
    method_settings,
    target_notes,
)
from mimkit.convert.rename import NO_DECODER, Rules, Translation, Weights, backbone_name, count, drop, rename
from mimkit.settings import ImportOptions

# timm's plain names: width, depths, heads.
NAMES = {
    "swin_tiny_patch4_window7_224": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small_patch4_window7_224": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base_patch4_window7_224": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_large_patch4_window7_224": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
DENSE: Rules = (
    (r"patch_embed\.(.+)", r"encoder.model.patch_embed.stem.\1"),
    (r"mask_token", r"encoder.model.patch_embed.mask_token"),
    (r"((?:layers|norm)\..+)", r"encoder.model.\1"),
    (r"decoder\.0\.(\w+)", r"decoders.0.head.\1"),
)
VISIBLE: Rules = ((r"((?:patch_embed|layers|norm)\..+)", r"encoder.swin.\1"),)


def simmim(weights: Weights, hints: Hints, options: ImportOptions) -> Translation:
    """SimMIM's names, and timm's and Microsoft's, which lack the mask token and the decoder."""
    weights = rename(weights, ((r"encoder\.(.+)", r"\1"),))
    weights = change(move_merging(weights), r"layers\.\d+\.downsample\.", merge_order(options))
    backbone, image_size = describe_swin(weights, hints, options)
    encoder_only = "decoder.0.weight" not in weights
    notes = []
    if "mask_token" not in weights:
        weights["mask_token"] = torch.zeros(weights["patch_embed.proj.weight"].shape[0])
        notes.append("it has no mask token, which only masked images need: set to zero")
    weights["mask_token"] = weights["mask_token"].flatten()
    channels = weights["patch_embed.proj.weight"].shape[1]
    return Translation(
        recipe=options.recipe or "simmim",
        backbone=backbone,
        image_size=image_size,
        settings=channel_settings(channels) | ({} if encoder_only else method_settings(hints, options)),
        weights=rename(change(weights, r"decoder\.0\.", lambda value: undo_pixel_shuffle(value, channels)), DENSE),
        dropped={},
        notes=notes,
        encoder_only=encoder_only,
    )


def mmpretrain(weights: Weights, hints: Hints, options: ImportOptions) -> Translation:
    """MMPretrain's and MMSelfSup's names, whose merging concatenates each channel's four tokens."""
    weights = rename(weights, ((r"backbone\.(.+)", r"\1"), (r"neck\.(.+)", r"\1")))
    weights = rename(
        weights,
        (
            (r"stages\.(\d+\.blocks\.\d+)\.attn\.w_msa\.(.+)", r"layers.\1.attn.\2"),
            (r"stages\.(\d+\.blocks\.\d+)\.ffn\.layers\.0\.0\.(\w+)", r"layers.\1.mlp.fc1.\2"),
            (r"stages\.(\d+\.blocks\.\d+)\.ffn\.layers\.1\.(\w+)", r"layers.\1.mlp.fc2.\2"),
            (r"stages\.(.+)", r"layers.\1"),
            (r"patch_embed\.projection\.(\w+)", r"patch_embed.proj.\1"),
            (r"norm3\.(\w+)", r"norm.\1"),
        ),
    )

    def in_timms_order(value: Tensor) -> Tensor:
        """Inputs at 4·c + 2·row + column to those at (2·column + row)·C + c."""
        return value.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)

    return simmim(change(weights, r"layers\.\d+\.downsample\.", in_timms_order), hints, options)


def huggingface(weights: Weights, hints: Hints, options: ImportOptions) -> Translation:
    """Hugging Face's names, those of published files and those since transformers 5."""
    weights = rename(weights, ((r"swin\.(.+)", r"\1"),))
    weights = rename(
        weights,
        (
            (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
            (r"embeddings\.norm\.(\w+)", r"patch_embed.norm.\1"),
            (r"embeddings\.mask_token", r"mask_token"),
            (r"encoder\.layers\.(.+)", r"layers.\1"),
            (r"layernorm\.(\w+)", r"norm.\1"),
        ),
    )
    return simmim(huggingface_blocks(weights), hints, options)


def greenmim(weights: Weights, hints: Hints, options: ImportOptions) -> Translation:
    """GreenMIM's names: SimMIM's for the encoder, MAE's for the decoder."""
    weights = rename(weights, ((r"encoder\.(.+)", r"\1"),))
    weights = change(move_merging(weights), r"layers\.\d+\.downsample\.", merge_order(options))
    backbone, image_size = describe_swin(weights, hints, options)
    settings = channel_settings(weights["patch_embed.proj.weight"].shape[1])
    notes = merge_notes(options)
    encoder_only = "decoder_pred.weight" not in weights
    dropped: dict[str, str] = {}
    if encoder_only:
        weights, dropped = drop(weights, NO_DECODER)
    else:
        settings |= decoder_settings(weights, hints, options) | method_settings(hints, options)
        notes += target_notes(hints, options)
    return Translation(
        recipe=options.recipe or "greenmim",
        backbone=backbone,
        image_size=image_size,
        settings=settings,
        weights=rename(weights, [*VISIBLE, *DECODER]),
        dropped=dropped,
        notes=notes,
        encoder_only=encoder_only,
    )


def describe_swin(weights: Weights, hints: Hints, options: ImportOptions) -> tuple[str, tuple[int, int]]:
    """timm's name of a Swin with what differs from it, and the image size (H, W).

    The last stage's window covers its whole grid, as it does in all published models, unless the checkpoint says
    another image size.
    """
    dim, _, patch, _ = weights["patch_embed.proj.weight"].shape
    stages = range(count(weights, r"layers\.(\d+)\.blocks\."))
    depths = tuple(count(weights, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in stages)
    tables = [weights[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in stages]
    heads = tuple(table.shape[1] for table in tables)
    windows = [window_of(len(table))[0] for table in tables]
    side = windows[-1] * last_cell(weights)
    window = options.window or max(windows)
    if options.window:
        side = side * options.window // max(windows)
    shape = (dim, depths, heads)
    base = next((name for name, usual in NAMES.items() if usual == shape), "swin_base_patch4_window7_224")
    values = zip(("embed_dim", "depths", "num_heads"), shape, NAMES[base], strict=True)
    different: dict[str, Any] = {key: value for key, value, usual in values if value != usual}
    if window != 7:
        different["window_size"] = window
    if patch != 4:
        different["patch_size"] = patch
    hidden = weights["layers.0.blocks.0.mlp.fc1.weight"].shape[0]
    if hidden != 4 * dim:
        different["mlp_ratio"] = hidden / dim
    image_size = hints.image_size if hints.image_size and not options.window else (side, side)
    return backbone_name(base, **different), image_size


def last_cell(weights: Weights) -> int:
    """Side of the last stage's cells in pixels."""
    patch = weights["patch_embed.proj.weight"].shape[2]
    return patch * 2 ** (count(weights, r"layers\.(\d+)\.blocks\.") - 1)


def move_merging(weights: Weights) -> Weights:
    """Move patch merging from the end of a stage (Microsoft's code) to the start of the next (timm's)."""
    if "layers.0.downsample.reduction.weight" not in weights:
        return weights
    moved = {}
    for name, value in weights.items():
        layers, _, rest = name.partition(".")
        stage, _, inner = rest.partition(".")
        later = layers == "layers" and inner.startswith("downsample.")
        moved[f"layers.{int(stage) + 1}.{inner}" if later else name] = value
    return moved


def merge_order(options: ImportOptions) -> Callable[[Tensor], Tensor]:
    """The reordering of a patch merging's inputs [..., 4·C]: none, or from row-first to column-first."""
    if options.patch_merge_order == "published":
        return lambda value: value
    return lambda value: value.unflatten(-1, (2, 2, -1)).transpose(-2, -3).flatten(-3)


def merge_notes(options: ImportOptions) -> list[str]:
    """A note on patch merging, for formats whose checkpoints may be row-first."""
    if options.patch_merge_order == "column":
        return ["patch merging: taken to be row-first, put in the order of Microsoft's and timm's Swin"]
    return [
        "patch merging: kept as published, as its authors fine-tune it; files trained row-first (LocalMIM, GreenMIM "
        "before 2023) come nearer to their pre-training with --patch-merge-order column"
    ]


def change(weights: Weights, beginning: str, function: Callable[[Tensor], Tensor]) -> Weights:
    """The weights, with the function applied to those whose names begin with the pattern."""
    return {name: function(value) if re.match(beginning, name) else value for name, value in weights.items()}


def undo_pixel_shuffle(value: Tensor, channels: int) -> Tensor:
    """SimMIM's head, a 1 x 1 convolution before a pixel shuffle, as a linear layer.

    Its outputs [C·s·s, ...] go from (channel, row, column) to `patchify`'s (row, column, channel).
    """
    side = math.isqrt(len(value) // channels)
    return value.flatten(1 if value.ndim > 1 else 0).unflatten(0, (channels, side, side)).movedim(0, 2).flatten(0, 2)
