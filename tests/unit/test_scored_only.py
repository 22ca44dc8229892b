import build
import pytest
import torch
from tiny import TINY

from mimkit.backbones.lean_block import use_lean_blocks
from mimkit.compose import compose
from mimkit.masks import RandomMask
from mimkit.recipes import build as build_method
from mimkit.settings import Settings


@pytest.mark.parametrize("recipe", ["mae", "mff", "convmae", "greenmim", "localmim"])
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("scored", [1.0, 0.5])
def test_predicting_the_scored_cells_only_changes_nothing_else(tmp_path, recipe, lean, scored):
    settings = Settings(data=tmp_path, **TINY[recipe] | ({"decoder_depth": 2} if recipe != "localmim" else {}))
    composed = compose(recipe, settings)
    method = build.perturb(build_method(composed)).train()
    if lean:
        use_lean_blocks(method)
    images = build.images(3, composed.image_size, 3)
    mask = RandomMask(ratio=0.75, scored=scored).sample(torch.arange(3), composed.image_size, method.encoder.cell)
    outputs, gradients = [], []
    for only in (False, True):
        for decoder in method.decoders:
            decoder.scored_only = only
        method.zero_grad()
        outputs.append(method(images, mask=mask))
        outputs[-1].loss.backward()
        gradients.append({name: p.grad for name, p in method.named_parameters() if p.grad is not None})
    full, fewer = outputs
    assert fewer.loss.item() == pytest.approx(full.loss.item(), rel=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
    for expected, found in zip(full.predictions, fewer.predictions, strict=True):
        weights = mask.weights(found.shape[1:3])
        at = weights > 0
        assert torch.allclose(found[at], expected[at], rtol=1e-4, atol=1e-5)
        if recipe != "localmim":  # whose predictions have other grids
            assert (found[~at] == 0).all()
    method.eval()
    assert all((prediction != 0).any(dim=-1).all() for prediction in method(images, mask=mask).predictions)
