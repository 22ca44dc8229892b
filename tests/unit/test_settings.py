"""What a request may hold, how it is kept, and the plan that is made of it."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from mimkit.errors import flag
from mimkit.plan import plan
from mimkit.settings import Settings, as_size
from mimkit.training.loop import Train
from mimkit.training.machine import Machine

HERE = Path("photos")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "wrong", [{"workers": -1}, {"checkpoint_minutes": -0.5}, {"checkpoint_minutes": float("nan")}], ids=str
)
def test_what_a_machine_cannot_have(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{flag(name)} .*{value}"):
        Machine(**wrong)


def test_sizes():
    assert as_size(None) is None
    assert as_size([7]) == (7, 7)
    assert as_size((7, 9)) == (7, 9)


def test_settings_survive_json():
    given = {"data": Path("/été/photos"), "image_size": (96, 160), "mask_ratio": 0.6, "epochs": 7, "precision": "fp32"}
    given |= {"encoder": "dense", "class_tokens": 4, "predict_share": 0.5, "taps": (1, -1), "teacher": "vit_small"}
    given |= {"hog_offsets": (0.1, -0.2), "mean": (0.5,), "std": (0.25,)}
    for settings in (Settings(data=HERE), Settings(**given)):
        assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_settings_of_another_version_are_refused():
    with pytest.raises(ValueError, match="teacher_momentum"):
        Settings.from_json({**Settings(data=HERE).to_json(), "teacher_momentum": 0.996})


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_photos) -> Path:
    return make_photos(tmp_path_factory.mktemp("plan") / "photos", count=30)


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
    assert (again.parts, again.probe_every) == (first.parts, first.probe_every)
    assert not any("4096" in note for note in again.notes)
    for one, other in zip(first.method.state_dict().values(), again.method.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    trained = {f.name for f in fields(Train)} & {f.name for f in fields(Settings)}
    assert all(getattr(kept, name) == getattr(first.recipe.train, name) for name in trained)


def test_the_seed_changes_the_weights(photos):
    small = {"data": photos, "backbone": "test_vit", "image_size": (64,), "decoder_depth": 1}
    one, other = (plan("mae", Settings(**small, seed=seed), device=CPU).method for seed in (0, 1))
    assert not torch.equal(one.decoders[0].head.weight, other.decoders[0].head.weight)


def test_micro_batches_split_the_batch(photos):
    small = Settings(data=photos, backbone="test_vit", image_size=(64,), decoder_depth=1, batch_size=12, micro_batch=4)
    planned = plan("mae", small, device=CPU)
    assert planned.parts == 3
    batches = planned.batches(workers=0)
    assert (batches.accumulation, batches.batch_size, batches.steps_per_epoch) == (3, 12, 2)
    with pytest.raises(ValueError, match=r"--micro-batch 5 .*12"):
        plan("mae", replace(small, micro_batch=5), device=CPU)
    with pytest.raises(ValueError, match=r"--batch-size 28 .*24"):
        plan("mae", replace(small, batch_size=28, micro_batch=None), device=CPU)
