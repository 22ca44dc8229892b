"""timm's families of backbones, made small: what `DenseEncoder` must find out about each, and encoders of them."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest.mock import patch

import timm
import torch
from timm.models import mvitv2
from torch import Tensor, nn

from helpers import parts
from mimkit.backbones import DenseEncoder, create_encoder

SIZE = (64, 128)
DEPTHS, HEADS, WIDTHS = (1, 1, 2, 1), (1, 1, 2, 2), (8, 16, 24, 32)
PYRAMID = ((8, 4), (16, 8), (24, 16), (32, 32))


@dataclass(frozen=True)
class Family:
    """One small model.

    Args:
        model: timm's name.
        options: of timm's model.
        levels: (width, cell) of each tap.
        stem: where the module stands that reads the pixels.
        layout: of what it gives.
        cell: the smallest that can be hidden.
        norm: where the final norm stands.
        sized: the model is built for one image size.
        features: timm's own `forward_features` ends with that norm, or with the last tap where there is none.
    """

    model: str
    levels: tuple[tuple[int, int], ...]
    stem: str
    layout: str
    cell: int
    norm: str | None = None
    sized: bool = False
    features: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As `create_encoder` takes it."""
        return f"{self.model}({', '.join(f'{key}={value!r}' for key, value in self.options.items())})"


def plain(model: str, *, depth: int = 2, patch: int = 16, stem: str = "patch_embed", layout: str, **options) -> Family:
    """A transformer with one grid."""
    options = {"embed_dim": 24, "depth": depth, "num_heads": 2} | options
    levels = ((24, patch),) * depth
    return Family(model, levels, stem, layout, patch, norm="norm", sized=True, options=options)


