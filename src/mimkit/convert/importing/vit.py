"""Plain ViTs: MAE, MMPretrain's MAE, PixMIM and MFF, Hugging Face's ViT and ViTMAE, timm's.

All other formats are renamed to MAE's names first.

Shapes: D width, N cells, P prefix tokens, p side of a patch.
"""

import math
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mimkit.backbones.load import parse_name
from mimkit.convert.importing.hints import Hints
from mimkit.convert.rename import (
    NO_DECODER,
    Rules,
    Translation,
    Weights,
    backbone_name,
    count,
    drop,
    move_fc_norm,
    rename,
)
from mimkit.grids import Grid, grid_for, is_sincos
from mimkit.settings import ImportOptions

# timm's plain names: width, depth, heads, patch.
NAMES = {
    "vit_tiny_patch16_224": (192, 12, 3, 16),
    "vit_small_patch16_224": (384, 12, 6, 16),
    "vit_base_patch16_224": (768, 12, 12, 16),
    "vit_large_patch16_224": (1024, 24, 16, 16),
    "vit_huge_patch14_224": (1280, 32, 16, 14),
}
ENCODER: Rules = ((r"((?:cls_token|reg_token|pos_embed)|(?:patch_embed|blocks|norm|norm_pre)\..+)", r"encoder.vit.\1"),)
DECODER: Rules = (
    (r"mask_token", r"decoders.0.mask_token"),
    (r"decoder_pos_embed", r"decoders.0.positions"),
    (r"decoder_embed\.(\w+)", r"decoders.0.embed.\1"),
    (r"decoder_blocks\.(.+)", r"decoders.0.blocks.\1"),
    (r"decoder_norm\.(\w+)", r"decoders.0.norm.\1"),
    (r"decoder_pred\.(\w+)", r"decoders.0.head.\1"),
)


def mae(weights: Weights, hints: Hints, options: ImportOptions, recipe: str | None = None) -> Translation:
    """MAE's names, with the decoder or without; `recipe` where the format tells the method."""
    weights, notes = move_fc_norm(weights)
    backbone, image_size = describe_vit(weights, hints, options)
    _, channels, patch, _ = weights["patch_embed.proj.weight"].shape
    encoder_only = "decoder_pred.weight" not in weights
    dropped: dict[str, str] = {}
    settings = channel_settings(channels)
    if encoder_only:
        recipe = "mae"
        weights, dropped = drop(weights, NO_DECODER)
        if "pos_embed" in weights and not has_sincos(weights["pos_embed"], grid_for(image_size, patch)):
            name, values = parse_name(backbone)
            backbone = backbone_name(name, **values, sincos=False)
            if hints.mean is None:
                notes.append("images will be normalised with ImageNet's statistics; other models want --mean and --std")
    else:
        recipe = recipe or ("lsmae" if image_size == (448, 448) and patch == 16 else "mae")
        settings |= decoder_settings(weights, hints, options) | method_settings(hints, options)
        notes += target_notes(hints, options)
    return Translation(
        recipe=options.recipe or recipe,
        backbone=backbone,
        image_size=image_size,
        settings=settings,
        weights=rename(weights, [*ENCODER, *DECODER]),
        dropped=dropped,
        notes=notes,
        encoder_only=encoder_only,
    )


def mmpretrain(weights: Weights, hints: Hints, options: ImportOptions) -> Translation:
    """MMPretrain's and MMSelfSup's names: MAE, PixMIM with its filter as published, or MFF."""
    filtered = any(name.startswith("target_generator.") for name in weights)
    fused = any(name.endswith("proj_weights") for name in weights)
    recipe = {(False, False): "mae", (True, False): "pixmim", (False, True): "mff", (True, True): "pixmim-mff"}
    weights, dropped = drop(weights, ((r"target_generator\..*", "the low-pass filter, computed anew"),))
    weights = rename(weights, ((r"backbone\.(.+)", r"\1"),))
    weights = rename(
        weights,
        (
            (r"layers\.(\d+\..+)", r"blocks.\1"),
            (r"neck\.(decoder_.+|mask_token)", r"\1"),
            (r"neck\.ln1\.(\w+)", r"decoder_norm.\1"),
            (r"patch_embed\.projection\.(\w+)", r"patch_embed.proj.\1"),
            (r"ln1\.(\w+)", r"norm.\1"),
            (r"ln2\.(\w+)", r"fc_norm.\1"),
            (r"proj_layers\.(\d+\.\w+)", r"readout.projections.\1"),
            (r"proj_weights", r"readout.weights"),
        ),
    )
    weights = rename(
        weights,
        (
            (r"(.*blocks\.\d+)\.ln(\d)\.(\w+)", r"\1.norm\2.\3"),
            (r"(.*blocks\.\d+)\.ffn\.layers\.0\.0\.(\w+)", r"\1.mlp.fc1.\2"),
            (r"(.*blocks\.\d+)\.ffn\.layers\.1\.(\w+)", r"\1.mlp.fc2.\2"),
        ),
    )
    if fused:
        weights["readout.weights"] = weights["readout.weights"].flatten()
    if filtered and not options.target:
        options = replace(options, target="lowfreq-pixels-mmselfsup")
    translation = mae(weights, hints, options, recipe[filtered, fused])
    translation.dropped.update(dropped)
    return translation


