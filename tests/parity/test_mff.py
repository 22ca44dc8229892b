"""MFF's fusion against an explicit loop over tokens: w = softmax(weights); fused = Σ w_i · (projection_i of tap i), the
last tap unprojected; then the final norm. The class token is fused like any other.
"""

import math

import pytest
import torch
from torch import Tensor

from helpers import parts
from mimkit.backbones import VisibleViT, create_encoder
from mimkit.readouts import Fused, FusedHierarchical

SIZE = (32, 48)  # 2 x 3 cells of 16 pixels
SWIN = (
    "swin_tiny_patch4_window7_224(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2), window_size=2, "
    "drop_path_rate=0.0)"
)


def block_outputs(encoder: VisibleViT, images: Tensor, kept: list[list[int]] | None) -> list[Tensor]:
    """What each block gives, prefix first, by timm's own parts, sample by sample over the kept tokens only."""
    vit = encoder.vit
    samples = []
    for index in range(len(images)):
        x = vit._pos_embed(vit.patch_embed(images[index : index + 1]))
        if kept is not None:
            first = list(range(vit.num_prefix_tokens))
            x = x[:, first + [vit.num_prefix_tokens + cell for cell in kept[index]]]
        x = vit.norm_pre(x)
        outputs = []
        for block in vit.blocks:
            x = block(x)
            outputs.append(x[0])
        samples.append(outputs)
    return [torch.stack(outputs) for outputs in zip(*samples, strict=True)]


def slow_fusion(encoder: VisibleViT, readout: Fused, taps: list[int], outputs: list[Tensor]) -> Tensor:
    """[B, prefix and tokens, D], one token after the other, in double precision."""
    exponents = [math.exp(weight) for weight in readout.weights.tolist()]
    shares = [exponent / sum(exponents) for exponent in exponents]
    norm = encoder.vit.norm
    fused = torch.zeros_like(outputs[0], dtype=torch.float64)
    for sample in range(fused.shape[0]):
        for token in range(fused.shape[1]):
            total = shares[-1] * outputs[taps[-1]][sample, token].double()
            for position, tap in enumerate(taps[:-1]):
                weight, bias = (p.detach().double() for p in readout.projections[position].parameters())
                total = total + shares[position] * (weight @ outputs[tap][sample, token].double() + bias)
            centred = total - total.mean()
            normed = centred / (centred.square().mean() + norm.eps).sqrt()
            fused[sample, token] = normed * norm.weight.double() + norm.bias.double()
    return fused.float()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vit_tiny_patch16_224", 1),
        ("vit_base_patch14_reg4_dinov2", 5),
        ("vit_base_patch16_gap_224", 0),
    ],
)
@pytest.mark.parametrize("taps", [None, (1, 3, 5)])
@torch.no_grad()
def test_fused_latent_equals_explicit_loop(name, prefix, taps, masked):
    encoder = parts.encoder(name, size=SIZE, patch_size=16, depth=6 if taps else 12)
    readout = parts.perturb(Fused(encoder, taps), seed=1)
    assert readout.weights.std() > 0.01
    expected_taps = list(taps or (0, 2, 4, 6, 8, 11))
    images = parts.images(2, SIZE)
    mask = parts.hide(2, (2, 3), count=4) if masked else None

    latents = encoder(images, mask, readout.taps)
    (level,) = readout(latents, encoder.norm)

    kept = [[c for c in range(6) if not mask.hidden[i].flatten()[c]] for i in range(2)] if masked else None
    outputs = block_outputs(encoder, images, kept)
    expected = slow_fusion(encoder, readout, expected_taps, outputs)
    assert level.prefix.shape == (2, prefix, 48)
    assert level.tokens.shape == (2, 2 if masked else 6, 48)
    torch.testing.assert_close(torch.cat([level.prefix, level.tokens], dim=1), expected, rtol=0, atol=1e-5)
    assert level.grid == (2, 3)
    assert level.ids is None if kept is None else level.ids.tolist() == kept
    assert (level.tokens - encoder.norm(latents[-1].tokens)).abs().max() > 0.1  # fusion does something


