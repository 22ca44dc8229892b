"""Our models as those of Hugging Face's transformers: class, configuration, weights.

Weights get the names that files on the Hub have, which old and new versions of transformers read.
"""

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Mlp, PatchEmbed
from timm.layers.attention import Attention
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from mimkit.backbones import DenseEncoder, Encoder, VisibleSwin, VisibleViT
from mimkit.backbones.dense import MaskedStem
from mimkit.convert.rename import Rules, Weights, rename
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
    (r"(.+\.\d+)\.attn\.(relative_position_\w+)", r"\1.attention.self.\2"),
    (r"(.+\.\d+)\.mlp\.fc1\.(\w+)", r"\1.intermediate.dense.\2"),
    (r"(.+\.\d+)\.mlp\.fc2\.(\w+)", r"\1.output.dense.\2"),
)
AROUND: Rules = (
    (r"cls_token", r"embeddings.cls_token"),
    (r"pos_embed", r"embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"patch_embed\.norm\.(\w+)", r"embeddings.norm.\1"),
    (r"norm\.(\w+)", r"layernorm.\1"),
    (r"blocks\.(.+)", r"encoder.layer.\1"),
    (r"layers\.(.+)", r"encoder.layers.\1"),
)
DECODER: Rules = (
    (r"embed\.(\w+)", r"decoder.decoder_embed.\1"),
    (r"mask_token", r"decoder.mask_token"),
    (r"blocks\.(.+)", r"decoder.decoder_layers.\1"),
    (r"norm\.(\w+)", r"decoder.decoder_norm.\1"),
    (r"head\.(\w+)", r"decoder.decoder_pred.\1"),
)
SWIN_EPSILON = 1e-5  # transformers has no other for the norms of stem and mergings


class NotRepresentable(Exception):
    """A property of a model that transformers' class does not have."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformersModel:
    """A model of transformers: the content of its config.json, and its weights by name."""

    config: dict[str, Any]
    weights: Weights

    @property
    def architecture(self) -> str:
        """The name of its class."""
        return self.config["architectures"][0]


def convert_encoder(encoder: Encoder) -> TransformersModel:
    """ViTModel (without its pooler) or SwinModel.

    Raises:
        NotRepresentable: it is neither.
    """
    model = model_of(encoder)
    if isinstance(model, SwinTransformer):
        return convert_swin(model, encoder)
    if type(model) is not VisionTransformer:
        raise NotRepresentable(f"it is a {type(model).__name__}; of encoders, plain ViT and Swin have one")
    config, weights = vit_config_and_weights(model, encoder)
    return TransformersModel(config={"architectures": ["ViTModel"], "model_type": "vit", **config}, weights=weights)


def model_of(encoder: Encoder) -> Any:
    """timm's model in an encoder, or the encoder itself."""
    match encoder:
        case VisibleViT():
            return encoder.vit
        case VisibleSwin():
            return encoder.swin
        case DenseEncoder():
            return encoder.model
    return encoder


def convert_method(method: Method) -> TransformersModel:
    """ViTMAEForPreTraining, which gives the same loss for the same mask.

    Raises:
        NotRepresentable: the method is not MAE as transformers has it.
    """
    encoder, mask = method.encoder, method.mask
    if not isinstance(encoder, VisibleViT) or encoder.mask_token is not None:
        raise NotRepresentable("its encoder is no ViT that computes on visible tokens alone")
    encoder_config, encoder_weights = vit_config_and_weights(encoder.vit, encoder)
    require(encoder_config["qkv_bias"], "its queries, keys and values have no bias, as the decoder's have")
    require(encoder.image_size[0] == encoder.image_size[1], f"its images of {encoder.image_size} are not square")
    target, readout = method.target, type(method.readout).__name__
    require(type(method.readout) is Last and method.readout.cells == (encoder.cell,), f"its readout is {readout}")
    if type(target) is not Pixels:
        raise NotRepresentable(f"its target is {type(target).__name__}")
    require(method.distance is squared, "its distance is not the squared one")
    (decoder,) = method.decoders
    if type(decoder) is not TransformerDecoder or decoder.mask_token is None or decoder.rescale is not None:
        raise NotRepresentable(f"its decoder is another {type(decoder).__name__}")
    blocks: list[Any] = list(decoder.blocks)
    for block in blocks:
        require_plain_block(block, encoder_config["layer_norm_eps"])
    if type(mask) is not RandomMask or mask.cell not in (None, encoder.cell) or mask.scored < 1 or mask.shared:
        raise NotRepresentable(f"its masks are not those of MAE: {mask}")

    grid = grid_for(encoder.image_size, encoder.cell)
    hidden = mask.sample(torch.zeros(1, dtype=torch.int64), mask.grid(encoder.image_size, encoder.cell)).count
    config = {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        **encoder_config,
        "decoder_hidden_size": decoder.embed.out_features,
        "decoder_num_hidden_layers": len(blocks),
        "decoder_num_attention_heads": blocks[0].attn.num_heads,
        "decoder_intermediate_size": blocks[0].mlp.fc1.out_features,
        "mask_ratio": ratio_that_hides(hidden, grid[0] * grid[1], near=mask.ratio),
        "norm_pix_loss": target.normalized,
    }
    weights = {f"vit.{name}": value for name, value in encoder_weights.items()}
    weights |= rename(rename(split(decoder.state_dict(), "attention"), BLOCKS), DECODER)
    positions = weights.pop("positions")
    weights["decoder.decoder_pos_embed"] = nn.functional.pad(positions, (0, 0, 1, 0))  # of the class token: zero
    return TransformersModel(config=config, weights=weights)


def ratio_that_hides(hidden: int, cells: int, *, near: float) -> float:
    """A mask ratio at which transformers, which rounds binary fractions down, hides so many of the cells."""
    return near if cells - int(cells * (1 - near)) == hidden else (hidden - 0.5) / cells


def vit_config_and_weights(vit: VisionTransformer, encoder: Encoder) -> tuple[dict[str, Any], Weights]:
    """Configuration and weights that ViT and ViTMAE have in common.

    Raises:
        NotRepresentable: it is no plain ViT.
    """
    stem: Any = vit.patch_embed.stem if isinstance(vit.patch_embed, MaskedStem) else vit.patch_embed
    require(isinstance(vit.norm_pre, nn.Identity), "it has a norm before its blocks")
    require_plain_stem(stem)
    require(isinstance(stem.norm, nn.Identity), "it has a norm after its patch embedding")
    require(vit.cls_token is not None, "it has no class token")
    require(vit.reg_token is None, f"it has register tokens, {vit.num_reg_tokens} of them")
    epsilon = epsilon_of(vit.norm)
    for block in vit.blocks:
        require_plain_block(block, epsilon)
    weights = encoder.timm_weights()
    positions = weights.get("pos_embed")
    if positions is None:
        positions = vit.cls_token.new_zeros(1, 1 + stem.num_patches, vit.embed_dim)
    elif vit.no_embed_class:
        positions = nn.functional.pad(positions, (0, 0, 1, 0))
    block = vit.blocks[0]
    config = {
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": epsilon,
        "image_size": side_or_sides(encoder),
        "patch_size": stem.patch_size[0],
        "num_channels": encoder.channels,
        "qkv_bias": block.attn.qkv.bias is not None,
    }
    return config, rename(rename(split(weights | {"pos_embed": positions}, "attention"), BLOCKS), AROUND)


def convert_swin(swin: SwinTransformer, encoder: Encoder) -> TransformersModel:
    """SwinModel.

    Raises:
        NotRepresentable: it differs.
    """
    require_plain_stem(swin.patch_embed.stem if isinstance(swin.patch_embed, MaskedStem) else swin.patch_embed)
    require(epsilon_of(swin.patch_embed.norm) == SWIN_EPSILON, f"its stem's norm does not add {SWIN_EPSILON}")
    first, epsilon = swin.layers[0].blocks[0], epsilon_of(swin.norm)
    side = first.window_size[0]
    for i, stage in enumerate(swin.layers):
        for j, block in enumerate(stage.blocks):
            require_plain_block(block, epsilon, kind=SwinTransformerBlock)
            require(block.dim == first.dim * 2**i, "its widths do not double from stage to stage")
            window, grid = block.window_size, block.input_resolution
            require(window == (side, side), f"it has windows of {first.window_size} and of {window} tokens")
            fits = grid[0] % side == grid[1] % side == 0  # else both pad, one before it moves windows, one after
            require(fits, f"its windows of {side} tokens do not divide a stage of {grid[0]} x {grid[1]}")
            shift = side // 2 if j % 2 and min(grid) > side else 0
            require(block.shift_size == (shift, shift), f"its windows over {grid} tokens move by {block.shift_size}")
        if i > 0:
            require(epsilon_of(stage.downsample.norm) == SWIN_EPSILON, f"its mergings do not add {SWIN_EPSILON}")
    config = {
        "architectures": ["SwinModel"],
        "model_type": "swin",
        "embed_dim": first.dim,
        "depths": [len(stage.blocks) for stage in swin.layers],
        "num_heads": [stage.blocks[0].attn.num_heads for stage in swin.layers],
        "window_size": side,
        "mlp_ratio": first.mlp.fc1.out_features / first.dim,
        "qkv_bias": first.attn.qkv.bias is not None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "use_absolute_embeddings": False,
        "layer_norm_eps": epsilon,
        "image_size": side_or_sides(encoder),
        "patch_size": swin.patch_embed.patch_size[0],
        "num_channels": encoder.channels,
    }
    # timm merges patches at the beginning of a stage, transformers at the end of the one before.
    moved = {}
    for name, value in encoder.timm_weights().items():
        layers, stage_index, *rest = name.split(".")
        if layers == "layers" and rest[0] == "downsample":
            name = ".".join([layers, str(int(stage_index) - 1), *rest])
        moved[name] = value
    for name, module in swin.named_modules():
        if isinstance(module, WindowAttention):  # versions before 5 want these indices; others compute them
            moved[f"{name}.relative_position_index"] = module.relative_position_index.clone()
    return TransformersModel(config=config, weights=rename(rename(split(moved, "self"), BLOCKS), AROUND))


def require_plain_stem(stem: Any) -> None:
    """Patches are embedded by one convolution.

    Raises:
        NotRepresentable: they are not, or are not square.
    """
    require(type(stem) is PatchEmbed, f"it embeds patches with a {type(stem).__name__}")
    require(stem.patch_size[0] == stem.patch_size[1], f"its patches of {stem.patch_size} pixels are not square")
    require(stem.proj.bias is not None, "its patch embedding has no bias")


def require_plain_block(block: Any, epsilon: float, *, kind: type[nn.Module] = Block) -> None:
    """Norm, attention, norm, MLP with GELU, nothing else.

    Raises:
        NotRepresentable: it differs.
    """
    require(type(block) is kind, f"its blocks are of timm's {type(block).__name__}")
    attention, mlp = block.attn, block.mlp
    if kind is Block:
        require(isinstance(block.ls1, nn.Identity), "its blocks have LayerScale")
        require(type(attention) is Attention, f"its attention is timm's {type(attention).__name__}")
        require(isinstance(attention.q_norm, nn.Identity), "its queries and keys are normed")
        gated = any(name == "gate" for name, _ in attention.named_children())
        require(isinstance(attention.norm, nn.Identity) and not gated, "its attention is normed or gated")
    require(attention.qkv.out_features == 3 * attention.qkv.in_features, "its heads do not make up its width")
    require(attention.proj.bias is not None, "its linear layers have no bias")
    require(type(mlp) is Mlp, f"its MLPs are timm's {type(mlp).__name__}")
    require(isinstance(mlp.norm, nn.Identity), "its MLPs are normed")
    exact = isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none"
    require(exact, f"its MLPs have {type(mlp.act).__name__}, not the exact GELU")
    for norm in (block.norm1, block.norm2):
        require(epsilon_of(norm) == epsilon, f"its norms add {epsilon_of(norm):g} here and {epsilon:g} there")


def epsilon_of(norm: nn.Module) -> float:
    """What a LayerNorm adds to the variance.

    Raises:
        NotRepresentable: it is not one, or has no weights.
    """
    if isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None:
        return norm.eps
    raise NotRepresentable(
        "it has no final norm" if isinstance(norm, nn.Identity) else f"its norms are {type(norm).__name__}"
    )


def require(is_like: bool, difference: str) -> None:
    """Raises NotRepresentable with the difference, unless the model is like transformers' class."""
    if not is_like:
        raise NotRepresentable(difference)


def side_or_sides(encoder: Encoder) -> int | list[int]:
    """The image size as configurations give it."""
    height, width = encoder.image_size
    return height if height == width else [height, width]


def split(weights: Weights, name: str) -> Weights:
    """The weights with separate query, key and value, under `attention.{name}`."""
    apart = {}
    for path, value in weights.items():
        block, qkv, kind = path.partition(".attn.qkv.")
        if qkv:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                apart[f"{block}.attention.{name}.{part}.{kind}"] = (
                    rows.clone()
                )  # safetensors refuses overlapping tensors
        else:
            apart[path] = value
    return apart
