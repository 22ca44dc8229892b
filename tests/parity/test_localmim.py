"""LocalMIM's targets and levels against slow versions written out from its definition (arXiv 2303.05251 §3)."""

import math
from dataclasses import replace
from functools import partial

import build
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mimkit.decoders import TransformerDecoder
from mimkit.readouts import Levels
from mimkit.recipes import build as build_recipe
from mimkit.recipes import localmim
from mimkit.targets import Hog


def slow_hog(image: np.ndarray, cell: int, bins: int) -> np.ndarray:
    """One image [C, H, W] to [h, w, C·bins], pixel by pixel."""
    channels, height, width = image.shape
    out = np.zeros((height // cell, width // cell, channels, bins))
    weights = np.array([1.0, 2.0, 1.0])
    for c in range(channels):
        padded = np.pad(image[c], 1, mode="reflect")
        for y in range(height):
            for x in range(width):
                window = padded[y : y + 3, x : x + 3]
                across = weights @ window[:, 0] - weights @ window[:, 2]
                down = weights @ window[0] - weights @ window[2]
                number = math.floor(math.atan2(across, down) / math.pi * bins) % bins
                out[y // cell, x // cell, c, number] += math.hypot(across, down)
    out /= np.maximum(np.linalg.norm(out, axis=3, keepdims=True), 1e-12)
    return out.reshape(*out.shape[:2], -1)


@pytest.mark.parametrize("bins", [9, 18])
def test_hog_equals_the_slow_version_at_every_scale(bins):
    images = build.images(2, (32, 48))
    targets = Hog(bins)(images, [(8, 12), (4, 6), (2, 3)])
    for image, *cells in zip(images, *targets, strict=True):
        for values, cell in zip(cells, (4, 8, 16), strict=True):
            expected = slow_hog(image.double().numpy(), cell, bins)
            np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)


def test_hog_of_a_flat_image_is_zero():
    (target,) = Hog()(torch.full((1, 3, 16, 16), 0.3), [(2, 2)])
    assert target.abs().max() == 0


def tiny_localmim():
    torch.manual_seed(0)
    recipe = replace(
        localmim(),
        encoder=lambda image_size, channels: build.encoder(size=image_size, depth=6),
        decoder=partial(TransformerDecoder, width=32, depth=1, heads=4),
        image_size=(64, 64),
    )
    return build.perturb(build_recipe(recipe)).eval()


def test_shapes_taps_and_scales_are_the_published_ones():
    method = tiny_localmim()
    output = method(build.images(2, (64, 64)), keys=torch.arange(2))
    assert method.readout.taps == (1, 3, 3, 5)  # 1, 3, depth − 3, depth − 1
    assert [tuple(p.shape[1:]) for p in output.predictions] == [(16, 16, 27), (8, 8, 27), (4, 4, 27), (2, 2, 27)]


def test_published_decoders_have_4_26_million_parameters():
    """LocalMIM ViT-B's four decoders (METHODS: counted on the published code)."""
    scales = ((56, 56), (28, 28), (14, 14), (7, 7))
    decoders = [TransformerDecoder(768, 27, (14, 14), out, width=256, depth=1, heads=8) for out in scales]
    positions = 4 * 197 * 256  # fixed tables, which the published count includes
    counted = sum(p.numel() for decoder in decoders for p in decoder.parameters())
    assert abs(counted + positions - 4.26e6) < 0.005e6 or abs(counted - 4.26e6) < 0.005e6


def test_loss_equals_four_explicit_losses():
    method = tiny_localmim()
    images, mask = build.images(2, (64, 64)), build.hide(2, (4, 4), 12)
    output = method(images, mask=mask)
    vit, hidden = method.encoder.vit, mask.hidden
    total = 0.0
    for b in range(2):
        visible = (~hidden[b]).flatten().nonzero()[:, 0]
        x = vit.patch_embed(images[b : b + 1]).flatten(1, 2) + vit.pos_embed[:, 1:]
        x = torch.cat([vit.cls_token + vit.pos_embed[:, :1], x[:, visible]], dim=1)
        outputs = []
        for block in vit.blocks:
            x = block(x)
            outputs.append(x)
        norms = [*method.readout.norms, vit.norm]
        soft = hidden[b].float()
        weights = [
            soft.repeat_interleave(4, 0).repeat_interleave(4, 1),
            soft.repeat_interleave(2, 0).repeat_interleave(2, 1),
            soft,
            F.avg_pool2d(soft[None], 2)[0],  # 0, .25, .5, .75 or 1
        ]
        for tap, norm, decoder, cell, weight in zip(
            (1, 3, 3, 5), norms, method.decoders, (4, 8, 16, 32), weights, strict=True
        ):
            y = decoder.embed(norm(outputs[tap]))
            full = decoder.mask_token.repeat(1, 16, 1)
            full[0, visible] = y[0, 1:]
            y = torch.cat([y[:, :1], full + decoder.positions], dim=1)
            for block in decoder.blocks:
                y = block(y)
            y = decoder.norm(y)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
            y = y if decoder.rescale is None else decoder.rescale(y)
            y = F.conv2d(y, decoder.head.weight[:, :, None, None], decoder.head.bias)[0].permute(1, 2, 0)
            target = torch.from_numpy(slow_hog(images[b].double().numpy(), cell, 9)).float()
            total += ((y - target).square().mean(-1) * weight).sum() / weight.sum() / 2
    torch.testing.assert_close(output.loss, total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, sum(output.per_level))


def test_levels_refuse_unequal_numbers_of_taps_and_scales():
    with pytest.raises(ValueError, match="3 taps need as many scales, got 4"):
        Levels(build.encoder(size=(32, 32)), taps=(0, 1, 2))
