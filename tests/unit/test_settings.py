"""From flags to parts: what is given replaces the recipe's, all else stays; refusals name the flag."""

import json
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mimkit.backbones import create_encoder
from mimkit.compose import compose, recipes
from mimkit.decoders import TransformerDecoder
from mimkit.masks import RandomMask
from mimkit.pretrain import plan
from mimkit.readouts import Fused, Last
from mimkit.recipes import Recipe, build
from mimkit.settings import Machine, Settings, as_size, flag
from mimkit.targets import LowFreqPixels, Pixels
from mimkit.train import Train
from mimkit.views import Normalization, RandomResizedCrop, SimpleResizedCrop

HERE = Path("photos")
CPU = torch.device("cpu")


def composed(recipe: str = "mae", **settings) -> Recipe:
    return compose(recipe, Settings(data=HERE, **settings))


def unwrapped(part) -> tuple:
    """A factory and its arguments; composing wraps factories once more."""
    return (part.func, part.keywords) if isinstance(part, partial) else (part, {})


@pytest.mark.parametrize("name", recipes())
def test_nothing_given_changes_nothing(name):
    base, same = recipes()[name](), composed(name)
    for field in fields(Recipe):
        assert unwrapped(getattr(same, field.name)) == unwrapped(getattr(base, field.name)), field.name


REPLACED = {
    "view": ({"view": "simple-resized-crop"}, {"view": SimpleResizedCrop()}),
    "other view": ({"view": "random-resized-crop"}, {"view": RandomResizedCrop()}),
    "mask": ({"mask": "random"}, {"mask": RandomMask()}),
    "ratio and cell": ({"mask_ratio": 0.6, "mask_cell": 32}, {"mask": RandomMask(ratio=0.6, cell=32)}),
    "readout": ({"readout": "fused"}, {"readout": Fused}),
    "other readout": ({"readout": "last"}, {"readout": Last}),
    "target": ({"target": "raw-pixels"}, {"target": Pixels(normalized=False)}),
    "low frequencies": ({"target": "lowfreq-pixels"}, {"target": LowFreqPixels()}),
    "low frequencies as published": (
        {"target": "lowfreq-pixels-mmselfsup"},
        {"target": LowFreqPixels(filter="mmselfsup")},
    ),
    "grey": ({"channels": 1}, {"channels": 1}),
    "size": ({"image_size": (96,)}, {"image_size": (96, 96)}),
    "sizes": ({"image_size": (96, 160)}, {"image_size": (96, 160)}),
}


@pytest.mark.parametrize(("given", "expected"), REPLACED.values(), ids=REPLACED)
def test_a_part_is_replaced_and_no_other(given, expected):
    base, changed = composed(), composed(**given)
    for field in fields(Recipe):
        wanted = expected.get(field.name, getattr(base, field.name))
        assert unwrapped(getattr(changed, field.name)) == unwrapped(wanted), field.name


def test_the_published_filter_knows_grey_pixels():
    assert composed(target="lowfreq-pixels-mmselfsup", channels=1).target.normalization == Normalization.for_channels(1)


def test_the_decoder_keeps_what_is_not_given():
    assert unwrapped(composed(decoder_depth=2).decoder) == (TransformerDecoder, {"width": 512, "depth": 2, "heads": 16})
    given = composed(decoder="transformer", decoder_width=64, decoder_heads=4)
    assert unwrapped(given.decoder)[1] == {"width": 64, "depth": 8, "heads": 4}


def test_naming_the_parts_a_recipe_has_changes_nothing():
    base, same = recipes()["small"](), composed("small", mask="random", decoder="transformer")
    assert same.mask == base.mask
    assert unwrapped(same.decoder) == unwrapped(base.decoder)


def test_the_backbone_keeps_the_rest_of_the_encoder():
    assert unwrapped(composed(backbone="vit_small_patch16_224").encoder) == (
        create_encoder,
        {"name": "vit_small_patch16_224"},
    )


def test_training_values():
    base = recipes()["mae"]().train
    given = {"epochs": 50, "batch_size": 96, "base_lr": 1e-3, "warmup_epochs": 3.0, "min_lr": 1e-6}
    given |= {"weight_decay": 0.1, "clip_grad": 3.0, "precision": "fp32", "seed": 9}
    assert composed(**given).train == replace(base, **given)


