"""From flags to parts: what is given replaces the recipe's, all else stays; refusals name the flag."""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers.tiny import TINY
from mimkit.backbones import create_encoder
from mimkit.compose import RECIPES, compose, find_recipe, list_recipes
from mimkit.decoders import CrossDecoder, LinearDecoder, TransformerDecoder
from mimkit.masks import BlockMask, ComplementaryMasks, RandomMask, UniformMask
from mimkit.readouts import Fused, FusedHierarchical, Last, Levels
from mimkit.recipes import Recipe, build
from mimkit.settings import Settings
from mimkit.targets import Features, Hog, LowFreqPixels, Pixels
from mimkit.views import Normalization, RandomResizedCrop, SimpleResizedCrop

HERE = Path("photos")
MINE = """
from dataclasses import replace
from mimkit.masks import RandomMask
from mimkit.recipes import mae

def recipe():
    return replace(mae(), mask=RandomMask(ratio=0.5))

def number():
    return 3

seven = 7

def needy(size):
    return mae()

def failing():
    return 1 / 0

def leaving():
    raise SystemExit(3)

def misled():
    return replace(mae(), mask=RandomMask(ratio=2))
"""
OWN = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def composed(recipe: str = "mae", **settings) -> Recipe:
    return compose(recipe, Settings(data=HERE, **settings))


def unwrapped(part) -> tuple:
    """A factory and its arguments, or several; composing wraps factories once more."""
    if isinstance(part, tuple):
        return tuple(map(unwrapped, part))
    return (part.func, part.keywords) if isinstance(part, partial) else (part, {})


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_given_changes_nothing(name):
    base, same = RECIPES[name](), composed(name)
    for field in fields(Recipe):
        assert unwrapped(getattr(same, field.name)) == unwrapped(getattr(base, field.name)), field.name