SWIN = {"embed_dim": 12, "depths": (2, 1, 2, 1), "num_heads": HEADS, "window_size": 4}
SWIN_LEVELS = ((12, 4), (24, 8), (48, 16), (96, 32))
CONVNEXT = {"depths": DEPTHS, "dims": WIDTHS}
SHARED_BIAS = {
    "use_abs_pos_emb": False,
    "use_rel_pos_bias": False,
    "use_shared_rel_pos_bias": True,
    "init_values": 0.1,
}
FAMILIES = {
    "swin": Family(
        "swin_tiny_patch4_window7_224", SWIN_LEVELS, "patch_embed", "NHWC", 4, "norm", sized=True, options=SWIN
    ),
    "swinv2": Family(
        "swinv2_tiny_window8_256", SWIN_LEVELS, "patch_embed", "NHWC", 4, "norm", sized=True, options=SWIN
    ),
    "swinv2_cr": Family("swinv2_cr_tiny_224", SWIN_LEVELS, "patch_embed", "NCHW", 4, sized=True, options=SWIN),
    "convnext": Family("convnext_tiny", PYRAMID, "stem", "NCHW", 4, "head.norm", options=CONVNEXT),
    "convnext-overlap": Family(
        "convnext_tiny", PYRAMID, "stem", "NCHW", 4, "head.norm", options=CONVNEXT | {"stem_type": "overlap"}
    ),
    "convnextv2": Family("convnextv2_atto", PYRAMID, "stem", "NCHW", 4, "head.norm", options=CONVNEXT),
    "hiera": Family(
        "hiera_tiny_224",
        SWIN_LEVELS,
        "patch_embed",
        "NLC",
        4,
        "head.norm",
        sized=True,
        options={"embed_dim": 12, "num_heads": 1, "stages": DEPTHS},
    ),
    "resnet18": Family(
        "resnet18",
        ((64, 2), (64, 4), (128, 8), (256, 16), (512, 32)),
        "conv1",
        "NCHW",
        2,
        options={"layers": (1, 1, 1, 1)},
    ),
    "resnet-deep-stem": Family("resnet10t", ((64, 2), (64, 4), (128, 8), (256, 16), (512, 32)), "conv1", "NCHW", 2),
    "regnet": Family("regnetx_002", ((32, 2), (24, 4), (56, 8), (152, 16), (368, 32)), "stem", "NCHW", 2),
    "efficientnet": Family(
        "test_efficientnet", ((16, 2), (24, 4), (32, 8), (48, 16), (64, 32)), "conv_stem", "NCHW", 2, features=False
    ),
    "beit": plain("beit_base_patch16_224", depth=3, layout="NLC", **SHARED_BIAS),
    "vit": plain("vit_tiny_patch16_224", layout="NHWC"),
    "vit-registers": plain("vit_base_patch14_reg4_dinov2", layout="NHWC", patch_size=16),
    "vit-hybrid": plain("vit_tiny_r_s16_p8_224", layout="NHWC", patch=32),
    "eva02": plain("eva02_tiny_patch14_224", layout="NHWC", patch_size=16),
    "xcit": Family(
        "xcit_nano_12_p16_224",
        ((24, 16),) * 2,
        "patch_embed.proj",
        "NCHW",
        16,
        "norm",
        sized=True,
        features=False,
        options={"embed_dim": 24, "depth": 2, "num_heads": 2},
    ),
    "pvt_v2": Family(
        "pvt_v2_b0",
        PYRAMID,
        "patch_embed",
        "NHWC",
        4,
        options={"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": HEADS},
    ),
    "mvitv2": Family("mvitv2_tiny", PYRAMID, "patch_embed.proj", "NCHW", 4, "norm"),
    "davit": Family(
        "davit_tiny",
        PYRAMID,
        "stem",
        "NCHW",
        4,
        "head.norm",
        options={"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": HEADS, "window_size": 4},
    ),
    "mambaout": Family("mambaout_femto", PYRAMID, "stem", "NHWC", 4, "head.norm", options=CONVNEXT),
    "maxvit": Family(
        "test_maxvit", ((32, 2), (32, 4), (64, 8), (96, 16), (128, 32)), "stem", "NCHW", 2, "norm", sized=True
    ),
    "coatnet": Family(
        "test_coatnet", ((32, 2), (32, 4), (64, 8), (96, 16), (128, 32)), "stem", "NCHW", 2, "norm", sized=True
    ),
    "poolformer": Family("poolformer_s12", ((64, 4), (128, 8), (320, 16), (512, 32)), "stem", "NCHW", 4, "head.norm"),
    "twins": Family(
        "twins_pcpvt_small",
        PYRAMID,
        "patch_embeds.0.proj",
        "NCHW",
        4,
        "norm",
        sized=True,
        options={"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": HEADS},
    ),
    "edgenext": Family("edgenext_xx_small", PYRAMID, "stem", "NCHW", 4, "head.norm", options=CONVNEXT),
    "nfnet": Family(
        "test_nfnet", ((64, 2), (32, 4), (64, 8), (96, 16), (192, 32)), "stem.conv1", "NCHW", 2, features=False
    ),
}
MVITV2 = mvitv2.MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=WIDTHS, num_heads=(1, 1, 1, 1))


def timm_model(family: Family, *, size: parts.Size = SIZE, global_pool: str = "") -> nn.Module:
    """timm's own model of the family."""
    options = family.options | ({"img_size": size} if family.sized else {})
    with patch.dict(mvitv2.model_cfgs, mvitv2_tiny=MVITV2):
        return timm.create_model(family.model, num_classes=0, global_pool=global_pool, **options).eval()


def create(key: str, *, size: parts.Size = SIZE, seed: int = 0) -> DenseEncoder:
    """A dense encoder of the family, every weight and statistic moved off its initial value."""
    with torch.random.fork_rng(), patch.dict(mvitv2.model_cfgs, mvitv2_tiny=MVITV2):
        torch.manual_seed(seed)
        encoder = create_encoder(FAMILIES[key].name, image_size=size, kind="dense")
        assert isinstance(encoder, DenseEncoder)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return parts.perturb(encoder, seed).eval()


@cache
def encoder(key: str) -> DenseEncoder:
    """The same, made once for all tests, which must leave it as it is."""
    return create(key)


def as_tokens(features: Tensor, layout: str, prefix: int = 0) -> Tensor:
    """What timm gives, as tokens [B, h·w, D]."""
    if features.ndim == 3:
        return features[:, prefix:]
    return features.flatten(1, 2) if layout == "NHWC" else features.flatten(2).mT