@pytest.mark.parametrize(
    ("name", "decay_tokens"), [("mae", True), ("pixmim", False), ("mff", False), ("pixmim-mff", False)]
)
def test_published_training_values(name, decay_tokens):
    """MAE's; the ports that PixMIM and MFF were published with do not decay tokens."""
    published = {"epochs": 800, "batch_size": 4096, "base_lr": 1.5e-4, "lr_batch": 256, "warmup_epochs": 40}
    published |= {"min_lr": 0, "betas": (0.9, 0.95), "weight_decay": 0.05, "clip_grad": None}
    values = recipes()[name]().train
    assert {key: getattr(values, key) for key in published} == published
    assert values.decay_tokens is decay_tokens
    assert values.peak_lr == pytest.approx(2.4e-3)


@pytest.mark.parametrize(("epochs", "warmup"), [(10, 1.5), (100, 15), (1000, 40)])
def test_warmup_follows_a_shorter_run(epochs, warmup):
    assert composed(epochs=epochs).train.warmup_epochs == pytest.approx(warmup)


@pytest.mark.parametrize("name", recipes())
@pytest.mark.parametrize("more", [{}, {"channels": 1, "target": "lowfreq-pixels-mmselfsup"}], ids=["rgb", "grey"])
def test_every_recipe_builds_and_steps(name, more):
    size = (64, 96)
    settings = {"backbone": "test_vit", "image_size": size, "decoder_width": 32, "decoder_heads": 2, **more}
    recipe = composed(name, decoder_depth=1, **settings)
    method = build(recipe)
    images = torch.zeros(2, recipe.channels, *size, dtype=torch.uint8)
    output = method(images, keys=torch.arange(2))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert (method.encoder.image_size, method.encoder.channels) == (size, recipe.channels)
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


WRONG = {
    "--mask-ratio": [{"mask_ratio": 0.0}, {"mask_ratio": 1.0}, {"mask_ratio": float("nan")}],
    "--image-size": [{"image_size": ()}, {"image_size": (0,)}, {"image_size": (32, -1)}, {"image_size": (1, 2, 3)}],
    "--epochs": [{"epochs": 0}, {"epochs": -3}],
    "--batch-size": [{"batch_size": 0}],
    "--micro-batch": [{"micro_batch": 0}],
    "--base-lr": [{"base_lr": 0.0}],
    "--warmup-epochs": [{"warmup_epochs": 10.0, "epochs": 10}, {"warmup_epochs": -1.0}],
    "--decoder-width": [{"decoder_width": 0}],
    "--decoder-depth": [{"decoder_depth": 0}],
    "--decoder-heads": [{"decoder_heads": -1}],
    "--held-out": [{"held_out": 1.0}, {"held_out": -0.1}],
    "--skipped-share": [{"skipped_share": 1.5}],
    "--probe-every": [{"probe_every": 0}],
    "--probe-images": [{"probe_images": 0}],
    "--log-every": [{"log_every": 0}],
    "--mask-cell": [{"mask_cell": 0}],
    "--seed": [{"seed": -1}, {"seed": 2**63}],
    "--view": [{"view": "crop"}],
    "--mask": [{"mask": ""}],
    "--readout": [{"readout": "Last"}],
    "--decoder": [{"decoder": "mlp"}],
    "--target": [{"target": "pixel"}],
    "recipe": [{"recipe": "MAE"}],
}


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, all_ in WRONG.items() for wrong in all_], ids=str)
def test_refusals_name_the_flag_and_the_value(name, wrong):
    with pytest.raises(ValueError, match=rf"^{name}\b") as refusal:
        composed(**wrong)
    value = next(iter(wrong.values()))
    shown = str(list(value)) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)
    assert shown in str(refusal.value)


MISFITS = {
    "--decoder-width": {"decoder_width": 52, "decoder_heads": 8},
    "--image-size": {"image_size": (100,)},
    "--backbone": {"backbone": "vit_tiny_patch16_244"},
    "--mask-ratio": {"mask_ratio": 0.99},
    "--mask-cell": {"mask_cell": 24},
}


@pytest.mark.parametrize(("name", "wrong"), MISFITS.items(), ids=str)
def test_parts_that_do_not_fit_are_refused_when_built(name, wrong):
    settings = {"backbone": "test_vit", "image_size": (64,), "decoder_width": 32, "decoder_heads": 2} | wrong
    with pytest.raises(ValueError, match=rf"{name}\b.*:"):
        build(composed(**settings))


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
    assert (batches.parts, batches.batch_size, batches.steps_per_epoch) == (3, 12, 2)
    with pytest.raises(ValueError, match=r"--micro-batch 5 .*12"):
        plan("mae", replace(small, micro_batch=5), device=CPU)
    with pytest.raises(ValueError, match=r"--batch-size 28 .*24"):
        plan("mae", replace(small, batch_size=28, micro_batch=None), device=CPU)
