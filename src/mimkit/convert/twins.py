"""Our models as those of Hugging Face's transformers: class, configuration, weights.

Weights get the names that files on the Hub have, which all versions of transformers read.

Shapes: D width, N cells, P prefix tokens, w side of an attention window in tokens.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Mlp, PatchEmbed
from timm.layers.attention import Attention
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mimkit.backbones import DenseEncoder, Encoder, VisibleSwin, VisibleViT
from mimkit.convert.layout import Rules, Weights, rename
from mimkit.decoders import TransformerDecoder
from mimkit.grids import grid_for
from mimkit.losses import squared
from mimkit.masks import RandomMask
from mimkit.method import Method
from mimkit.readouts import Last
from mimkit.targets import Pixels

BLOCKS: Rules = (
    (r"(.+\.\d+)\.norm1\.(\w+)", r"\1.layernorm_before.\2"),
    (r"(.+\.\d+)\.norm2\.(\w+)", r"\1.layernorm_after.\2"),
    (r"(.+\.\d+)\.attn\.proj\.(\w+)", r"\1.attention.output.dense.\2"),
    (r"(.+\.\d+)\.attn\.(relative_position_bias_table)", r"\1.attention.self.\2"),
    (r"(.+\.\d+)\.mlp\.fc1\.(\w+)", r"\1.intermediate.dense.\2"),
    (r"(.+\.\d+)\.mlp\.fc2\.(\w+)", r"\1.output.dense.\2"),
)
AROUND: Rules = (
    (r"cls_token", r"embeddings.cls_token"),
    (r"pos_embed", r"embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"patch_embed\.norm\.(\w+)", r"embeddings.norm.\1"),
    (r"norm\.(\w+)", r"layernorm.\1"),
)
SWIN_EPSILON = 1e-5  # transformers has no other for the norms of stem and mergings


class Unlike(Exception):
    """What a model has, and transformers' class has not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Twin:
    """A model of transformers: the content of its config.json, and its weights by name."""

    config: dict[str, Any]
    weights: Weights

    @property
    def architecture(self) -> str:
        """The name of its class."""
        return self.config["architectures"][0]


def encoder_twin(encoder: Encoder) -> Twin:
    """ViTModel (without its pooler) or SwinModel.

    Raises:
        Unlike: neither is like it.
    """
    model = backbone_of(encoder)
    if isinstance(model, SwinTransformer):
        return swin_twin(model, encoder)
    if type(model) is not VisionTransformer:
        raise Unlike(f"it is a {type(model).__name__}; mimkit writes plain ViTs and Swin")
    config, weights = vit_parts(model, encoder)
    return Twin(config={"architectures": ["ViTModel"], "model_type": "vit", **config}, weights=weights)


def method_twin(method: Method) -> Twin:
    """ViTMAEForPreTraining, which gives the same loss for the same mask.

    Raises:
        Unlike: the method is not MAE as it is there.
    """
    encoder, mask = method.encoder, method.mask
    if not isinstance(encoder, VisibleViT) or encoder.mask_token is not None:
        raise Unlike("its encoder is no ViT that computes on visible tokens alone")
    config, weights = vit_parts(encoder.vit, encoder)
    if not config["qkv_bias"]:
        raise Unlike("its queries, keys and values have no bias, and the decoder's have one")
    if encoder.image_size[0] != encoder.image_size[1]:
        raise Unlike(f"its images of {encoder.image_size[0]} x {encoder.image_size[1]} pixels are not square")
    if type(method.readout) is not Last or method.readout.cells != (encoder.cell,):
        raise Unlike(f"its readout is {type(method.readout).__name__}, not the last block's patches")
    if type(method.target) is not Pixels:
        raise Unlike(f"its target is {type(method.target).__name__}, not the pixels")
    if method.distance is not squared:
        raise Unlike("its distance is not the squared one")
    if type(mask) is not RandomMask or mask.cell not in (None, encoder.cell) or mask.scored < 1 or mask.shared:
        raise Unlike("its masks do not hide random patches of each image, all of them in the loss")
    (decoder,) = method.decoders
    if type(decoder) is not TransformerDecoder or decoder.mask_token is None or decoder.rescale is not None:
        raise Unlike(f"its decoder is a {type(decoder).__name__} of another kind")
    if decoder.norm.eps != config["layer_norm_eps"]:
        raise Unlike(f"its encoder's norms add {config['layer_norm_eps']:g}, its decoder's {decoder.norm.eps:g}")
    grid = grid_for(encoder.image_size, encoder.cell)
    hidden = mask.sample(torch.zeros(1, dtype=torch.int64), encoder.image_size, encoder.cell).count
    width, block = decoder.embed.out_features, decoder.blocks[0]
    config |= {
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": len(decoder.blocks),
        "decoder_num_attention_heads": block.attn.num_heads,
        "decoder_intermediate_size": block.mlp.fc1.out_features,
        "mask_ratio": rounded_alike(mask.ratio, grid[0] * grid[1], hidden),
        "norm_pix_loss": method.target.normalized,
    }
    own = {name: value for name, value in decoder.state_dict().items() if name != "mask_token"}
    own = rename(
        split(own, "attention"),
        [
            *((pattern, f"decoder_{name}") for name in ("embed", "norm") for pattern in ()),
            (r"embed\.(\w+)", r"decoder_embed.\1"),
            (r"norm\.(\w+)", r"decoder_norm.\1"),
            (r"head\.(\w+)", r"decoder_pred.\1"),
        ],
    )
    return Twin(config=config, weights=weights)
