"""No hidden pixel reaches a dense encoder, stems that overlap cells included: whatever is put there, latents and
predictions stay the same to the last bit, and no gradient comes back.
"""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from helpers import parts
from helpers.dense_families import FAMILIES, SIZE, encoder
from mimkit.decoders import TransformerDecoder
from mimkit.masks import Mask, RandomMask
from mimkit.method import Method
from mimkit.readouts import FusedHierarchical, Levels
from mimkit.recipes import build as build_recipe
from mimkit.recipes import simmim

CASES = [(key, cell) for key, family in FAMILIES.items() for cell in (max(8, family.cell), 64)] + [
    (key, cell) for key in ("swin", "convnext-overlap", "resnet18") for cell in (16, 32)
]


def simmim_around(key: str, cell: int, **parts) -> Method:
    """SimMIM with that backbone, hiding cells of so many pixels."""
    around = encoder(key)
    recipe = replace(simmim(), encoder=lambda image_size, channels: around, image_size=SIZE, **parts)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_recipe(replace(recipe, mask=RandomMask(ratio=0.5, cell=cell))).eval()


def example(cell: int) -> tuple[Tensor, Mask, Tensor]:
    """Three images, a mask that hides half of the cells, and the pixels that it hides, [B, C, H, W]."""
    grid = (SIZE[0] // cell, SIZE[1] // cell)
    mask = parts.hide(3, grid, grid[0] * grid[1] // 2, seed=cell)
    images = parts.images(3, SIZE)
    return images, mask, parts.hidden_pixels(mask, SIZE).expand_as(images)


def run(method: Method, images: Tensor, mask: Mask) -> list[Tensor]:
    """Latents of every tap, then the predictions."""
    torch.manual_seed(0)  # for what is random in training
    latents = method.encoder(images, mask, range(method.encoder.depth))
    return [*(latent.tokens for latent in latents), *method(images, mask).predictions]


def assert_nothing_leaks(method: Method, cell: int) -> None:
    images, mask, hidden = example(cell)
    before = run(method, images, mask)
    for replacement in (100 * parts.images(3, SIZE, seed=9), torch.full_like(images, torch.nan)):
        after = run(method, torch.where(hidden, replacement, images), mask)
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old, new)
    assert all(output.isfinite().all() for output in before)
    # The counterpart, without which a constant model would pass.
    seen = run(method, torch.where(hidden, images, parts.images(3, SIZE, seed=9)), mask)
    for old, new in zip(before, seen, strict=True):
        assert (old != new).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(("key", "cell"), CASES)
@torch.no_grad()
def test_hidden_pixels_change_nothing(key, cell):
    assert_nothing_leaks(simmim_around(key, cell), cell)


@pytest.mark.parametrize("key", FAMILIES)
@torch.no_grad()
def test_hidden_pixels_change_nothing_in_training(key):
    """Where batch norms take their statistics from what they see."""
    method = copy.deepcopy(simmim_around(key, 32)).train()
    assert_nothing_leaks(method, 32)
    for path, statistic in method.named_buffers():
        assert statistic.isfinite().all(), path


@pytest.mark.parametrize("readout", [Levels, FusedHierarchical])
@torch.no_grad()
def test_hidden_pixels_change_nothing_at_several_levels(readout):
    decoder = partial(TransformerDecoder, width=32, depth=1, heads=4)
    assert_nothing_leaks(simmim_around("convnext-overlap", 32, readout=readout, decoder=decoder), 32)


@pytest.mark.parametrize("key", FAMILIES)
def test_gradient_at_hidden_pixels_is_exactly_zero(key):
    ours = encoder(key)
    images, mask, hidden = example(32)
    images.requires_grad_()
    for latent in ours(images, mask, range(ours.depth)):
        weights = torch.randn(latent.tokens.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad((latent.tokens * weights).sum(), images, retain_graph=True)
        assert not gradient[hidden].any()
        assert (gradient[~hidden] != 0).float().mean() > 0.9


@pytest.mark.parametrize("key", FAMILIES)
@torch.no_grad()
def test_mask_token_is_what_hidden_cells_show(key):
    """Another token changes every sample's latents; nothing else tells hidden cells from black ones."""
    ours = copy.deepcopy(encoder(key))
    images, mask, hidden = example(32)
    before = ours(images, mask)[0].tokens
    ours.model.get_submodule(ours.stem_path).mask_token.normal_()
    after = ours(images, mask)[0].tokens
    assert (before != after).flatten(1).any(dim=1).all()
    unmasked = ours(torch.where(hidden, 0.0, images))[0].tokens
    assert (unmasked != after).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(("key", "cell", "smallest"), [("vit-hybrid", 16, 32), ("beit", 8, 16), ("hiera", 2, 4)])
def test_cells_that_the_stem_cannot_hide_are_refused(key, cell, smallest):
    h, w = SIZE[0] // cell, SIZE[1] // cell
    with pytest.raises(ValueError, match=rf"{h} x {w} cells over 64 x 128 pixels.* multiples of {smallest} pixels"):
        encoder(key)(parts.images(1, SIZE), parts.hide(1, (h, w), 5))
    with pytest.raises(ValueError, match=rf"cells of {cell} pixels cannot be hidden.* multiples of {smallest} pixels"):
        simmim_around(key, cell)
