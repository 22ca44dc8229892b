"""Unmasked, `VisibleViT` is timm's own model: tokens, prefix and intermediates, for each family of plain ViTs."""

import math

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from helpers import parts
from mimkit.backbones import DenseEncoder, Latent, VisibleViT, create_encoder
from mimkit.grids import resize_positions, sincos_positions

FAMILIES = {  # name: number of prefix tokens
    "vit_tiny_patch16_224": 1,
    "vit_base_patch8_224": 1,
    "vit_base_patch32_224": 1,
    "vit_base_patch14_dinov2": 1,  # layer scale
    "vit_base_patch14_reg4_dinov2": 5,  # class token and registers without positions
    "vit_so150m_patch16_reg4_gap_256": 4,  # registers with positions, no class token
    "vit_little_patch16_reg4_gap_256": 4,  # registers without positions, no class token
    "deit3_small_patch16_224": 1,  # class token without position
    "vit_base_patch16_gap_224": 0,  # no prefix
    "vit_base_patch16_siglip_224": 0,  # attention pooling behind the blocks
    "vit_base_patch16_clip_224": 1,  # norm before the blocks
    "vit_base_patch16_rpn_224": 0,  # norms after the residual branches
    "vit_base_patch16_18x2_224": 1,  # parallel branches
    "vit_pwee_patch16_reg1_gap_256": 1,  # parallel attention and MLP
    "vit_base_patch16_xp_224": 1,  # parallel, RMS norm
    "vit_intern300m_patch14_448": 1,  # no final norm
    "aimv2_large_patch14_224": 0,  # RMS norm, SwiGLU
    "test_vit4": 1,  # normed queries and keys
}


def assert_latent_equals(latent: Latent, features: torch.Tensor, prefix: int, grid: tuple[int, int]) -> None:
    """`features` [B, prefix and tokens, D] as timm gives them."""
    assert latent.grid == grid
    assert latent.ids is None
    assert latent.prefix.shape[1] == prefix
    assert latent.tokens.shape[1] == grid[0] * grid[1]
    both = torch.cat([latent.prefix, latent.tokens], dim=1)
    torch.testing.assert_close(both, features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_equals_timm(name):
    """Against a second model of timm's, built for this one size and loaded with the same weights."""
    cell = int(name.partition("patch")[2].partition("_")[0] or 16)
    size = (3 * cell, 4 * cell)
    ours = parts.encoder(name, size=size)
    assert (ours.cell, ours.dim, ours.depth, ours.channels) == (cell, 48, 3, 3)
    theirs = parts.timm_vit(name, size=size)
    theirs.load_state_dict(ours.vit.state_dict())
    images = parts.images(2, size)

    (last,) = ours(images)
    assert_latent_equals(last.map(ours.norm), theirs.forward_features(images), FAMILIES[name], (3, 4))

    expected = theirs.forward_intermediates(
        images, indices=[0, 1, 2], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    for latent, features in zip(ours(images, None, (0, 1, 2)), expected, strict=True):
        tokens, prefix = features if FAMILIES[name] else (features, features[:, :0])
        assert_latent_equals(latent, torch.cat([prefix, tokens], dim=1), FAMILIES[name], (3, 4))


@pytest.mark.parametrize("channels", [1, 4, 7])
@torch.no_grad()
def test_any_number_of_channels(channels):
    ours = parts.encoder(size=(32, 64), channels=channels)
    theirs = parts.timm_vit("vit_tiny_patch16_224", size=(32, 64), channels=channels)
    theirs.load_state_dict(ours.vit.state_dict())
    images = parts.images(2, (32, 64), channels)
    (last,) = ours(images)
    assert ours.channels == channels
    assert_latent_equals(last.map(ours.norm), theirs.forward_features(images), 1, (2, 4))


@torch.no_grad()
def test_taps_come_in_the_order_asked_and_count_from_the_end():
    encoder = parts.encoder(size=(32, 32), depth=4)
    images = parts.images(1, (32, 32))
    by_index = encoder(images, None, (0, 1, 2, 3))
    asked = encoder(images, None, (-1, 0, -3, 0))
    for latent, index in zip(asked, (3, 0, 1, 0), strict=True):
        assert torch.equal(latent.tokens, by_index[index].tokens)
        assert torch.equal(latent.prefix, by_index[index].prefix)
    for tap in (4, -5):
        with pytest.raises(ValueError, match=rf"tap {tap} lies outside the 4 of vit_tiny_patch16_224"):
            encoder(images, None, (0, tap))


def test_no_block_behind_the_deepest_tap_runs():
    encoder = parts.encoder(size=(32, 32), depth=4)
    ran = []
    for index, block in enumerate(encoder.vit.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    encoder(parts.images(1, (32, 32)), None, (1, 0))
    assert ran == [0, 1]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch14_reg4_dinov2", "vit_base_patch16_gap_224"])
@torch.no_grad()
def test_learned_positions_at_another_size(name):
    """Built for 4 x 4 cells, run on 6 x 5: timm's model of that size with the table resized beforehand."""
    cell = 14 if "patch14" in name else 16
    ours = parts.encoder(name, size=(4 * cell, 4 * cell))
    size = (6 * cell, 5 * cell)
    theirs = parts.timm_vit(name, size=size)
    state = ours.vit.state_dict()
    prefix = 0 if theirs.no_embed_class else theirs.num_prefix_tokens
    square = state["pos_embed"][:, prefix:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, size=(6, 5), mode="bicubic", align_corners=False)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :prefix], resized.flatten(2).mT], dim=1)
    theirs.load_state_dict(state)
    images = parts.images(2, size)
    (last,) = ours(images)
    assert_latent_equals(last.map(ours.norm), theirs.forward_features(images), FAMILIES[name], (6, 5))


