"""The other fusions of MFF (the paper's pilot study and ablations, and stages of several grids) against slow loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import parts
from helpers.dense_families import encoder as dense
from mimkit.backbones import Latent, create_encoder
from mimkit.readouts import Fused, FusedHierarchical

SIZE = (64, 96)  # 4 x 6 cells of 16 pixels
VISIBLE_SWIN = "swin_tiny_patch4_window7_224(embed_dim=12, depths=(1, 2, 1), num_heads=(1, 1, 2), window_size=2)"


def softmax(weights: Tensor) -> list[float]:
    exponents = [math.exp(weight) for weight in weights.tolist()]
    return [exponent / sum(exponents) for exponent in exponents]


def with_prefix(latent: Latent) -> Tensor:
    return torch.cat([latent.prefix, latent.tokens], dim=1)


def assert_same_place(level: Latent, last: Latent) -> None:
    assert level.grid == last.grid
    assert level.ids is last.ids


def linear(layer: nn.Module, values: Tensor) -> Tensor:
    weight, bias = layer.parameters()
    return weight @ values + bias


def projected(projection: nn.Module, token: Tensor) -> Tensor:
    """One token [D]: as it is, through one layer, or through two with GELU between."""
    layers = [layer for layer in projection.modules() if isinstance(layer, nn.Linear)]
    if len(layers) == 2:
        inner = linear(layers[0], token)
        return linear(layers[1], inner * 0.5 * (1 + torch.erf(inner / 2**0.5)))
    return linear(layers[0], token) if layers else token


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("taps", [None, "all", (1, 3)])
@pytest.mark.parametrize("projection", ["linear", "mlp", None])
@torch.no_grad()
def test_average_equals_the_loop(projection, taps, masked):
    encoder = parts.encoder(size=SIZE, depth=4)
    readout = parts.perturb(Fused(encoder, taps, projection=projection), seed=1)
    assert readout.taps == {None: (0, 1, 2, 3), "all": (0, 1, 2, 3), (1, 3): (1, 3)}[taps]
    mask = parts.hide(2, (4, 6), 18) if masked else None
    latents = encoder(parts.images(2, SIZE), mask, readout.taps)
    (level,) = readout(latents, encoder.norm)
    assert_same_place(level, latents[-1])
    shares = softmax(readout.weights)
    *shallow, last = [with_prefix(latent) for latent in latents]
    for sample in range(2):
        for token in range(last.shape[1]):
            total = shares[-1] * last[sample, token]
            for i, tap in enumerate(shallow):
                total = total + shares[i] * projected(readout.projections[i], tap[sample, token])
            fused = with_prefix(level)[sample, token]
            torch.testing.assert_close(fused, encoder.norm(total), rtol=0, atol=1e-5)
    expected = {f"fusion/block_{tap}": share for tap, share in zip(readout.taps, shares, strict=True)}
    assert readout.scalars() == pytest.approx(expected, abs=1e-6)
    assert sum(readout.scalars().values()) == pytest.approx(1)


@pytest.mark.parametrize("dim", [48, 128])  # one head, two heads of 64 channels
@pytest.mark.parametrize("projection", ["linear", None])
@torch.no_grad()
def test_attention_equals_the_loop(projection, dim):
    """Each token of the last tap looks at itself in all taps; what it finds, through one layer, is added."""
    encoder = parts.encoder(size=SIZE, depth=3, dim=dim, heads=4)
    readout = parts.perturb(Fused(encoder, projection=projection, fusion="attention"), seed=1)
    latents = encoder(parts.images(2, SIZE), parts.hide(2, (4, 6), 18), readout.taps)
    (level,) = readout(latents, encoder.norm)
    assert_same_place(level, latents[-1])
    *shallow, last = [with_prefix(latent) for latent in latents]
    attention = readout.attention
    heads = torch.arange(dim).chunk(attention.heads)
    assert len(heads) == {48: 1, 128: 2}[dim]
    for sample in range(2):
        for token in range(last.shape[1]):
            taps = [
                projected(projection, tap[sample, token])
                for projection, tap in zip(readout.projections, shallow, strict=True)
            ] + [last[sample, token]]
            query = linear(attention.query, last[sample, token])
            keys, values = ([linear(layer, tap) for tap in taps] for layer in (attention.key, attention.value))
            found = torch.zeros(dim)
            for head in heads:
                logits = torch.tensor([query[head] @ key[head] / len(head) ** 0.5 for key in keys])
                for share, value in zip(softmax(logits), values, strict=True):
                    found[head] += share * value[head]
            fused = encoder.norm(last[sample, token] + linear(attention.out, found))
            torch.testing.assert_close(with_prefix(level)[sample, token], fused, rtol=0, atol=1e-5)
    assert readout.scalars() == {}


@torch.no_grad()
def test_attention_begins_as_the_last_tap():
    encoder = parts.encoder(size=SIZE, depth=3)
    readout = Fused(encoder, fusion="attention")
    latents = encoder(parts.images(1, SIZE), None, readout.taps)
    (level,) = readout(latents, encoder.norm)
    torch.testing.assert_close(level.tokens, encoder.norm(latents[-1].tokens), rtol=0, atol=1e-6)


def as_map(latent: Latent) -> Tensor:
    """[B, D, h, w], zero where tokens are missing."""
    h, w = latent.grid
    out = torch.zeros(*latent.tokens.shape[::2], h, w)
    for sample, tokens in enumerate(latent.tokens):
        for place, token in enumerate(tokens):
            cell = place if latent.ids is None else int(latent.ids[sample, place])
            out[sample, :, cell // w, cell % w] = token
    return out


def convolution(layer: nn.Linear, stride: int) -> Tensor:
    """A projection's weight as a kernel: its columns run over rows, columns and channels of a cell."""
    return layer.weight.unflatten(1, (stride, stride, -1)).permute(0, 3, 1, 2)