MAE_ENCODER = {"name": "vit_base_patch16_224"}
REPLACED = {
    "view": ({"view": "simple-resized-crop"}, {"view": SimpleResizedCrop()}),
    "other view": ({"view": "random-resized-crop"}, {"view": RandomResizedCrop()}),
    "mask": ({"mask": "random"}, {"mask": RandomMask()}),
    "ratio and cell": ({"mask_ratio": 0.6, "mask_cell": 32}, {"mask": RandomMask(ratio=0.6, cell=32)}),
    "one mask for the batch": ({"mask": "shared", "mask_ratio": 0.6}, {"mask": RandomMask(ratio=0.6, shared=True)}),
    "share predicted": ({"predict_share": 0.5}, {"mask": RandomMask(scored=0.5)}),
    "blocks": ({"mask": "block"}, {"mask": BlockMask()}),
    "larger blocks": ({"mask": "block", "mask_ratio": 0.5, "mask_cell": 32}, {"mask": BlockMask(ratio=0.5, cell=32)}),
    "one of four": (
        {"mask": "uniform", "mask_cell": 32},
        {"mask": UniformMask(cell=32), "encoder": partial(create_encoder, **MAE_ENCODER, mask_token=True)},
    ),
    "four masks an image": ({"mask": "complementary"}, {"mask": ComplementaryMasks()}),
    "readout": ({"readout": "fused"}, {"readout": Fused}),
    "other readout": ({"readout": "last"}, {"readout": Last}),
    "deeper projections": ({"readout": "fused-mlp"}, {"readout": partial(Fused, projection="mlp")}),
    "attention to taps": ({"readout": "fused-attention"}, {"readout": partial(Fused, fusion="attention")}),
    "all blocks": ({"readout": "fused-all"}, {"readout": partial(Fused, taps="all", projection=None)}),
    "stages": ({"readout": "fused-hierarchical"}, {"readout": FusedHierarchical}),
    "levels": ({"readout": "levels"}, {"readout": Levels}),
    "taps": ({"readout": "fused", "taps": (1, 5, 11)}, {"readout": partial(Fused, taps=(1, 5, 11))}),
    "taps of levels": ({"readout": "levels", "taps": (0, 1, 2, 3)}, {"readout": partial(Levels, taps=(0, 1, 2, 3))}),
    "decoder": ({"decoder": "cross"}, {"decoder": CrossDecoder}),
    "narrow decoder": (
        {"decoder": "cross", "decoder_width": 64, "decoder_heads": 4},
        {"decoder": partial(CrossDecoder, width=64, heads=4)},
    ),
    "linear decoder": ({"decoder": "linear"}, {"decoder": LinearDecoder}),
    "dense encoder": ({"encoder": "dense"}, {"encoder": partial(create_encoder, **MAE_ENCODER, kind="dense")}),
    "visible encoder": ({"encoder": "visible"}, {"encoder": partial(create_encoder, **MAE_ENCODER, kind="visible")}),
    "class tokens": ({"class_tokens": 8}, {"encoder": partial(create_encoder, **MAE_ENCODER, reg_tokens=7)}),
    "one class token": ({"class_tokens": 1}, {"encoder": partial(create_encoder, **MAE_ENCODER, reg_tokens=0)}),
    "norms": (
        {"norm_eps": 1e-5},
        {
            "encoder": partial(create_encoder, **MAE_ENCODER, norm_eps=1e-5),
            "decoder": partial(TransformerDecoder, width=512, depth=8, heads=16, eps=1e-5),
        },
    ),
    "target": ({"target": "raw-pixels"}, {"target": Pixels(normalized=False)}),
    "low frequencies": ({"target": "lowfreq-pixels"}, {"target": LowFreqPixels()}),
    "low frequencies as published": (
        {"target": "lowfreq-pixels-mmselfsup"},
        {"target": LowFreqPixels(filter="mmselfsup")},
    ),
    "gradients": ({"target": "hog"}, {"target": Hog(bins=9)}),
    "finer gradients": ({"target": "hog-18"}, {"target": Hog(bins=18)}),
    "gradients with offsets": (
        {"target": "hog", "hog_offsets": (0.1, -0.2, 0.3, 0.4)},
        {"target": Hog(offsets=((0.1, -0.2), (0.3, 0.4)))},
    ),
    "features": ({"target": "features", "teacher": "vit_small"}, {"target": Features("vit_small")}),
    "grey": ({"channels": 1}, {"channels": 1}),
    "size": ({"image_size": (96,)}, {"image_size": (96, 96)}),
    "sizes": ({"image_size": (96, 160)}, {"image_size": (96, 160)}),
    "statistics": ({"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}, {"statistics": OWN}),
}


@pytest.mark.parametrize(("given", "expected"), REPLACED.values(), ids=REPLACED)
def test_a_part_is_replaced_and_no_other(given, expected):
    base, changed = composed(), composed(**given)
    for field in fields(Recipe):
        wanted = expected.get(field.name, getattr(base, field.name))
        assert unwrapped(getattr(changed, field.name)) == unwrapped(wanted), field.name


def test_targets_know_how_pixels_are_normalised():
    for more in ({"target": "lowfreq-pixels-mmselfsup"}, {"target": "features", "teacher": "vit_small"}):
        assert composed(**more, channels=1).target.normalization == Normalization.for_channels(1)
        assert composed(**more, mean=OWN.mean, std=OWN.std).target.normalization == OWN


def test_random_masks_keep_what_is_not_given():
    assert composed("crossmae", mask="shared").mask == RandomMask(scored=1 / 3, shared=True)
    assert composed("greenmim", mask="random").mask == RandomMask()
    assert composed("lsmae", mask="random", mask_ratio=0.8).mask == RandomMask(ratio=0.8, cell=32)
    assert composed("maskfeat", mask="random").mask == RandomMask()  # nothing of the block mask's
    assert composed("um-mae", mask="random").mask == RandomMask()


def test_the_decoder_keeps_what_is_not_given():
    assert unwrapped(composed(decoder_depth=2).decoder) == (TransformerDecoder, {"width": 512, "depth": 2, "heads": 16})
    given = composed(decoder="transformer", decoder_width=64, decoder_heads=4)
    assert unwrapped(given.decoder)[1] == {"width": 64, "depth": 8, "heads": 4}
    several = composed("localmim-swin", decoder_depth=2)
    assert [unwrapped(each)[1]["width"] for each in several.decoder] == [64, 128, 128, 128]
    assert [unwrapped(each)[1]["depth"] for each in several.decoder] == [2, 2, 2, 2]


def test_naming_the_parts_a_recipe_has_changes_nothing():
    base, same = RECIPES["small"](), composed("small", mask="random", decoder="transformer")
    assert same.mask == base.mask
    assert unwrapped(same.decoder) == unwrapped(base.decoder)


def test_the_backbone_keeps_the_rest_of_the_encoder():
    assert unwrapped(composed(backbone="vit_small_patch16_224").encoder) == (
        create_encoder,
        {"name": "vit_small_patch16_224"},
    )
    swin = composed("simmim", backbone="swin_tiny_patch4_window7_224")
    assert unwrapped(swin.encoder)[1] == {"name": "swin_tiny_patch4_window7_224", "kind": "dense"}


def test_training_values():
    base = RECIPES["mae"]().train
    given = {"epochs": 50, "batch_size": 96, "base_lr": 1e-3, "warmup_epochs": 3.0, "min_lr": 1e-6}
    given |= {"weight_decay": 0.1, "clip_grad": 3.0, "precision": "fp32"}
    assert composed(**given, ema=0.99).train == replace(base, **given, ema_decay=0.99)
    assert composed(seed=9).train == base  # the seed is the request's


@pytest.mark.parametrize(
    ("name", "decay_tokens"), [("mae", True), ("pixmim", False), ("mff", False), ("pixmim-mff", False)]
)
def test_published_training_values(name, decay_tokens):
    """MAE's; the ports that PixMIM and MFF were published with do not decay tokens."""
    published = {"epochs": 800, "batch_size": 4096, "base_lr": 1.5e-4, "lr_batch": 256, "warmup_epochs": 40}
    published |= {"min_lr": 0, "betas": (0.9, 0.95), "weight_decay": 0.05, "clip_grad": None}
    values = RECIPES[name]().train
    assert {key: getattr(values, key) for key in published} == published
    assert values.decay_tokens is decay_tokens
    assert values.peak_lr == pytest.approx(2.4e-3)


@pytest.mark.parametrize(("epochs", "warmup"), [(10, 1.5), (100, 15), (1000, 40)])
def test_warmup_follows_a_shorter_run(epochs, warmup):
    assert composed(epochs=epochs).train.warmup_epochs == pytest.approx(warmup)


@pytest.mark.parametrize(("epochs", "milestones"), [(800, (700,)), (400, (350,)), (8, (7,)), (None, (700,))])
def test_milestones_follow_the_length_of_the_run(epochs, milestones):
    assert composed("simmim-vit", epochs=epochs).train.milestones == pytest.approx(milestones)
    assert composed("simmim", epochs=epochs).train.milestones == ()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("more", [{}, {"channels": 1, "target": "lowfreq-pixels-mmselfsup"}], ids=["rgb", "grey"])
def test_every_recipe_builds_and_steps(name, more):
    side = TINY[name]["image_size"][0]
    size = (side, 2 * side)
    recipe = composed(name, **TINY[name] | {"image_size": size} | more)
    method = build(recipe).train()
    images = torch.zeros(2, recipe.channels, *size, dtype=torch.uint8)
    output = method(images, keys=torch.arange(2))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert (method.encoder.image_size, method.encoder.channels) == (size, recipe.channels)
    assert [p for p, value in method.named_parameters() if value.requires_grad and value.grad is None] == []


def test_every_recipe_has_a_tiny_form():
    assert TINY.keys() == RECIPES.keys()


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
    "--class-tokens": [{"class_tokens": 0}],
    "--norm-eps": [{"norm_eps": 0.0}, {"norm_eps": 1.0}, {"norm_eps": float("nan")}],
    "--ema": [{"ema": 0.0}, {"ema": 1.0}, {"ema": float("nan")}],
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


UNFIT = {  # refused as soon as settings meet the recipe: what, and why
    "nothing predicted": ("mae", {"predict_share": 0.0}, "--predict-share.* above 0 and at most 1, got 0.0"),
    "too much predicted": ("mae", {"predict_share": 1.5}, "--predict-share.* above 0 and at most 1, got 1.5"),
    "no share predicted": ("mae", {"predict_share": 0.0}, "--predict-share.* above 0 and at most 1, got 0"),
    "blocks in part": ("maskfeat", {"predict_share": 0.5}, "--predict-share.*BlockMask has no"),
    "uniform at a ratio": ("um-mae", {"mask_ratio": 0.5}, "--mask-ratio.*UniformMask has no ratio"),
    "complementary at a ratio": ("convmae-fast", {"mask_ratio": 0.5}, "--mask-ratio.*ComplementaryMasks has no ratio"),
    "taps of one": ("mae", {"taps": (0, -1)}, "--taps: Last takes no taps"),
    "layers of a linear decoder": ("simmim", {"decoder_depth": 2}, "--decoder.*depth.*: LinearDecoder takes no depth"),
    "offsets of pixels": ("mae", {"hog_offsets": (0.1, 0.2)}, "--hog-offsets: Pixels has no offsets"),
    "odd offsets": ("localmim", {"hog_offsets": (0.1, 0.2, 0.3)}, "--hog-offsets takes two .* for each level, got 3"),
    "features of nobody": ("mae", {"target": "features"}, "--target features and --teacher NAME go together"),
    "teacher of nothing": ("mae", {"teacher": "vit_small"}, "--target features and --teacher NAME go together"),
    "teacher of pixels": ("mae", {"teacher": "vit_small", "target": "pixels"}, "--target features and --teacher"),
    "mean alone": ("mae", {"mean": (0.5, 0.5, 0.5)}, "--mean and --std go together"),
    "unequal statistics": ("mae", {"mean": (0.5,), "std": (0.5, 0.5, 0.5)}, "--mean and --std.* one number each"),
    "statistics of grey": ("mae", {"mean": (0.5,), "std": (0.5,)}, "--mean, --std: 1 numbers for images of 3 channels"),
    "no deviation": ("mae", {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.0)}, "--std must be above 0.*0.0"),
    "start above the peak": ("mae", {"min_lr": 1.0}, "--min-lr 1 must lie in 0 .. --base-lr 0.00015"),
}


@pytest.mark.parametrize(("recipe", "settings", "reason"), UNFIT.values(), ids=UNFIT)
def test_settings_that_do_not_fit_the_recipe_are_refused_with_the_reason(recipe, settings, reason):
    with pytest.raises(ValueError, match=rf"^--.*{reason[2:]}"):
        composed(recipe, **settings)


MISFITS = {  # refused when the parts are built
    "width and heads": ("mae", {"decoder_width": 52, "decoder_heads": 8}, "--decoder-width.*: .*52.* 8 "),
    "size": ("mae", {"image_size": (100,)}, "--image-size.*: .*16 .*100"),
    "misspelt": ("mae", {"backbone": "vit_tiny_patch16_244"}, "--backbone.*: .*vit_tiny_patch16_244.* did you mean"),
    "all hidden": ("mae", {"mask_ratio": 0.99}, "--mask-ratio.*: .*0.99 leaves 0 of 16 cells visible"),
    "nothing hidden": ("maskfeat", {"mask_ratio": 0.01}, "--mask-ratio.*: .*0.01 hides none of 16"),
    "nothing scored": ("crossmae", {"predict_share": 0.01}, "--mask.*: .*0.01 leaves none of 12 hidden cells to score"),
    "uneven cell": ("mae", {"mask_cell": 24}, "--mask-cell.*: .*24 .*64"),
    "half a patch": ("mae", {"mask_cell": 8}, "--mask-cell: cells of 8 pixels .* visible tokens needs multiples of 16"),
    "half a stem": ("simmim", {"mask_cell": 2}, "--mask-cell: cells of 2 pixels .* its stem needs multiples of 4"),
    "half a last cell": ("greenmim", {"mask_cell": 16}, "--mask-cell: cells of 16 pixels .* needs multiples of 32"),
    "odd squares": ("um-mae", {"image_size": (48,)}, "--mask.*: .*one of 2 x 2 cells.* 3 x 3"),
    "uneven deal": ("convmae-fast", {"image_size": (48,)}, "--mask.*: 9 cells cannot be dealt to 4"),
    "uniform Swin": (
        "greenmim",
        {"mask": "uniform", "encoder": "visible"},
        "--backbone.*no mask token.*--encoder dense",
    ),
    "uniform ConvMAE": ("convmae", {"mask": "uniform"}, "--backbone.*: convmae_base has no mask token"),
    "dense ConvMAE": ("convmae", {"encoder": "dense"}, "--backbone.*: convmae_base has no dense form"),
    "visible BEiT": ("simmim-vit", {"encoder": "visible"}, "--backbone.*: beit_base.* it is a Beit.*--encoder dense"),
    "visible ResNet": (
        "mae",
        {"backbone": "resnet18", "encoder": "visible"},
        "--backbone.*: resnet18 cannot .*: it is a ResNet.*--encoder dense",
    ),
    "isolated dense": ("localmim-isolated", {"encoder": "dense"}, "--backbone.*isolated in encoders of visible tokens"),
    "one layer": (
        "maskfeat",
        {"encoder": "visible"},
        "--decoder.*: a linear .*leaves out.*--decoder transf.*--encoder",
    ),
    "nothing to ask": ("maskfeat", {"decoder": "cross"}, "--decoder.*: a cross .*dense encoder.*--encoder visible"),
    "coarse levels": ("localmim", {"decoder": "cross"}, "--decoder.*: a cross decoder cannot rescale .*16, 16"),
    "fine levels": ("simmim", {"decoder": "transformer", "mask_cell": 4}, "--decoder.*: .*rescales by 0.5, 1, 2 or 4"),
    "stages in one": (
        "simmim",
        {"readout": "fused"},
        "--readout.*: Fused needs one grid; swin.* has .*fused-hierarchi",
    ),
    "no such tap": ("mff", {"taps": (1, 6)}, "--readout.*: tap 6 lies outside the 6 of test_vit"),
    "without the last": ("mff", {"taps": (0, 1)}, "--readout.*: taps .0, 1. must end with the last one, 5"),
    "a tap twice": ("mff", {"taps": (1, 1, -1)}, "--readout.*: taps .1, 1, 5. must .* differ from each other"),
    "three levels": ("localmim", {"taps": (1, 3, 5)}, "--readout.*: a plain transformer has one tap for each of 4"),
    "decoders left over": ("localmim-swin", {"readout": "last"}, "--readout, --decoder: 4 decoders for 1 levels"),
    "epsilon of no norm": (
        "simmim",
        {"backbone": "resnet18", "mask_cell": 32, "norm_eps": 1e-5},
        "--backbone.*: resnet18 has no LayerNorm whose epsilon could be 1e-05",
    ),
    "class token of Swin": ("greenmim", {"class_tokens": 2}, "--backbone.*reg_tokens"),
    "unknown teacher": ("mae", {"target": "features", "teacher": "vit_tny"}, "vit_tny"),
}


@pytest.mark.parametrize(("recipe", "settings", "reason"), MISFITS.values(), ids=MISFITS)
def test_parts_that_do_not_fit_are_refused_when_built(recipe, settings, reason):
    with pytest.raises(ValueError, match=rf"^--.*{reason.removeprefix('--')}"):
        build(composed(recipe, **TINY[recipe] | settings))


def test_a_recipe_from_a_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    for name in (f"{tmp_path}/mine.py:recipe", "mine.py:recipe"):
        monkeypatch.chdir(tmp_path)
        changed = composed(name, **TINY["mae"])
        assert changed.mask == RandomMask(ratio=0.5)
        assert build(changed)(torch.zeros(1, 3, 64, 64)).mask.count == 8
    assert composed("mine.py:recipe", mask_ratio=0.75).mask == RandomMask()


def test_a_recipe_object_in_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(MINE + "\nready = recipe()\n")
    assert find_recipe(f"{tmp_path}/mine.py:ready").mask == RandomMask(ratio=0.5)


def test_a_changed_file_is_run_again(tmp_path):
    file = tmp_path / "mine.py"
    for ratio in ("0.5", "0.625"):
        file.write_text(MINE.replace("0.5", ratio))
        assert find_recipe(f"{file}:recipe").mask.ratio == float(ratio)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("yours.py:recipe", "no such file"),
        ("mine.py:other", "the file has no other"),
        ("mine.py:number", "number gives a int, not a mimkit.recipes.Recipe"),
        ("mine.py:", "the file has no "),
        ("mine.py:seven", "seven gives a int, not a mimkit.recipes.Recipe"),
        ("mine.py:needy", r"mine\.py: TypeError: needy\(\) missing 1 required positional argument: 'size'"),
        ("mine.py:failing", r"mine\.py, line 18, in failing: ZeroDivisionError: division by zero"),
        ("mine.py:leaving", r"mine\.py, line 21, in leaving: SystemExit: 3"),
        ("mine.py:misled", r"mine\.py, line 24, in misled: ValueError: mask ratio"),
        ("mine:recipe", "is unknown; choose from mae"),
        ("mine.txt:recipe", "is unknown; choose from mae"),
    ],
)
def test_files_that_hold_no_such_recipe(tmp_path, monkeypatch, name, reason):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"^recipe '?{name}'?:? {reason}"):
        find_recipe(name)


def test_published_numbers_are_of_the_recipe_itself():
    """What was reported of PixMIM and MFF on MAE is not said of them on other methods."""
    on_mae = {"pixmim", "mff"}
    changed = {name for name in RECIPES if name.startswith(("pixmim", "mff"))}
    assert {name for name in changed if RECIPES[name]().published} == on_mae


def test_statistics_are_for_as_many_channels_as_there_are():
    """Those of a recipe go with its own number of channels only."""
    recipe = replace(RECIPES["mae"](), statistics=Normalization((0.4,) * 3, (0.3,) * 3))
    assert compose(recipe, Settings()).statistics == recipe.statistics
    grey = compose(recipe, Settings(channels=1))
    assert (grey.channels, grey.statistics, grey.normalization) == (1, None, Normalization.for_channels(1))


def test_all_recipes_are_listed():
    assert list_recipes() == [*RECIPES]
