"""ConvMAE against its definition written out: whole images convolved, then the visible tokens taken out.

MCMAE, arXiv 2205.03892 §3; numbers of weights and their names as in the published checkpoints.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import parts
from mimkit.backbones import ConvMAE, create_encoder
from mimkit.decoders import TransformerDecoder
from mimkit.masks import Mask
from mimkit.readouts import Fused
from mimkit.recipes import build as build_recipe
from mimkit.recipes._convmae import convmae

SIZE = (64, 96)
GRID = (4, 6)
SMALL = {"dims": (24, 32, 48), "depths": (2, 1, 3), "heads": 4}


def tiny(**options) -> ConvMAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ConvMAE(**({"image_size": SIZE} | SMALL | options))
    return parts.perturb(encoder).eval()


def over_channels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm of a map [1, D, H, W] over D, from mean and variance."""
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return x * weight[:, None, None] + bias[:, None, None]


def explicit(encoder: ConvMAE, image: Tensor, hidden: Tensor | None) -> list[Tensor]:
    """All taps [K, D] of one image [C, H, W], where bool [h, w] is hidden (None: nothing, and no scales are added)."""
    w = dict(encoder.named_parameters())

    def module(name: str) -> list[Tensor]:
        return [w[f"{name}.weight"], w[f"{name}.bias"]]

    def embed(x: Tensor, name: str, stride: int) -> Tensor:
        return F.gelu(over_channels(F.conv2d(x, *module(f"{name}.proj"), stride=stride), *module(f"{name}.norm")))

    def stage(x: Tensor, name: str, depth: int, visible: Tensor) -> Tensor:
        for i in range(depth):
            b = f"{name}.{i}"
            y = F.conv2d(over_channels(x, *module(f"{b}.norm1")), *module(f"{b}.conv1"))
            y = F.conv2d(visible * y, *module(f"{b}.attn"), padding=2, groups=y.shape[1])
            x = x + F.conv2d(y, *module(f"{b}.conv2"))
            y = F.conv2d(over_channels(x, *module(f"{b}.norm2")), *module(f"{b}.mlp.fc1"))
            x = x + F.conv2d(F.gelu(y), *module(f"{b}.mlp.fc2"))
        return x

    seen = torch.ones(image.shape[1] // 16, image.shape[2] // 16) if hidden is None else (~hidden).float()
    kept = seen.flatten().nonzero()[:, 0]
    first = embed(image[None], "patch_embed1", 4)
    first = stage(first, "blocks1", len(encoder.blocks1), seen.repeat_interleave(4, 0).repeat_interleave(4, 1))
    second = embed(first, "patch_embed2", 2)
    second = stage(second, "blocks2", len(encoder.blocks2), seen.repeat_interleave(2, 0).repeat_interleave(2, 1))
    x = embed(second, "patch_embed3", 2)[0].flatten(1).T
    x = (F.linear(x, *module("patch_embed4")) + encoder.pos_embed[0])[kept]
    taps = []
    for i in range(len(encoder.blocks3)):
        b = f"blocks3.{i}"
        y = F.layer_norm(x, x.shape[1:], *module(f"{b}.norm1"), eps=1e-6)
        heads = F.linear(y, *module(f"{b}.attn.qkv")).reshape(len(x), 3, SMALL["heads"], -1).permute(1, 2, 0, 3)
        query, key, value = heads
        share = (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(2)
        x = x + F.linear((share @ value).transpose(0, 1).flatten(1), *module(f"{b}.attn.proj"))
        y = F.layer_norm(x, x.shape[1:], *module(f"{b}.norm2"), eps=1e-6)
        x = x + F.linear(F.gelu(F.linear(y, *module(f"{b}.mlp.fc1"))), *module(f"{b}.mlp.fc2"))
        taps.append(x)
    if hidden is not None:
        scales = F.conv2d(first, *module("stage1_output_decode"), stride=4)
        scales = scales + F.conv2d(second, *module("stage2_output_decode"), stride=2)
        taps[-1] = taps[-1] + scales[0].flatten(1).T[kept]
    return taps


def gradient_norms(encoder: ConvMAE, loss: Tensor, names: Sequence[str]) -> Tensor:
    parameters = dict(encoder.named_parameters())
    return torch.stack([g.norm() for g in torch.autograd.grad(loss, [parameters[name] for name in names])])


@pytest.mark.parametrize(
    "mask",
    [
        parts.hide(3, GRID, 18),
        parts.hide(3, GRID, 5, seed=1),
        parts.hide(3, (2, 3), 4, seed=2),  # cells of 32 pixels
        Mask(torch.arange(24).reshape(1, *GRID).expand(3, -1, -1) < 12),  # one straight border
        None,
    ],
    ids=["random", "few", "large cells", "halves", "unmasked"],
)
def test_latents_and_gradients_equal_the_definition(mask):
    encoder, images = tiny(), parts.images(3, SIZE)
    latents = encoder(images, mask, taps=(0, 1, -1))
    hidden = [None] * 3 if mask is None else F.interpolate(mask.hidden[:, None].float(), GRID)[:, 0].bool()
    expected = [explicit(encoder, image, h) for image, h in zip(images, hidden, strict=True)]
    for tap, latent in enumerate(latents):
        torch.testing.assert_close(latent.tokens, torch.stack([e[tap] for e in expected]), rtol=1e-5, atol=1e-5)
        assert latent.grid == GRID
        assert latent.prefix.shape == (3, 0, 48)
        assert (latent.ids is None) == (mask is None)

    idle = {"norm", "pos_embed"} | ({"stage1_output_decode", "stage2_output_decode"} if mask is None else set())
    names = [name for name, _ in encoder.named_parameters() if name.split(".")[0] not in idle]
    probe = torch.randn(latents[-1].tokens.shape, generator=torch.Generator().manual_seed(3))
    ours = gradient_norms(encoder, (latents[-1].tokens * probe).sum(), names)
    slow = gradient_norms(encoder, (torch.stack([e[-1] for e in expected]) * probe).sum(), names)
    torch.testing.assert_close(ours, slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", [100.0, float("nan")])
def test_hidden_pixels_reach_nothing(noise):
    """Neither latents nor gradients, to the last bit."""
    encoder, images, mask = tiny(), parts.images(2, SIZE), parts.hide(2, GRID, 18)
    changed = torch.where(parts.hidden_pixels(mask, SIZE), noise * parts.images(2, SIZE, seed=1), images)
    parameters = [p for n, p in encoder.named_parameters() if p.requires_grad and n.split(".")[0] != "norm"]
    (expected,), (latent,) = encoder(images, mask), encoder(changed, mask)
    assert torch.equal(latent.tokens, expected.tokens)
    gradients = [torch.autograd.grad(x.tokens.square().sum(), parameters) for x in (expected, latent)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_whole_loss_equals_an_explicit_one():
    recipe = replace(
        convmae(),
        encoder=partial(create_encoder, name="convmae_base(dims=(24,32,48),depths=(2,1,3),heads=4)"),
        decoder=partial(TransformerDecoder, width=32, depth=1, heads=4),
        image_size=SIZE,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = parts.perturb(build_recipe(recipe)).eval()
    encoder, (decoder,) = method.encoder, method.decoders
    images, mask = parts.images(2, SIZE), parts.hide(2, GRID, 18)
    total = torch.tensor(0.0)
    for image, hidden in zip(images, mask.hidden.flatten(1), strict=True):
        tokens = F.layer_norm(
            explicit(encoder, image, hidden.reshape(GRID))[-1], (48,), *encoder.norm.parameters(), 1e-6
        )
        x = decoder.mask_token[0].repeat(24, 1)
        x[~hidden] = decoder.embed(tokens)
        x = x[None] + decoder.positions
        for block in decoder.blocks:
            x = block(x)
        predicted = decoder.head(decoder.norm(x))[0]
        for place in hidden.nonzero()[:, 0].tolist():
            top, left = 16 * (place // 6), 16 * (place % 6)
            patch = image[:, top : top + 16, left : left + 16].permute(1, 2, 0).flatten()
            target = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            total = total + (predicted[place] - target).square().mean() / (2 * 18)
    torch.testing.assert_close(method(images, mask=mask).loss, total, rtol=1e-5, atol=1e-5)


def test_a_method_trains_all_its_weights_in_mixed_precision_too():
    encoder = tiny(drop_path=0.2).train()
    readout = Fused(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        (level,) = readout(encoder(parts.images(2, SIZE), parts.hide(2, GRID, 18), readout.taps), encoder.norm)
    level.tokens.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in (*encoder.parameters(), *readout.parameters()) if p.requires_grad)


def test_other_image_sizes_get_positions_of_their_own():
    other, encoder = tiny(image_size=(32, 48)), tiny()
    images, mask = parts.images(2, SIZE), parts.hide(2, GRID, 18)
    torch.testing.assert_close(other(images, mask)[0].tokens, encoder(images, mask)[0].tokens)


def test_published_number_of_weights_and_their_names():
    with torch.device("meta"):
        encoder = ConvMAE(image_size=(224, 224))
    counts = {name: p.numel() for name, p in encoder.named_parameters() if p.requires_grad}
    projections = sum(count for name, count in counts.items() if name.startswith(("stage1", "stage2")))
    assert round(sum(counts.values()) / 1e6, 1) == 88.8  # pre-training, the projections for the decoder among them
    assert round((sum(counts.values()) - projections) / 1e6, 1) == 84.5  # downstream
    assert encoder.state_dict()["pos_embed"].shape == (1, 196, 768)

    convolution = ["norm1", "conv1", "attn", "conv2", "norm2", "mlp.fc1", "mlp.fc2"]
    attention = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    modules = {f"patch_embed{i}.{part}" for i in (1, 2, 3) for part in ("proj", "norm")} | {"patch_embed4", "norm"}
    modules |= {f"blocks{stage}.{i}.{part}" for stage in (1, 2) for i in (0, 1) for part in convolution}
    modules |= {f"blocks3.{i}.{part}" for i in range(11) for part in attention}
    modules |= {"stage1_output_decode", "stage2_output_decode"}
    names = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")} | {"pos_embed"}
    assert set(encoder.state_dict()) == names
    epsilons = {name: module.eps for name, module in encoder.named_modules() if hasattr(module, "eps")}
    assert epsilons == {name: 1e-6 if name.startswith(("blocks3", "norm")) else 1e-5 for name in epsilons}
    assert [(level.dim, level.cell) for level in encoder.levels] == [(768, 16)] * 11
    assert (encoder.depth, encoder.dim, encoder.cell, encoder.smallest_cell) == (11, 768, 16, 16)
    assert not encoder.complete


def test_without_scales_the_last_tap_is_the_plain_one():
    encoder, plain = tiny(), tiny(multi_scale=False)
    missing = plain.load_state_dict(encoder.state_dict(), strict=False)
    assert {re.sub(r"\..*", "", key) for key in missing.unexpected_keys} == {
        "stage1_output_decode",
        "stage2_output_decode",
    }
    images, mask = parts.images(2, SIZE), parts.hide(2, GRID, 18)
    assert torch.equal(plain(images)[0].tokens, encoder(images)[0].tokens)
    assert torch.equal(plain(images, mask, taps=(1,))[0].tokens, encoder(images, mask, taps=(1,))[0].tokens)
    assert not torch.equal(plain(images, mask)[0].tokens, encoder(images, mask)[0].tokens)


def test_wrong_requests():
    with pytest.raises(ValueError, match="16 pixels does not divide an image of 40 x 64"):
        tiny(image_size=(40, 64))
    with pytest.raises(ValueError, match="width of 48 is no multiple of its 5 heads"):
        tiny(heads=5)
    with pytest.raises(ValueError, match="three stages"):
        tiny(depths=(2, 1))
    encoder, images = tiny(), parts.images(2, SIZE)
    with pytest.raises(ValueError, match="tap 3 lies outside the 3 of convmae_base"):
        encoder(images, taps=(3,))
    with pytest.raises(ValueError, match="half hidden"):
        encoder(images, parts.hide(2, (8, 12), 72))
    with pytest.raises(ValueError, match="does not divide"):
        encoder(images[:, :, :40])
    with pytest.raises(ValueError, match="timm has no model"):
        encoder.timm_weights()
    hidden = parts.hide(2, GRID, 18).hidden
    with pytest.raises(ValueError, match="no mask token"):
        encoder(images, Mask(hidden, replaced=hidden))
