"""MaskFeat's whole loss against its definition written out slowly (arXiv 2112.09133 §3, and its published settings)."""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from helpers import parts
from mimkit.backbones import create_encoder
from mimkit.method import Method
from mimkit.recipes import build as build_recipe
from mimkit.recipes import maskfeat

SIZE = (64, 96)  # 4 x 6 patches of 16 pixels


def tiny_maskfeat() -> Method:
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224(embed_dim=24, depth=2, num_heads=2)"
    recipe = replace(maskfeat(), encoder=partial(create_encoder, name=name, kind="dense"), image_size=SIZE)
    return parts.perturb(build_recipe(recipe)).eval()


def slow_histogram(plane: list[list[float]], top: int, left: int) -> list[float]:
    """9 bins of one 8 x 8 cell of one channel [H][W]: hard-binned, summed, of unit length."""
    height, width = len(plane), len(plane[0])

    def pixel(y: int, x: int) -> float:
        """With the border reflected: row -1 is row 1."""
        y, x = abs(y), abs(x)
        return plane[y if y < height else 2 * height - 2 - y][x if x < width else 2 * width - 2 - x]

    bins = [0.0] * 9
    for y in range(top, top + 8):
        for x in range(left, left + 8):
            west, east = (pixel(y - 1, c) + 2 * pixel(y, c) + pixel(y + 1, c) for c in (x - 1, x + 1))
            north, south = (pixel(r, x - 1) + 2 * pixel(r, x) + pixel(r, x + 1) for r in (y - 1, y + 1))
            gx, gy = west - east, north - south
            bins[math.floor(math.atan2(gx, gy) / math.pi * 9) % 9] += math.hypot(gx, gy)
    length = math.sqrt(sum(value * value for value in bins))
    return [value / length for value in bins]


def slow_target(image: Tensor, row: int, column: int) -> Tensor:
    """The 108 values of one 16 x 16 patch: 2 x 2 cells, three channels, nine bins."""
    planes = image.double().tolist()
    return torch.tensor(
        [
            value
            for top in (16 * row, 16 * row + 8)
            for left in (16 * column, 16 * column + 8)
            for plane in planes
            for value in slow_histogram(plane, top, left)
        ]
    )


def slow_predictions(method: Method, image: Tensor, hidden: Tensor) -> Tensor:
    """One image with hidden patches bool [h, w] to [h·w, 108], by timm's blocks and one linear layer."""
    vit = method.encoder.model
    stem = vit.patch_embed
    patches = stem.stem.proj(image[None])[0].flatten(1).T.clone()
    patches[hidden.flatten()] = stem.mask_token
    x = torch.cat([vit.cls_token[0], patches]) + vit.pos_embed[0]
    x = vit.norm(vit.blocks(x[None]))[0, 1:]
    (decoder,) = method.decoders
    return x @ decoder.head.weight.T + decoder.head.bias


@torch.no_grad()
def test_loss_equals_the_definition():
    method = tiny_maskfeat()
    images = parts.images(2, SIZE)
    mask = method.mask.sample(torch.arange(2), method.mask.grid(SIZE, method.encoder.cell))
    assert mask.grid == (4, 6)
    assert mask.count == 9  # 40 % of 24
    assert method.decoders[0].head.out_features == 108
    total, count = 0.0, 0
    for image, hidden in zip(images, mask.hidden, strict=True):
        predictions = slow_predictions(method, image, hidden)
        for row, column in hidden.nonzero().tolist():
            total += (predictions[6 * row + column] - slow_target(image, row, column)).square().mean()
            count += 1
    output = method(images, mask)
    assert output.predictions[0].shape == (2, 8, 12, 27)
    torch.testing.assert_close(output.loss, total / count, rtol=0, atol=1e-5)
    assert output.loss > 0.05


@torch.no_grad()
def test_visible_patches_do_not_count():
    method = tiny_maskfeat()
    images = parts.images(1, SIZE)
    mask = method.mask.sample(torch.arange(1), method.mask.grid(SIZE, 16))
    output = method(images, mask)
    (target,) = method.target(images, [(8, 12)])
    by_cell = (output.predictions[0] - target).square().mean(dim=-1)
    fine = mask.hidden.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(output.loss, by_cell[fine].mean(), rtol=0, atol=1e-6)
    assert (by_cell[fine].mean() - by_cell.mean()).abs() > 1e-4
