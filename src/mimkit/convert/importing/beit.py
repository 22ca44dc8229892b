"""ViTs with relative positions: BEiT's and timm's names, and SimMIM's on ViT."""

from typing import Any

import torch

from mimkit.backbones.resize import window_of
from mimkit.convert.importing.hints import Hints
from mimkit.convert.importing.swin import change, undo_pixel_shuffle
from mimkit.convert.importing.vit import channel_settings, method_settings
from mimkit.convert.rename import Rules, Translation, Weights, backbone_name, count, move_fc_norm, rename
from mimkit.settings import ImportOptions

# timm's plain names: width, depth, heads, patch.
NAMES = {
    "beit_base_patch16_224": (768, 12, 12, 16),
    "beit_large_patch16_224": (1024, 24, 16, 16),
}
DENSE: Rules = (
    (r"patch_embed\.(.+)", r"encoder.model.patch_embed.stem.\1"),
    (r"mask_token", r"encoder.model.patch_embed.mask_token"),
    (r"((?:cls_token|pos_embed)|(?:blocks|norm|rel_pos_bias)\..+)", r"encoder.model.\1"),
    (r"decoder\.0\.(\w+)", r"decoders.0.head.\1"),
)
SHARED, OWN = "rel_pos_bias.relative_position_bias_table", "blocks.0.attn.relative_position_bias_table"


def beit(weights: Weights, hints: Hints, options: ImportOptions) -> Translation:
    """BEiT's names, with SimMIM's prefix and decoder or without."""
    weights = rename(weights, ((r"encoder\.(.+)", r"\1"),))
    weights, notes = move_fc_norm(weights)
    backbone, image_size = describe_beit(weights, hints, options)
    encoder_only = "decoder.0.weight" not in weights
    dim, channels = weights["patch_embed.proj.weight"].shape[:2]
    if "mask_token" not in weights:
        weights["mask_token"] = torch.zeros(dim)
        notes.append("it has no mask token, which only masked images need: set to zero")
    weights["mask_token"] = weights["mask_token"].flatten()
    if encoder_only and hints.mean is None:
        notes.append("BEiT's weights for ImageNet-22k expect images normalised by --mean 0.5 and --std 0.5")
    return Translation(
        recipe=options.recipe or "simmim-vit",
        backbone=backbone,
        image_size=image_size,
        settings=channel_settings(channels) | ({} if encoder_only else method_settings(hints, options)),
        weights=rename(change(weights, r"decoder\.0\.", lambda value: undo_pixel_shuffle(value, channels)), DENSE),
        dropped={},
        notes=notes,
        encoder_only=encoder_only,
    )


def describe_beit(weights: Weights, hints: Hints, options: ImportOptions) -> tuple[str, tuple[int, int]]:
    """timm's name of a BEiT with what differs from it, and the image size (H, W) of its positions.

    Raises:
        ValueError: it has no table of relative positions.
    """
    table = weights.get(SHARED, weights.get(OWN))
    if table is None:
        raise ValueError("it has neither a table of relative positions for all blocks nor one for each")
    dim, _, patch, _ = weights["patch_embed.proj.weight"].shape
    shape = (dim, count(weights, r"blocks\.(\d+)\."), table.shape[1], patch)
    base = next((name for name, usual in NAMES.items() if usual == shape), "beit_base_patch16_224")
    values = zip(("embed_dim", "depth", "num_heads", "patch_size"), shape, NAMES[base], strict=True)
    different: dict[str, Any] = {key: value for key, value, usual in values if value != usual}
    hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
    if hidden != 4 * dim:
        different["mlp_ratio"] = hidden / dim
    kinds = {
        "use_abs_pos_emb": "pos_embed" in weights,
        "use_rel_pos_bias": OWN in weights,
        "use_shared_rel_pos_bias": SHARED in weights,
        "init_values": 0.1 if "blocks.0.gamma_1" in weights else None,
    }
    side = window_of(len(table))[0] * patch
    return backbone_name(base, **different, **kinds), hints.image_size or (side, side)