def slow_hierarchical(readout: FusedHierarchical, latents: list[Latent], norm: nn.Module) -> Tensor:
    """Feature maps through strided convolutions to the last grid, averaged, then normed: [B, h·w, D]."""
    shares = softmax(readout.weights)
    total = shares[-1] * as_map(latents[-1])
    for share, layer, latent in zip(shares[:-1], readout.projections, latents[:-1], strict=True):
        stride = latent.grid[0] // latents[-1].grid[0]
        total = total + share * F.conv2d(as_map(latent), convolution(layer, stride), layer.bias, stride=stride)
    return norm(total.flatten(2).mT)


@pytest.mark.parametrize("taps", [None, (1, 3), (2, 3)])
@pytest.mark.parametrize("key", ["convnext", "swin", "hiera", "resnet18"])
@torch.no_grad()
def test_stages_of_dense_backbones_equal_strided_convolutions(key, taps):
    encoder = dense(key)
    if key == "resnet18" and taps:
        taps = (taps[0], 4)
    readout = parts.perturb(FusedHierarchical(encoder, taps), seed=1)
    assert readout.taps == (taps or tuple(range(encoder.depth)))
    latents = encoder(parts.images(2, encoder.image_size), parts.hide(2, (2, 4), 4), readout.taps)
    (level,) = readout(latents, encoder.norm)
    assert_same_place(level, latents[-1])
    torch.testing.assert_close(level.tokens, slow_hierarchical(readout, latents, encoder.norm), rtol=0, atol=1e-5)
    assert level.prefix.shape == (2, 0, encoder.dim)
    expected = dict(zip([f"fusion/block_{tap}" for tap in readout.taps], softmax(readout.weights), strict=True))
    assert readout.scalars() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_stages_of_visible_tokens_equal_strided_convolutions_at_visible_cells(masked):
    """Swin without hidden tokens, whose order differs between stages: the same convolutions, where it has cells."""
    torch.manual_seed(0)
    encoder = parts.perturb(create_encoder(VISIBLE_SWIN, image_size=SIZE, kind="visible")).eval()
    readout = parts.perturb(FusedHierarchical(encoder), seed=1)
    mask = parts.hide(2, (4, 6), 15) if masked else None
    latents = encoder(parts.images(2, SIZE), mask, readout.taps)
    (level,) = readout(latents, encoder.norm)
    assert_same_place(level, latents[-1])
    expected = slow_hierarchical(readout, latents, encoder.norm)
    assert level.tokens.shape[1] == (9 if masked else 24)
    for sample in range(2):
        cells = level.ids[sample].tolist() if masked else range(24)
        for token, cell in zip(level.tokens[sample], cells, strict=True):
            torch.testing.assert_close(token, expected[sample, cell], rtol=0, atol=1e-5)


def test_what_cannot_be_fused_is_refused():
    with pytest.raises(ValueError, match=r"has 4: use --readout fused-hierarchical"):
        Fused(dense("convnext"))
    with pytest.raises(ValueError, match=r"must end with the last one, 3"):
        FusedHierarchical(dense("convnext"), (0, 2))