@pytest.mark.parametrize("size", [(96, 80), (32, 32), (16, 128)])
@torch.no_grad()
def test_sincos_positions_at_another_size_are_those_of_a_model_built_for_it(size):
    ours = parts.encoder(size=(64, 64), sincos=True)
    built = parts.encoder(size=size, sincos=True)
    without_table = {name: value for name, value in ours.vit.state_dict().items() if name != "pos_embed"}
    assert built.vit.load_state_dict(without_table, strict=False).missing_keys == ["pos_embed"]
    images = parts.images(2, size)
    (here,), (there,) = ours(images), built(images)
    assert torch.equal(here.tokens, there.tokens)
    assert torch.equal(here.prefix, there.prefix)
    # And that is timm's model with the same table.
    theirs = parts.timm_vit("vit_tiny_patch16_224", size=size)
    theirs.load_state_dict(built.vit.state_dict())
    assert_latent_equals(here.map(ours.norm), theirs.forward_features(images), 1, (size[0] // 16, size[1] // 16))


@pytest.mark.parametrize(("name", "channels"), [("test_vit", 3), ("test_vit2", 4), ("vit_tiny_patch16_224", 1)])
@torch.no_grad()
def test_created_encoder_is_timms_model(name, channels):
    """What a user creates, for a size and channels that the name does not say."""
    torch.manual_seed(0)
    ours = create_encoder(name, image_size=(64, 96), channels=channels).eval()
    table = ours.vit.pos_embed[0]
    assert not ours.vit.pos_embed.requires_grad
    assert torch.equal(table[:1], torch.zeros(1, ours.dim))  # one prefix token in each of these
    assert torch.equal(table[1:], sincos_positions((4, 6), ours.dim))
    theirs = timm.create_model(name, img_size=(64, 96), in_chans=channels, num_classes=0, global_pool="").eval()
    theirs.load_state_dict(ours.vit.state_dict())
    images = parts.images(2, (64, 96), channels)
    (last,) = ours(images)
    assert_latent_equals(last.map(ours.norm), theirs.forward_features(images), 1, (4, 6))


def test_created_encoder_starts_like_mae():
    torch.manual_seed(0)
    encoder = create_encoder("test_vit", image_size=(160, 160))
    for name, parameter in encoder.named_parameters():
        if name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")):
            rows, columns = parameter.flatten(1).shape  # the patch embedding counts as the matrix it is
            bound = (6 / (rows + columns)) ** 0.5
            assert 0.95 * bound < parameter.abs().max() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("cls_token"):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3)
        else:
            assert name == "vit.pos_embed"


def test_learned_positions_stay_learned_where_asked():
    encoder = create_encoder("test_vit", image_size=(64, 64), sincos=False)
    assert encoder.vit.pos_embed.requires_grad
    assert not encoder.sincos
    assert encoder.vit.pos_embed.shape == (1, 17, 64)


NOT_PLAIN = {
    "vit_tiny_r_s16_p8_224": "embeds patches with a HybridEmbed",  # ResNet stem: its kernels overlap cells
    "vitamin_small_224": "embeds patches with a HybridEmbed",
    "swinv2_tiny_window8_256": "is a SwinTransformerV2",
    "eva02_tiny_patch14_224": "is a Eva",  # rotary positions must be masked too
    "resnet18": "is a ResNet",
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_models_that_cannot_be_driven_over_visible_tokens_are_refused(name):
    with pytest.raises(
        ValueError, match=rf"^{name} cannot .* visible tokens only: it {NOT_PLAIN[name]}.*--encoder dense"
    ):
        create_encoder(name, image_size=(224, 224), kind="visible")
    with pytest.raises(ValueError, match=rf"isolated .* visible tokens only, but for {name}: it {NOT_PLAIN[name]}"):
        create_encoder(name, image_size=(224, 224), isolated=True)


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_where_nobody_asks_for_visible_tokens_they_are_driven_densely(name):
    size = (256, 256) if name.startswith("swinv2") else (224, 224)
    encoder = create_encoder(name, image_size=size)
    assert isinstance(encoder, DenseEncoder)
    assert encoder.complete
    assert encoder.name == name


@pytest.mark.parametrize("kind", [None, "visible", "dense"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deit_tiny_distilled_patch16_224", "cannot make .* without its head: The distilled head"),
        ("vit_tiny_patch16_244", "timm has no model 'vit_tiny_patch16_244'; did you mean vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.no_such_tag", "timm cannot make 'vit_tiny_patch16_224.no_such_tag'.*no_such_tag"),
        ("vit_tiny_patch16_224(dept=3)", "timm cannot make 'vit_tiny_patch16_224'.*'dept'"),
    ],
)
def test_models_that_cannot_be_made_are_refused_for_every_kind(name, kind, message):
    with pytest.raises(ValueError, match=message):
        create_encoder(name, image_size=(224, 224), kind=kind)


def test_size_must_be_whole_patches():
    with pytest.raises(ValueError, match="a cell of 16 pixels does not divide an image of 64 x 72 pixels"):
        create_encoder("test_vit", image_size=(64, 72))
    encoder = parts.encoder(size=(32, 32))
    with pytest.raises(ValueError, match="a cell of 16 pixels does not divide an image of 40 x 32 pixels"):
        encoder(parts.images(1, (40, 32)))


def test_no_timm_plain_vit_has_parts_that_the_encoder_skips():
    """`VisibleViT` drives embedding, positions, norm and blocks itself: timm's own forward must have nothing else."""
    encoder = parts.encoder(size=(32, 32))
    assert type(encoder.vit) is VisionTransformer
    ran = []
    for name, module in encoder.vit.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    images = parts.images(1, (32, 32))
    encoder.vit.forward_features(images)
    theirs, ran[:] = set(ran), []
    encoder.norm(encoder(images)[0].tokens)
    # The embedding as a matrix product, blocks one by one; dropping patches does nothing unless asked to.
    assert theirs - set(ran) == {"patch_embed", "blocks", "patch_drop"}
    assert isinstance(encoder.vit.patch_drop, torch.nn.Identity)


def huggingface_tables(side: int, dim: int):
    """ViTMAE's encoder table [side·side, dim], without the class token's row."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=dim, num_hidden_layers=1, num_attention_heads=1, image_size=16 * side, decoder_num_hidden_layers=1
    )
    embeddings = transformers.ViTMAEModel(config).embeddings
    # Made from scratch, transformers 5 leaves the table at zero; this call fills it.
    embeddings.patch_embeddings.projection._is_hf_initialized = False
    embeddings.initialize_weights()
    return embeddings


@pytest.mark.parametrize(("side", "dim"), [(1, 4), (4, 48), (7, 64), (14, 768)])
def test_sincos_equals_huggingface_on_square_grids(side, dim):
    table = huggingface_tables(side, dim).position_embeddings[0].detach()
    assert torch.equal(table[0], torch.zeros(dim))
    torch.testing.assert_close(sincos_positions((side, side), dim), table[1:], rtol=0, atol=1e-7)


def test_resized_learned_table_equals_huggingface():
    """ViTMAE's own interpolation of its position table, up and down, to grids that are not square."""
    embeddings = huggingface_tables(6, 32)
    with torch.no_grad():
        embeddings.position_embeddings.normal_()
    for grid in [(9, 7), (3, 4), (12, 12)]:
        tokens = torch.zeros(1, 1 + grid[0] * grid[1], 32)
        expected = embeddings.interpolate_pos_encoding(tokens, 16 * grid[0], 16 * grid[1])[:, 1:]
        ours = resize_positions(embeddings.position_embeddings[:, 1:], (6, 6), grid)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("grid", "dim"), [((2, 5), 16), ((7, 3), 12), ((1, 4), 8)])
def test_sincos_formula_on_any_grid(grid, dim):
    """First half of the channels the column, second half the row; in each [sin | cos] of place · 10000^(−4k / dim)."""
    table = sincos_positions(grid, dim)
    assert table.shape == (grid[0] * grid[1], dim)
    assert table.dtype == torch.float32
    quarter = dim // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected = [
                function(place * 10000 ** (-k / quarter))
                for place in (column, row)
                for function in (math.sin, math.cos)
                for k in range(quarter)
            ]
            assert table[row * grid[1] + column].tolist() == pytest.approx(expected, abs=1e-7)


def test_visible_vit_keeps_what_it_is_told():
    encoder = VisibleViT(parts.timm_vit("test_vit", size=(32, 48)), name="mine", image_size=(32, 48), sincos=False)
    assert (encoder.name, encoder.image_size, encoder.sincos) == ("mine", (32, 48), False)
    assert encoder.norm is encoder.vit.norm
