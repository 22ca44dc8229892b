"""The plan that is made of a request, and made again of what is kept of it."""

import json
from dataclasses import replace

import pytest
import torch

from helpers.plans import plan
from mimkit.compose import TRAIN_SETTINGS
from mimkit.settings import Settings

CPU = torch.device("cpu")
PHOTOS = {"count": 30}


def test_a_plan_can_be_planned_again(photos):
    """What run.json keeps is resolved: it gives the same plan, the same weights too, whatever the defaults were."""
    settings = Settings(data=photos, backbone="test_vit", image_size=(64,), decoder_depth=1)
    first = plan("mae", settings, device=CPU)
    assert first.recipe.train.batch_size == 16  # the recipe's 4096, cut to what 24 images give
    assert any("4096" in note for note in first.notes)
    kept = Settings.from_json(json.loads(json.dumps(first.settings.to_json())))
    again = plan("mae", kept, device=CPU)
    assert again.settings == first.settings
    assert again.recipe.train == first.recipe.train
    assert again.batches().accumulation == first.batches().accumulation
    assert not any("4096" in note for note in again.notes)
    for one, other in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert all(getattr(kept, name) == getattr(first.train, field) for field, name in TRAIN_SETTINGS.items())


def test_the_seed_changes_the_weights(photos):
    small = {"data": photos, "backbone": "test_vit", "image_size": (64,), "decoder_depth": 1}
    one, other = (plan("mae", Settings(**small, seed=seed), device=CPU).model for seed in (0, 1))
    assert not torch.equal(one.decoders[0].head.weight, other.decoders[0].head.weight)


def test_micro_batches_split_the_batch(photos):
    small = Settings(data=photos, backbone="test_vit", image_size=(64,), decoder_depth=1, batch_size=12, micro_batch=4)
    planned = plan("mae", small, device=CPU)
    batches = planned.batches(workers=0)
    assert (batches.accumulation, batches.batch_size, batches.steps_per_epoch) == (3, 12, 2)
    with pytest.raises(ValueError, match=r"--micro-batch 5 .*12"):
        plan("mae", replace(small, micro_batch=5), device=CPU)
    with pytest.raises(ValueError, match=r"--batch-size 28 .*24"):
        plan("mae", replace(small, batch_size=28, micro_batch=None), device=CPU)
