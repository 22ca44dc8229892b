"""Parts as names and values, and made again from that."""

import json
import math
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import pytest
import torch

from mimkit import records
from mimkit.compose import KNOWN, RECIPES, compose, description_of, restore_recipe
from mimkit.losses import squared
from mimkit.masks import RandomMask
from mimkit.readouts import Fused, Last
from mimkit.recipes import PARTS, Recipe, parts_in_words, record_of_parts
from mimkit.records import as_text, make, parse_text, record_of, same, unknown_parts, up_to_date
from mimkit.settings import Settings
from mimkit.sources import recipe_of
from mimkit.training.optim import Train
from mimkit.views import SimpleResizedCrop


def test_a_part_is_its_name_and_all_its_values():
    assert record_of(RandomMask(ratio=0.5)) == {
        "name": "RandomMask",
        "values": {"ratio": 0.5, "cell": None, "shared": False, "scored": 1.0},
    }
    assert record_of(squared) == {"name": "squared", "values": {}}
    assert record_of(partial(Fused, projection="mlp"))["values"] == {
        "taps": None,
        "projection": "mlp",
        "fusion": "average",
    }
    assert record_of(SimpleResizedCrop())["values"]["interpolation"] == {"name": "BILINEAR", "values": {}}
    assert [one["name"] for one in record_of((Last, Fused))] == ["Last", "Fused"]


class Plain:
    """A part that is no dataclass."""

    def __call__(self) -> None: ...


def test_parts_that_no_record_brings_back_are_told_apart():
    """Also those that have the name of a part of mimkit's."""
    same_name = type("RandomMask", (RandomMask,), {})
    for known in (
        RandomMask(),
        squared,
        partial(Fused, projection="mlp"),
        (Last, Fused),
        SimpleResizedCrop(),
        0.5,
        None,
    ):
        assert unknown_parts(known, KNOWN) == []
    assert unknown_parts(same_name(), KNOWN) == ["RandomMask"]
    assert unknown_parts(lambda: None, KNOWN) == ["<lambda>"]
    assert unknown_parts((Last, Plain()), KNOWN) == ["Plain"]
    assert unknown_parts(partial(Fused, fusion=Plain), KNOWN) == ["Plain"]
    assert unknown_parts(partial(Fused, (1, 2)), KNOWN) == ["Fused with arguments that have no name"]
    assert unknown_parts(partial(Fused, taps={1, 2}), KNOWN) == ["{1, 2}"]


def test_an_object_of_another_class_is_compared_by_its_name():
    assert record_of(Plain()) == {"name": "Plain", "values": {}}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_comes_back_from_what_files_keep(name):
    """Through JSON, from the parts alone: nothing but their own names is looked up."""
    recipe = RECIPES[name]()
    settings = Settings(data="photos")
    kept = json.loads(json.dumps(description_of("no recipe of today", recipe, settings)))
    again = restore_recipe(kept)
    assert record_of_parts(again) == record_of_parts(recipe)
    assert again.train == recipe.train
    compared = {field.name for field in fields(Recipe)} - {*PARTS, "paper", "published", "verified"}
    assert all(getattr(again, field) == getattr(recipe, field) for field in compared)


@pytest.mark.parametrize("name", RECIPES)
def test_format_1_had_the_text_of_parts(name):
    """What Python wrote of a part reads as the same part: values that it lacks are today's defaults."""
    recipe = RECIPES[name]()
    for part, text in parts_in_words(recipe).items():
        assert same(parse_text(text), record_of(getattr(recipe, part)), KNOWN), text
    assert make(parse_text(str(recipe.train)), KNOWN) == recipe.train


@pytest.mark.parametrize(
    "text",
    ["", "Hog(9)", "a.b(c=1)", "__import__('os').system('true')", "[x for x in y]", "Hog(bins=f())()", "Hog(bins=1+"],
)
def test_other_text_is_refused_and_never_run(text):
    with pytest.raises(ValueError, match="names no part"):
        parse_text(text)


def test_former_names_are_read(monkeypatch):
    train = Train(epochs=4, batch_size=2, base_lr=0.1, warmup_epochs=1, milestones=(3,), ema_decay=0.9)
    old = record_of(train)
    old["values"] = {{"milestones": "drops", "ema_decay": "ema"}.get(k, k): v for k, v in old["values"].items()}
    assert make(old, KNOWN) == train
    monkeypatch.setitem(records.FORMER_PARTS, "ScatteredMask", "RandomMask")
    monkeypatch.setitem(records.FORMER_VALUES, ("RandomMask", "share"), "ratio")
    assert make({"name": "ScatteredMask", "values": {"share": 0.6}}, KNOWN) == RandomMask(ratio=0.6)
    assert up_to_date([{"name": "ScatteredMask", "values": {}}]) == [{"name": "RandomMask", "values": {}}]


