"""Unmasked, `DenseEncoder` is timm's own model: the same features at every tap, to the last bit, for each family.

Masked, it is timm's model with the mask token in the output of its stem.
"""

import copy

import pytest
import torch

from helpers import parts
from helpers.dense_families import FAMILIES, SIZE, as_tokens, create, encoder, timm_model
from mimkit.backbones import Level, create_encoder
from mimkit.readouts import Last


@pytest.fixture(params=FAMILIES)
def key(request) -> str:
    return request.param


def test_what_is_found_out_about_a_model(key):
    family, ours = FAMILIES[key], encoder(key)
    assert ours.levels == tuple(Level(dim, cell) for dim, cell in family.levels)
    assert (ours.depth, ours.dim, ours.cell) == (len(family.levels), *family.levels[-1])
    assert (ours.stem_path, ours.smallest_cell) == (family.stem, family.cell)
    assert ours.model.get_submodule(ours.stem_path).layout == family.layout
    assert ours.norm_path == family.norm
    assert ours.complete


@torch.no_grad()
def test_every_tap_equals_timms_to_the_last_bit(key):
    """Against a second model of timm's, made with the same arguments, which takes our weights strictly."""
    ours, theirs = encoder(key), timm_model(FAMILIES[key])
    theirs.load_state_dict(ours.timm_weights(), strict=True)
    images = parts.images(2, SIZE)
    expected = theirs.forward_intermediates(images, norm=False, output_fmt="NCHW", intermediates_only=True)
    latents = ours(images, None, range(ours.depth))
    assert len(expected) == len(latents)
    for latent, features, level in zip(latents, expected, ours.levels, strict=True):
        assert latent.grid == (SIZE[0] // level.cell, SIZE[1] // level.cell) == tuple(features.shape[2:])
        assert latent.ids is None
        assert latent.prefix.shape == (2, 0, level.dim)
        assert torch.equal(latent.tokens, features.flatten(2).mT)


@torch.no_grad()
def test_normed_last_tap_is_timms_final_feature(key):
    """Of `forward_intermediates(norm=True)` and `forward_features`, or where the norm stands in the head, of that."""
    family, ours = FAMILIES[key], encoder(key)
    images = parts.images(2, SIZE)
    (latent,) = ours(images)
    (level,) = Last(ours)([latent], ours.norm)
    if family.norm == "head.norm":
        theirs = timm_model(family, global_pool="avg")
        theirs.load_state_dict(ours.timm_weights(), strict=True)
        theirs.head.drop, theirs.head.pre_logits = torch.nn.Identity(), torch.nn.Identity()
        pooled = theirs(images)  # pools, then norms
        torch.testing.assert_close(ours.norm(latent.tokens.mean(dim=1, keepdim=True))[:, 0], pooled, rtol=0, atol=1e-5)
    else:
        theirs = timm_model(family)
        theirs.load_state_dict(ours.timm_weights(), strict=True)
        normed = theirs.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
        torch.testing.assert_close(level.tokens, as_tokens(normed, "NCHW"), rtol=0, atol=1e-5)
        assert torch.equal(level.tokens, latent.tokens) == (family.norm is None)
        if family.features:
            features = theirs.forward_features(images)
            layout = "NHWC" if features.shape[-1] == ours.dim else "NCHW"
            features = as_tokens(features, layout, getattr(theirs, "num_prefix_tokens", 0))
            torch.testing.assert_close(level.tokens, features, rtol=0, atol=1e-5)


def test_gradient_reaches_what_is_trained_and_nothing_else_matters(key):
    ours = copy.deepcopy(encoder(key))
    images, mask = parts.images(2, SIZE), parts.hide(2, (2, 4), 4)
    (level,) = Last(ours)(ours(images, mask), ours.norm)
    (level.tokens * torch.randn(level.tokens.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    frozen = []
    for path, parameter in ours.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, path
            assert parameter.grad.any() or "meta_mlp.fc2.bias" in path, path  # which shifts all logits alike
        else:
            frozen.append(parameter)
    with torch.no_grad():
        before = ours(images, mask)[0].tokens
        for parameter in frozen:
            parameter.normal_()
        assert torch.equal(ours(images, mask)[0].tokens, before)
    assert bool(frozen) == (key in ("efficientnet", "xcit", "mambaout"))  # heads, class attention


@pytest.mark.parametrize("key", ["swin", "convnext", "hiera", "resnet18", "beit", "vit-hybrid", "mvitv2", "twins"])
@torch.no_grad()
def test_copies_and_state_round_trip(key):
    ours = encoder(key)
    images, mask = parts.images(2, SIZE), parts.hide(2, (2, 4), 4)
    expected = ours(images, mask)[0].tokens
    copied = copy.deepcopy(ours)
    assert torch.equal(copied(images, mask)[0].tokens, expected)
    next(p for p in copied.parameters() if p.requires_grad).add_(1.0)
    assert torch.equal(ours(images, mask)[0].tokens, expected)
    other = create(key, seed=1)
    assert not torch.equal(other(images, mask)[0].tokens, expected)
    other.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(other(images, mask)[0].tokens, expected)


@torch.no_grad()
def test_mask_token_stands_in_the_stems_output():
    """ConvNeXt and Swin by hand: the stem of the image with zeros, the token where it is hidden, then the stages."""
    images, mask = parts.images(2, SIZE), parts.hide(2, (2, 4), 4)
    hidden = parts.hidden_pixels(mask, SIZE)
    for key in ("convnext", "swin"):
        ours, theirs = encoder(key), timm_model(FAMILIES[key])
        theirs.load_state_dict(ours.timm_weights())
        token = ours.model.get_submodule(ours.stem_path).mask_token
        if key == "convnext":
            x = theirs.stem(images * ~hidden)
            x = torch.where(hidden[:, :, ::4, ::4], token[:, None, None], x)
            expected = as_tokens(theirs.stages(x), "NCHW")
        else:
            x = theirs.patch_embed(images * ~hidden)
            x = torch.where(hidden[:, 0, ::4, ::4, None], token, x)
            expected = as_tokens(theirs.layers(x), "NHWC")
        assert torch.equal(ours(images, mask)[0].tokens, expected)


def test_an_empty_mask_is_no_mask(key):
    ours, images = encoder(key), parts.images(1, SIZE)
    with torch.no_grad():
        assert torch.equal(ours(images, parts.hide(1, (2, 4), 0))[0].tokens, ours(images)[0].tokens)


@torch.no_grad()
def test_taps_come_in_the_order_asked_and_count_from_the_end():
    ours, images = encoder("swin"), parts.images(1, SIZE)
    by_index = ours(images, None, range(4))
    for latent, index in zip(ours(images, None, (-1, 0, -3, 0)), (3, 0, 1, 0), strict=True):
        assert torch.equal(latent.tokens, by_index[index].tokens)
    with pytest.raises(ValueError, match="tap 4 lies outside the 4 of swin"):
        ours(images, None, (0, 4))


@pytest.mark.parametrize("channels", [1, 4])
@torch.no_grad()
def test_any_number_of_channels(channels):
    ours = create_encoder(FAMILIES["convnext"].name, image_size=SIZE, channels=channels, kind="dense").eval()
    images, mask = parts.images(2, SIZE, channels), parts.hide(2, (2, 4), 4)
    assert ours.channels == channels
    assert ours(images)[0].tokens.shape == ours(images, mask)[0].tokens.shape == (2, 8, 32)


@torch.no_grad()
def test_convolutions_take_other_sizes():
    ours, theirs = encoder("convnext"), timm_model(FAMILIES["convnext"])
    theirs.load_state_dict(ours.timm_weights())
    images = parts.images(1, (96, 160))
    (latent,) = ours(images)
    assert latent.grid == (3, 5)
    assert torch.equal(latent.tokens, as_tokens(theirs.forward_features(images), "NCHW"))
    ours(images, parts.hide(1, (3, 5), 7))


@pytest.mark.parametrize(("name", "layout"), [("swin", "NHWC"), ("convnext", "NCHW")])
def test_as_many_cells_as_channels_are_no_riddle(name, layout):
    """At 64 x 64 pixels these stems give 16 x 16 cells of 16 channels, whose shape does not tell the axes apart."""
    width = {"embed_dim": 16} if name == "swin" else {"dims": (16, 16, 16, 16)}
    family = FAMILIES[name]
    options = ", ".join(f"{key}={value!r}" for key, value in (family.options | width).items())
    ours = create_encoder(f"{family.model}({options})", image_size=(64, 64), kind="dense")
    stem = ours.model.get_submodule(family.stem)
    assert (ours.stem_path, stem.layout, stem.cell) == (family.stem, layout, 4)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("naflexvit_base_patch16_gap(depth=1, embed_dim=24)", SIZE, "the stem of naflexvit_base_patch16_gap.* cannot"),
        ("tnt_s_patch16_224(depth=1)", SIZE, "the stem of tnt_s_patch16_224.* cannot be found"),
        ("efficientformer_l1", SIZE, "efficientformer_l1 cannot take 64 x 128 pixels"),
        ("pit_ti_224", SIZE, "turns 64 x 128 pixels into 7 x 15 cells"),
        ("test_convnext", (66, 128), "turns 66 x 128 pixels into 16 x 32 cells"),
        ("test_convnext", (72, 128), "turns 72 x 128 pixels into 4 x 8 cells"),
        ("test_resnet", (100, 128), "turns 100 x 128 pixels into 13 x 16 cells"),
    ],
)
def test_models_that_cannot_be_dense_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        create_encoder(name, image_size=size, kind="dense")


@pytest.mark.parametrize("name", ["swin", "convnext"])
def test_compiles_in_one_piece(name):
    ours = copy.deepcopy(encoder(name))
    images, mask = parts.images(2, SIZE), parts.hide(2, (2, 4), 4)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, mask)[0].tokens, ours(images, mask)[0].tokens, rtol=1e-5, atol=1e-5)