def huggingface(weights: Weights, hints: Hints, options: ImportOptions) -> Translation:
    """Hugging Face's names of ViT and ViTMAE, those of published files and those since transformers 5."""
    weights = rename(weights, ((r"vit\.(.+)", r"\1"), (r"decoder\.(decoder_.+|mask_token)", r"\1")))
    weights, dropped = drop(
        weights,
        (
            (r"embeddings\.mask_token", "ViTForMaskedImageModeling's, which is not imported"),
            (r"decoder\.0\.\w+", "the decoder of ViTForMaskedImageModeling, which is not imported"),
        ),
    )
    weights = rename(
        weights,
        (
            (r"embeddings\.cls_token", r"cls_token"),
            (r"embeddings\.position_embeddings", r"pos_embed"),
            (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
            (r"(?:encoder\.layer|layers)\.(\d+\..+)", r"blocks.\1"),
            (r"layernorm\.(\w+)", r"norm.\1"),
            (r"decoder_(?:encoder\.layer|layers)\.(.+)", r"decoder_blocks.\1"),  # transformers 5 writes the former
        ),
    )
    translation = mae(huggingface_blocks(weights), hints, options)
    translation.dropped.update(dropped)
    return translation


def huggingface_blocks(weights: Weights) -> Weights:
    """Hugging Face's names inside the blocks of a ViT or Swin to timm's; query, key and value become one matrix."""
    query = re.compile(r"(.*?)\.attention\.(?:attention\.|self\.)?(?:q_proj|query)\.(weight|bias)")
    joined: Weights = {}
    taken: set[str] = set()
    for name in weights:
        match = query.fullmatch(name)
        if match:
            others = [name.replace("q_proj", f"{part[0]}_proj").replace("query", part) for part in ("key", "value")]
            if all(other in weights for other in others):
                joined[f"{match[1]}.attn.qkv.{match[2]}"] = torch.cat([weights[n] for n in (name, *others)])
                taken.update((name, *others))
    rest = {name: value for name, value in weights.items() if name not in taken}
    return joined | rename(
        rest,
        (
            (r"(.*)\.layernorm_before\.(\w+)", r"\1.norm1.\2"),
            (r"(.*)\.layernorm_after\.(\w+)", r"\1.norm2.\2"),
            (r"(.*?)\.attention\.(?:output\.dense|o_proj)\.(\w+)", r"\1.attn.proj.\2"),
            (r"(.*?)\.attention\.\w+\.(relative_position_bias_table|relative_position_index)", r"\1.attn.\2"),
            (r"(.*)\.intermediate\.dense\.(\w+)", r"\1.mlp.fc1.\2"),
            (r"(.*blocks\.\d+)\.output\.dense\.(\w+)", r"\1.mlp.fc2.\2"),
        ),
    )


def describe_vit(weights: Weights, hints: Hints, options: ImportOptions) -> tuple[str, tuple[int, int]]:
    """timm's name of a plain ViT with what differs from it, and the image size (H, W) of its positions.

    Raises:
        ValueError: its heads are not known, or its positions form no square.
    """
    dim, _, patch, _ = weights["patch_embed.proj.weight"].shape
    depth = count(weights, r"blocks\.(\d+)\.")
    heads = options.heads or hints.heads or published_heads(dim)
    base = next((name for name, shape in NAMES.items() if shape[:3] == (dim, depth, heads)), "vit_base_patch16_224")
    different = {
        key: value
        for key, value, usual in zip(
            ("embed_dim", "depth", "num_heads", "patch_size"), (dim, depth, heads, patch), NAMES[base], strict=True
        )
        if value != usual
    }
    more: dict[str, Any] = {}
    hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
    if hidden != 4 * dim:
        more["mlp_ratio"] = hidden / dim
    if "blocks.0.attn.qkv.bias" not in weights:
        more["qkv_bias"] = False
    if "blocks.0.ls1.gamma" in weights:
        more["init_values"] = 1e-5
    if "norm_pre.weight" in weights:
        more["pre_norm"] = True
    if "cls_token" not in weights:
        more["class_token"] = False
    if "reg_token" in weights:
        more["reg_tokens"] = weights["reg_token"].shape[1]
    prefix = more.get("reg_tokens", 0) + ("cls_token" in weights)
    if "pos_embed" not in weights:
        return backbone_name(base, **different, **more, pos_embed="none"), hints.image_size or (224, 224)
    rows = weights["pos_embed"].shape[1]
    image_size = image_size_for(rows - prefix, patch, hints)
    if image_size is None and prefix:
        image_size = image_size_for(rows, patch, hints)
        more["no_embed_class"] = True
    if image_size is None:
        raise ValueError(f"pos_embed has {rows} rows, which with {prefix} prefix tokens make no square grid of patches")
    return backbone_name(base, **different, **more), image_size


def has_sincos(table: Tensor, grid: Grid) -> bool:
    """Whether a table [1, P + N, D] holds the fixed sine-cosine positions of a grid's N cells, whatever the prefix."""
    return is_sincos(table[:, -grid[0] * grid[1] :], grid)


def image_size_for(cells: int, patch: int, hints: Hints) -> tuple[int, int] | None:
    """The image size (H, W) of so many cells: what the checkpoint says, if it fits, else a square, if they form one."""
    if hints.image_size:
        height, width = hints.image_size
        if height % patch == 0 and width % patch == 0 and (height // patch) * (width // patch) == cells:
            return hints.image_size
    side = math.isqrt(max(cells, 0))
    return (side * patch, side * patch) if cells > 0 and side * side == cells else None


def published_heads(dim: int) -> int:
    """Heads of a published ViT of that width: of 64 channels each, ViT-H's of 80.

    Raises:
        ValueError: the width is no multiple of 64.
    """
    if dim == 1280:
        return 16
    if dim % 64:
        raise ValueError(f"--heads: weights do not show how many heads a width of {dim} is split into; say it")
    return dim // 64


def decoder_settings(weights: Weights, hints: Hints, options: ImportOptions) -> dict[str, Any]:
    """Width, depth and heads of MAE's decoder: heads of 32 channels, as published.

    Raises:
        ValueError: the heads are not known.
    """
    width = weights["decoder_embed.weight"].shape[0]
    heads = options.decoder_heads or hints.decoder_heads
    if heads is None and width % 32:
        raise ValueError(
            f"--decoder-heads: weights do not show how many heads a width of {width} is split into; say it"
        )
    depth = count(weights, r"decoder_blocks\.(\d+)\.")
    return {"decoder_width": width, "decoder_depth": depth, "decoder_heads": heads or width // 32}


def channel_settings(channels: int) -> dict[str, Any]:
    """Image channels, where they are not three.

    Raises:
        ValueError: they are neither one nor three.
    """
    if channels not in (1, 3):
        raise ValueError(f"the patch embedding takes {channels} channels; images have 1 or 3")
    return {"channels": channels} if channels != 3 else {}


def method_settings(hints: Hints, options: ImportOptions) -> dict[str, Any]:
    """Mask ratio and target, where they are known."""
    target = options.target or ("raw-pixels" if hints.normalized is False else None)
    settings = {"mask_ratio": hints.mask_ratio, "target": target}
    return {name: value for name, value in settings.items() if value is not None}


def target_notes(hints: Hints, options: ImportOptions) -> list[str]:
    """A note where the checkpoint does not tell the target."""
    if options.target or hints.normalized is not None:
        return []
    return ["taken to predict patch-normalised pixels; MAE's `visualize` weights want --target raw-pixels"]