@torch.no_grad()
def test_final_norm_follows_the_sum():
    """Norm of the sum, not sum of norms: of blocks that change nothing, fused unprojected, it is the plain readout."""
    encoder = parts.encoder(size=SIZE, depth=3)
    for block in encoder.vit.blocks[1:]:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    readout = Fused(encoder, taps=(0, 1, 2))
    for projection in readout.projections:
        projection.weight.copy_(torch.eye(48))
        projection.bias.zero_()
    readout.weights.copy_(torch.tensor([1.0, -2.0, 0.5]))
    latents = encoder(parts.images(2, SIZE), None, readout.taps)
    assert torch.equal(latents[0].tokens, latents[2].tokens)
    (level,) = readout(latents, encoder.norm)
    torch.testing.assert_close(level.tokens, encoder.norm(latents[-1].tokens), rtol=0, atol=1e-5)
    torch.testing.assert_close(level.prefix, encoder.norm(latents[-1].prefix), rtol=0, atol=1e-5)


def test_taps_of_other_backbones_are_counted_and_checked():
    encoder = parts.encoder(size=SIZE, depth=4)
    assert Fused(encoder, taps=(-3, 0, -1)).taps == (1, 0, 3)
    assert Fused(encoder, taps="all").taps == FusedHierarchical(encoder).taps == (0, 1, 2, 3)
    for readout in (Fused, FusedHierarchical):
        for taps in [(0, 1), (3, 0), (2, 2, 3), (1, -3, 3)]:
            with pytest.raises(ValueError, match="must end with the last one, 3, and differ from each other"):
                readout(encoder, taps=taps)
        with pytest.raises(ValueError, match="tap 4 lies outside the 4 of vit_tiny_patch16_224"):
            readout(encoder, taps=(0, 4))


def test_stages_need_the_hierarchical_fusion():
    encoder = create_encoder(SWIN, image_size=(128, 192))
    with pytest.raises(ValueError, match=r"^Fused needs one grid; swin_tiny.* has 4: use --readout fused-hierarchical"):
        Fused(encoder)


def test_starts_with_equal_shares_and_learns_them():
    encoder = parts.encoder(size=SIZE, depth=12)
    readout = Fused(encoder)
    assert readout.taps == (0, 2, 4, 6, 8, 11)
    assert readout.weights.tolist() == [1.0] * 6
    assert readout.scalars() == pytest.approx({f"fusion/block_{tap}": 1 / 6 for tap in (0, 2, 4, 6, 8, 11)})
    assert [projection.bias.abs().max().item() for projection in readout.projections] == [0.0] * 5
    for projection in readout.projections:  # Xavier-uniform bound of a 48 x 48 layer
        assert 0.9 * (6 / 96) ** 0.5 < projection.weight.abs().max() <= (6 / 96) ** 0.5

    optimizer = torch.optim.SGD([readout.weights], lr=1.0)
    (level,) = readout(encoder(parts.images(2, SIZE), None, readout.taps), encoder.norm)
    level.tokens[..., 0].sum().backward()
    optimizer.step()
    shares = readout.scalars()
    assert sum(shares.values()) == pytest.approx(1)
    assert len({round(share, 6) for share in shares.values()}) == 6


@pytest.mark.parametrize(
    ("depth", "taps"), [(24, (0, 4, 8, 12, 16, 23)), (6, (0, 1, 2, 3, 4, 5)), (2, (0, 1)), (1, (0,))]
)
def test_published_taps_spread_over_any_depth(depth, taps):
    """No block twice, the last one always at the end."""
    readout = Fused(parts.encoder(size=SIZE, depth=depth, dim=12))
    assert readout.taps == taps
    assert len(readout.projections) == len(taps) - 1
    assert len(readout.scalars()) == len(taps)
