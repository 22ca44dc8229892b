"""No hidden pixel reaches an encoder: whatever is put there, latents and predictions stay the same to the last bit."""

import pytest
import torch

from helpers import parts
from mimkit.masks import Mask
from mimkit.readouts import Fused, Last

NAMES = [
    "vit_tiny_patch16_224",
    "vit_base_patch8_224",
    "vit_base_patch14_reg4_dinov2",
    "vit_so150m_patch16_reg4_gap_256",
    "deit3_small_patch16_224",
    "vit_base_patch16_gap_224",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_18x2_224",
    "aimv2_large_patch14_224",
]
READOUTS = {"last": Last, "fused": Fused}


def setting(name: str, readout: str, factor: int):
    """A small method, images of 4 x 6 cells, and a mask whose cells are `factor` of the encoder's wide."""
    cell = int(name.partition("patch")[2].partition("_")[0])
    size = (4 * cell, 6 * cell)
    method = parts.method(parts.encoder(name, size=size), readout=READOUTS[readout])
    grid = (4 // factor, 6 // factor)
    mask = parts.hide(3, grid, count=grid[0] * grid[1] * 2 // 3)
    images = parts.images(3, size)
    return method, images, mask, parts.hidden_pixels(mask, size).expand_as(images)


@pytest.fixture(
    params=[(name, "last", factor) for name in NAMES for factor in (1, 2)] + [(name, "fused", 1) for name in NAMES[:5]],
    ids=lambda p: f"{p[0]}-{p[1]}-mask cell x{p[2]}",
)
def case(request):
    return setting(*request.param)


def run(method, images, mask: Mask):
    """Latents of every block, and predictions."""
    latents = method.encoder(images, mask, range(method.encoder.depth))
    return [part for latent in latents for part in (latent.tokens, latent.prefix)], method(images, mask).predictions


@torch.no_grad()
def test_hidden_pixels_change_nothing(case):
    method, images, mask, hidden = case
    before = run(method, images, mask)
    noise = 100 * parts.images(3, images.shape[-2:], seed=9)
    for replacement in (noise, torch.full_like(images, torch.nan)):
        after = run(method, torch.where(hidden, replacement, images), mask)
        for old, new in zip(before[0] + before[1], after[0] + after[1], strict=True):
            assert torch.equal(old, new)


@torch.no_grad()
def test_visible_pixels_change_everything(case):
    """The counterpart, without which a constant model would pass."""
    method, images, mask, hidden = case
    before = run(method, images, mask)
    one_pixel = torch.zeros_like(images)
    first = (~hidden[:, 0]).flatten(1).int().argmax(dim=1)  # one visible pixel of each sample
    one_pixel.flatten(2)[torch.arange(3), :, first] = 1.0
    after = run(method, images + one_pixel, mask)
    for old, new in zip(before[0] + before[1], after[0] + after[1], strict=True):
        assert (old != new).any(dim=-1).all()


def test_gradient_at_hidden_pixels_is_exactly_zero(case):
    method, images, mask, hidden = case
    images = images.clone().requires_grad_()
    (prediction,) = method(images, mask).predictions
    (prediction * torch.randn(prediction.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert not images.grad[hidden].any()
    assert (images.grad[~hidden] != 0).float().mean() > 0.99


def test_weights_learn_nothing_from_hidden_pixels_through_the_encoder():
    """Hidden pixels act on the weights' gradients through the target only: with the target held, not at all."""
    method, images, mask, hidden = setting("vit_tiny_patch16_224", "fused", 2)
    gradients = []
    for pixels in (images, torch.where(hidden, 100 * images.flip(0), images)):
        method.zero_grad()
        method(pixels, mask).predictions[0].square().mean().backward()
        gradients.append([p.grad.clone() for p in method.parameters() if p.requires_grad])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@torch.no_grad()
def test_samples_do_not_mix():
    """A sample's predictions are its own: other images and other masks in the batch change nothing."""
    method, images, mask, _ = setting("vit_tiny_patch16_224", "last", 1)
    (together,) = method(images, mask).predictions
    for index in range(3):
        (alone,) = method(images[index : index + 1], Mask(mask.hidden[index : index + 1])).predictions
        torch.testing.assert_close(together[index], alone[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_latent_is_that_of_the_visible_tokens_alone():
    """The masked encoder equals timm's blocks run on nothing but the visible tokens, in raster order."""
    method, images, mask, _ = setting("vit_base_patch14_reg4_dinov2", "last", 2)
    vit = method.encoder.vit
    x = vit._pos_embed(vit.patch_embed(images))
    fine = mask.hidden.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    (latent,) = method.encoder(images, mask)
    for index in range(3):
        visible = [cell for cell in range(24) if not fine[index, cell]]
        assert latent.ids[index].tolist() == visible
        tokens = torch.cat([x[index, :5], x[index, 5:][visible]])[None]
        expected = vit.blocks(vit.norm_pre(tokens))[0]
        torch.testing.assert_close(latent.prefix[index], expected[:5], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(latent.tokens[index], expected[5:], rtol=1e-5, atol=1e-5)