def test_a_new_value_with_a_default_makes_no_older_record_unreadable():
    @dataclass(frozen=True)
    class Mask:
        ratio: float = 0.75
        smooth: bool = False  # new

    older, known = {"name": "Mask", "values": {"ratio": 0.5}}, {"Mask": Mask}
    assert make(older, known) == Mask(ratio=0.5)
    assert same(older, record_of(Mask(ratio=0.5)), known)
    assert not same(older, record_of(Mask(ratio=0.5, smooth=True)), known)
    assert not same(older, {"name": "Other", "values": {"ratio": 0.5}}, known)


def test_what_is_not_known_is_named():
    with pytest.raises(ValueError, match="this version of mimkit has no Mystery"):
        make({"name": "Mystery", "values": {}}, KNOWN)
    with pytest.raises(ValueError, match="this version of mimkit's RandomMask has no size"):
        make({"name": "RandomMask", "values": {"ratio": 0.5, "size": 3}}, KNOWN)
    described = description_of("mae", RECIPES["mae"](), Settings(data="photos"))
    with pytest.raises(ValueError, match="this version of mimkit has no mask 'RandomMask'"):
        restore_recipe(described | {"parts": described["parts"] | {"mask": "RandomMask"}})


def test_records_read_as_python():
    recipe = RECIPES["mae"]()
    assert as_text(record_of(recipe.mask)) == "RandomMask(ratio=0.75, cell=None, shared=False, scored=1.0)"
    assert as_text(record_of(squared)) == "squared"
    assert as_text([0.2, 1.0]) == "(0.2, 1.0)"
    assert as_text({"name": "Hog", "values": {"offsets": [[0.5, 1.0]]}}) == "Hog(offsets=((0.5, 1.0),))"
    assert parse_text(as_text(record_of(recipe.view))) == record_of(recipe.view)


SETTINGS = [
    {"class_tokens": 4},
    {"channels": 1, "mask": "shared", "readout": "fused-all", "decoder": "cross"},
    {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "target": "lowfreq-pixels-mmselfsup", "norm_eps": 1e-5},
    {"target": "features", "teacher": "test_vit", "view": "simple-resized-crop", "mask": "block"},
    {"encoder": "dense", "decoder": "linear", "mask": "uniform", "target": "hog-18", "image_size": (96, 64)},
    {"readout": "levels", "target": "hog", "hog_offsets": (0.1,) * 8, "taps": (1, 3, 9, 11), "ema": 0.9, "epochs": 5},
    {"mask": "complementary", "readout": "fused-attention", "predict_share": None, "decoder_width": 32},
]


@pytest.mark.parametrize("given", SETTINGS, ids=lambda given: " ".join(given))
def test_whatever_the_flags_compose_comes_back(given):
    settings = Settings(data="photos", **given)
    recipe = compose("mae", settings)
    again = restore_recipe(json.loads(json.dumps(description_of("mae", recipe, settings))))
    assert record_of_parts(again) == record_of_parts(recipe)
    assert again.train == recipe.train


@dataclass(frozen=True)
class Odd:
    """A part of a user's own with values that JSON does not have."""

    path: Path = Path("somewhere")
    limit: float = math.nan
    table: tuple = ((1, 2), {"a": (1, 2), 3: 4})
    number: torch.dtype = torch.float16


def test_values_that_json_does_not_have_are_kept_as_text_to_compare_by():
    kept = json.loads(json.dumps(record_of(Odd())))
    assert same(kept, json.loads(json.dumps(record_of(Odd()))), {})
    assert not same(kept, json.loads(json.dumps(record_of(Odd(path=Path("elsewhere"))))), {})


@pytest.mark.parametrize(
    ("part", "record", "said"),
    [
        ("mask", {"name": "Train", "values": {}}, "has no mask Train"),
        ("view", {"name": "BICUBIC", "values": {}}, "has no view BICUBIC"),
        ("distance", {"name": "Last", "values": {}}, "has no distance Last"),
        ("encoder", {"name": "os.system", "values": {"command": "true"}}, "has no encoder os.system"),
        ("target", {"name": "Hog", "values": None}, "has no target"),
        ("mask", {"name": ["RandomMask"], "values": {}}, "has no mask"),
        ("decoder", [None], "has no decoder None"),
        ("image_size", "large", "is damaged|are none"),
    ],
)
def test_what_is_no_such_part_is_refused_in_a_line(part, record, said):
    described = description_of("mae", RECIPES["mae"](), Settings(data="photos"))
    with pytest.raises(ValueError, match=said):
        recipe_of(described | {"parts": described["parts"] | {part: record}}, "a file")
