"""LocalMIM's targets and levels against slow versions written out from its definition (arXiv 2303.05251 §3)."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from helpers import parts
from mimkit.decoders import TransformerDecoder
from mimkit.readouts import Levels
from mimkit.recipes import build as build_recipe
from mimkit.recipes import localmim
from mimkit.targets import Hog
from mimkit.views import IMAGENET


def slow_hog(image: np.ndarray, cell: int, bins: int) -> np.ndarray:
    """One image float32 [C, H, W] to [h, w, C·bins], pixel by pixel; products added in raster order, each rounded.

    Angles are torch's: across a reflected border they lie within rounding of 90 degrees, a border of 18 bins.
    """
    channels, height, width = image.shape
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=np.float32)
    gradient = np.zeros((2, channels, height, width), dtype=np.float32)
    for c, y, x in np.ndindex(channels, height, width):
        window = np.pad(image[c], 1, mode="reflect")[y : y + 3, x : x + 3]
        for i, j in np.ndindex(3, 3):
            gradient[:, c, y, x] += np.array([sobel[i, j], sobel[j, i]]) * window[i, j]
    angles = (torch.atan2(*torch.from_numpy(gradient)) / math.pi * bins).numpy()
    out = np.zeros((height // cell, width // cell, channels, bins))
    for c, y, x in np.ndindex(channels, height, width):
        out[y // cell, x // cell, c, math.floor(angles[c, y, x]) % bins] += math.hypot(*gradient[:, c, y, x])
    out /= np.maximum(np.linalg.norm(out, axis=3, keepdims=True), 1e-12)
    return out.reshape(*out.shape[:2], -1)


@pytest.mark.parametrize("bins", [9, 18])
def test_hog_equals_the_slow_version_at_every_scale(bins):
    images = parts.images(2, (32, 48))
    targets = Hog(bins)(images, [(8, 12), (4, 6), (2, 3)])
    for image, *cells in zip(images, *targets, strict=True):
        for values, cell in zip(cells, (4, 8, 16), strict=True):
            expected = slow_hog(image.numpy(), cell, bins)
            np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("bins", [9, 18])
def test_hog_of_photographs_bins_as_the_published_convolution_does(bins, data_root):
    """Where pixels are whole numbers, gradients are zero along an axis but for rounding, which picks the bin."""
    files = sorted((data_root / "imagenette128" / "val").rglob("*.jpg"))[::400]
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((64, 64))).copy() for file in files]
    images = IMAGENET.from_bytes(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect").flatten(0, 1)[:, None]
    across, down = F.conv2d(padded, torch.stack([sobel, sobel.T])[:, None]).unbind(1)
    number = (torch.atan2(across, down) / math.pi * bins).floor().long() % bins
    votes = F.one_hot(number, bins) * torch.hypot(across, down)[..., None]
    cells = votes.unflatten(2, (8, 8)).unflatten(1, (8, 8)).sum((2, 4))
    expected = F.normalize(cells, dim=-1, eps=1e-12).unflatten(0, (len(images), 3)).permute(0, 2, 3, 1, 4).flatten(3)
    (values,) = Hog(bins)(images, [(8, 8)])
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


def test_hog_of_a_flat_image_is_zero():
    (target,) = Hog()(torch.full((1, 3, 16, 16), 0.3), [(2, 2)])
    assert target.abs().max() == 0


def tiny_localmim():
    torch.manual_seed(0)
    recipe = replace(
        localmim(),
        encoder=lambda image_size, channels: parts.encoder(size=image_size, depth=6),
        decoder=partial(TransformerDecoder, width=32, depth=1, heads=4),
        image_size=(64, 64),
    )
    return parts.perturb(build_recipe(recipe)).eval()


def test_shapes_taps_and_scales_are_the_published_ones():
    method = tiny_localmim()
    output = method(parts.images(2, (64, 64)), keys=torch.arange(2))
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
    images, mask = parts.images(2, (64, 64)), parts.hide(2, (4, 4), 12)
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
            target = torch.from_numpy(slow_hog(images[b].numpy(), cell, 9)).float()
            total += ((y - target).square().mean(-1) * weight).sum() / weight.sum() / 2
    torch.testing.assert_close(output.loss, total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, sum(output.per_level))


def test_levels_refuse_unequal_numbers_of_taps_and_scales():
    with pytest.raises(ValueError, match="one tap for each of 4 levels, got 3"):
        Levels(parts.encoder(size=(32, 32)), taps=(0, 1, 2))
