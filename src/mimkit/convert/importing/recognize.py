"""The format of a checkpoint, recognised by the names of its weights."""

import re
from collections.abc import Iterable, Sequence
from enum import Enum


class Format(Enum):
    """The formats that can be imported."""

    MAE = "MAE with its decoder"
    VIT = "plain ViT with timm's names (MAE's encoder, or timm's)"
    LOCALMIM_VIT = "LocalMIM on ViT"
    LOCALMIM_SWIN = "LocalMIM on Swin"
    GREENMIM = "GreenMIM"
    SIMMIM_VIT = "SimMIM on ViT"
    SIMMIM_SWIN = "SimMIM on Swin"
    SWIN = "Swin with Microsoft's or timm's names"
    CONVMAE = "ConvMAE with its decoder"
    CONVMAE_ENCODER = "ConvMAE's encoder, fine-tuned"
    BEIT = "BEiT, or timm's"
    MM_VIT = "MMPretrain's MAE, PixMIM or MFF"
    MM_SWIN = "MMPretrain's SimMIM on Swin"
    HF_VITMAE = "Hugging Face ViTMAE with its decoder"
    HF_VIT = "Hugging Face ViT, or ViTMAE's encoder"
    HF_SWIN = "Hugging Face Swin"


LICENCES = {
    Format.MAE: "MAE's weights: CC BY-NC 4.0, not for commercial use",
    Format.VIT: "MAE's weights: CC BY-NC 4.0, not for commercial use; timm's: see the model's card",
    Format.LOCALMIM_VIT: "LocalMIM's repository has no licence that allows commercial use: ask its authors",
    Format.LOCALMIM_SWIN: "LocalMIM's repository has no licence that allows commercial use: ask its authors",
    Format.GREENMIM: "GreenMIM's repository has no licence that allows commercial use: ask its authors",
    Format.SIMMIM_VIT: "SimMIM's weights: MIT",
    Format.SIMMIM_SWIN: "SimMIM's weights: MIT",
    Format.SWIN: "Microsoft's weights: MIT; timm's: see the model's card",
    Format.CONVMAE: "ConvMAE's weights: MIT",
    Format.CONVMAE_ENCODER: "ConvMAE's weights: MIT",
    Format.BEIT: "BEiT's weights: MIT; timm's: see the model's card",
    Format.MM_VIT: "MMPretrain's weights: Apache-2.0",
    Format.MM_SWIN: "MMPretrain's weights: Apache-2.0",
    Format.HF_VITMAE: "Hugging Face: see the model's card (MAE's own weights are CC BY-NC 4.0)",
    Format.HF_VIT: "Hugging Face: see the model's card (MAE's own weights are CC BY-NC 4.0)",
    Format.HF_SWIN: "Hugging Face: see the model's card",
}

# The first format whose names are all present, without the prefix of a backbone, is the checkpoint's.
SIGNATURES: tuple[tuple[Format, tuple[str, ...]], ...] = (
    (Format.HF_VITMAE, ("embeddings.cls_token", "decoder.decoder_embed.weight")),
    (Format.HF_SWIN, ("embeddings.patch_embeddings.projection.weight", "embeddings.norm.weight")),
    (Format.HF_VIT, ("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight")),
    (Format.MM_SWIN, ("patch_embed.projection.weight", "stages.0.blocks.0.attn.w_msa.qkv.weight")),
    (Format.MM_VIT, ("patch_embed.projection.weight", "layers.0.ln1.weight")),
    (Format.CONVMAE, ("patch_embed4.weight", "decoder_pred.weight")),
    (Format.CONVMAE_ENCODER, ("patch_embed4.weight",)),
    (Format.LOCALMIM_VIT, ("patch_embed.proj.weight", "norm.0.weight", "decoder.0.mask_token")),
    (Format.LOCALMIM_SWIN, ("encoder.layers.0.blocks.0.attn.qkv.weight", "encoder.norm.0.weight")),
    (Format.SIMMIM_VIT, ("encoder.blocks.0.attn.qkv.weight", "encoder.mask_token")),
    (Format.SIMMIM_SWIN, ("encoder.layers.0.blocks.0.attn.qkv.weight", "encoder.mask_token")),
    (Format.GREENMIM, ("encoder.layers.0.blocks.0.attn.qkv.weight",)),
    (Format.BEIT, ("patch_embed.proj.weight", "blocks.0.attn.q_bias")),
    (Format.SWIN, ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")),
    (Format.MAE, ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "decoder_pred.weight")),
    (Format.VIT, ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")),
)
BACKBONE = re.compile(r"^(backbone|vit|swin)\.")


def recognize(names: Iterable[str]) -> Format:
    """The format with these names of weights.

    Raises:
        ValueError: no known format has them.
    """
    bare = {BACKBONE.sub("", name) for name in names}
    for found, signature in SIGNATURES:
        if bare.issuperset(signature):
            return found
    raise ValueError(f"weights named {first_names(sorted(bare))} are of no format that mimkit can import")


def first_names(names: Sequence[str]) -> str:
    """Up to five of the names."""
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
