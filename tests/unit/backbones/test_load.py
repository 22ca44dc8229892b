"""Names to encoders: how a name is written, and which encoder a backbone gets."""

import pytest
import torch

from helpers import parts
from mimkit.backbones import ConvMAE, DenseEncoder, VisibleSwin, VisibleViT, create_encoder
from mimkit.backbones.load import parse_name

VIT = "vit_tiny_patch16_224(embed_dim=48, depth=2, num_heads=3)"
SWIN = "swin_tiny_patch4_window7_224(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=3)"
CONVMAE = "convmae_base(dims=(8, 12, 16), depths=(1, 1, 2), heads=4)"
SIZE = (64, 64)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resnet18", ("resnet18", {})),
        ("vit_small_patch16_224.dino", ("vit_small_patch16_224.dino", {})),
        ("vit()", ("vit", {})),
        ("vit(depth=6)", ("vit", {"depth": 6})),
        ("vit (depth = 6 , )", ("vit", {"depth": 6})),
        (
            "swin.tag(depths=(2, 2), window_size=7, drop_path_rate=-0.5, qkv_bias=False, norm='batch(1)', x=None)",
            (
                "swin.tag",
                {
                    "depths": (2, 2),
                    "window_size": 7,
                    "drop_path_rate": -0.5,
                    "qkv_bias": False,
                    "norm": "batch(1)",
                    "x": None,
                },
            ),
        ),
        ("vit(sizes=[1, {'a': 2}])", ("vit", {"sizes": [1, {"a": 2}]})),
    ],
)
def test_names(text, expected):
    assert parse_name(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "vit(",
        "vit(depth=6",
        "vit(6)",
        "vit(depth)",
        "vit(*a)",
        "vit(**{'depth': 6})",
        "vit(depth=6)(heads=2)",
        "vit(depth=6) + f(heads=2)",
        "vit(depth=6, depth=7)",
        "vit(depth=six)",
        "vit(depth=len('six'))",
        "vit(depth=__import__('os').getpid())",
        "vit(depth=2 ** 3)",
    ],
)
def test_names_that_are_written_in_another_way(text):
    with pytest.raises(ValueError, match="is not of the form NAME") as refusal:
        parse_name(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        (VIT, None, VisibleViT),
        (VIT, "visible", VisibleViT),
        (VIT, "dense", DenseEncoder),
        (SWIN, None, VisibleSwin),
        (SWIN, "visible", VisibleSwin),
        (SWIN, "dense", DenseEncoder),
        (SWIN.replace("window_size=3", "window_size=4"), None, DenseEncoder),  # which does not divide a stage of 6 x 12
        (CONVMAE, None, ConvMAE),
        (CONVMAE, "visible", ConvMAE),
        ("beit_base_patch16_224(embed_dim=48, depth=2, num_heads=3)", None, DenseEncoder),
        ("convnext_tiny(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))", None, DenseEncoder),
    ],
)
def test_which_encoder_a_backbone_gets(name, kind, expected):
    encoder = create_encoder(name, image_size=(96, 192), kind=kind)
    assert type(encoder) is expected
    assert encoder.complete is (expected is DenseEncoder)
    assert (encoder.name, encoder.image_size, encoder.channels) == (name, (96, 192), 3)
    with torch.no_grad():
        (last,) = encoder.eval()(parts.images(1, (96, 192)))
    cell = encoder.cell
    assert last.grid == (96 // cell, 192 // cell)
    assert last.tokens.shape == (1, last.grid[0] * last.grid[1], encoder.dim)


def test_arguments_in_brackets_go_before_those_of_the_call():
    encoder = create_encoder(VIT, image_size=(32, 32), depth=5, reg_tokens=2)
    assert (encoder.dim, encoder.depth, encoder.vit.num_prefix_tokens) == (48, 2, 3)


def test_arguments_of_models_may_be_called_like_ours():
    encoder = create_encoder("resnet18(layers=(1, 1, 1, 1), channels=(8, 8, 8, 16))", image_size=(64, 64), channels=1)
    assert (encoder.channels, encoder.dim) == (1, 16)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("resnet17", {}, "timm has no model 'resnet17'; did you mean .*resnet1"),
        ("convmae_bas", {}, "timm has no model 'convmae_bas'; did you mean convmae_base"),
        ("resnet18(dept=3)", {}, "timm cannot make 'resnet18'.*'dept'"),
        ("convmae_base(width=3)", {}, "convmae_base.*'width'"),
        ("convmae_base(dims=(4, 8))", {}, "ConvMAE has three stages.* widths .4, 8."),
        ("convmae_base", {"kind": "dense"}, "convmae_base has no dense form"),
        (SWIN, {"kind": "visible", "mask_token": True}, "no mask token; use --encoder dense"),
        (SWIN.replace("_size=3", "_size=4"), {"kind": "visible"}, "windows of 4 x 4 .* do not divide"),
    ],
)
def test_encoders_that_cannot_be(name, options, reason):
    with pytest.raises(ValueError, match=reason):
        create_encoder(name, image_size=(96, 96), **options)


def test_a_name_says_that_positions_are_learned():
    name = "vit_tiny_patch16_224(embed_dim=48,depth=1,num_heads=3,sincos={})"
    assert create_encoder(name.format(False), image_size=SIZE).vit.pos_embed.requires_grad
    assert not create_encoder(name.format(True), image_size=SIZE, sincos=False).vit.pos_embed.requires_grad


def test_epsilon_of_a_backbone_without_such_norms():
    with pytest.raises(ValueError, match=r"resnet18 has no LayerNorm whose epsilon could be 0\.001"):
        create_encoder("resnet18", image_size=SIZE, norm_eps=1e-3)
