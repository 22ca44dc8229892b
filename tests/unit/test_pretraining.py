"""`pretrain` and `resume` in Python: recipes as objects, data in memory, keywords, callbacks, stops."""

import json
import os
import re
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import mimkit
from helpers.plans import CPU, settings
from mimkit.cli.main import main
from mimkit.compose import compose, record_of_parts
from mimkit.data import in_words
from mimkit.errors import TrainingStopped
from mimkit.plan import plan_pretraining, with_channels_of
from mimkit.recipes import mae, pixmim
from mimkit.settings import Settings
from mimkit.sources import recipe_of
from mimkit.targets import Pixels
from mimkit.training.machine import Machine
from mimkit.views import Normalization

PHOTOS = {"count": 24, "classes": 2}
HERE = {"device": "cpu", "workers": 0}


@dataclass(frozen=True)
class Darker(Pixels):
    """A target of one's own."""

    by: float = 0.5


def own(by: float = 0.5) -> mimkit.Recipe:
    return replace(mae(), target=Darker(by=by))


def facts(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def log(run: Path) -> str:
    return (run / "log.jsonl").read_text()


def test_keywords_are_fields_of_settings_and_machine(photos, tmp_path):
    """The same run as with both given whole, by position."""
    asked = settings(photos, epochs=1)
    assert mimkit.pretrain("mae", asked, tmp_path / "whole", machine=Machine(**HERE))
    values = {name: value for name, value in vars(asked).items() if name != "data"}
    assert mimkit.pretrain("mae", data=str(photos), out=str(tmp_path / "by-name"), **values, **HERE)
    assert mimkit.pretrain("mae", settings(photos), tmp_path / "both", epochs=1, **HERE)
    assert log(tmp_path / "by-name") == log(tmp_path / "whole") == log(tmp_path / "both")
    assert facts(tmp_path / "by-name")["settings"] == facts(tmp_path / "whole")["settings"]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"epoch": 3}, TypeError, r"pretrain\(\) takes no argument 'epoch': did you mean epochs\?"),
        ({"worker": 3}, TypeError, r"pretrain\(\) takes no argument 'worker': did you mean workers\?"),
        ({"xyz": 3}, TypeError, r"pretrain\(\) takes no argument 'xyz'$"),
        ({"out": None}, ValueError, r"--out is missing: name the run folder to make, such as out='runs/mine'"),
        ({"data": None}, ValueError, r"--data is missing"),
        ({"settings": Settings(data="a")}, ValueError, r"the settings name a, and data= is something else"),
        ({"recipe": mae}, ValueError, r"a recipe is a name, FILE\.py:NAME or a .* call it, as in mae\(\)"),
        ({"recipe": 3}, ValueError, r"a recipe is a name, FILE\.py:NAME or a mimkit\.Recipe, got 3"),
    ],
)
def test_what_cannot_be_meant_is_refused(photos, tmp_path, given, error, said):
    with pytest.raises(error, match=said):
        mimkit.pretrain(**{"recipe": "mae", "data": photos, "out": tmp_path / "run", **HERE} | given)
    assert not (tmp_path / "run").exists()


def test_a_home_folder_is_expanded(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    out = f"~/{tmp_path.name}"
    assert mimkit.pretrain("mae", settings(f"~/{photos.name}", epochs=1), out, **HERE)
    assert (photos.parent / tmp_path.name / "run.json").is_file()
    assert mimkit.resume(out, **HERE)
    assert mimkit.load_encoder(out).image_size == (32, 32)


def test_a_recipe_as_an_object_is_restored_from_its_parts(photos, tmp_path):
    """The same run as that of the recipe's name, but for its name; nothing needs to be named afterwards."""
    run, named = tmp_path / "run", tmp_path / "named"
    assert mimkit.pretrain(pixmim(mae()), settings(photos, epochs=1), run, **HERE)
    assert mimkit.pretrain("pixmim", settings(photos, epochs=1), named, **HERE)
    assert log(run) == log(named)
    assert facts(run)["recipe"] == "python"
    assert facts(run)["parts"] == facts(named)["parts"]
    assert "needs" not in facts(run)
    assert main(["resume", str(run), "--device", "cpu", "--workers", "0"]) == 0
    assert mimkit.resume(run, recipe=pixmim(mae()), **HERE)
    with pytest.raises(ValueError, match=r"was trained with view .*, but recipe python now has"):
        mimkit.resume(run, recipe=mae(), **HERE)
    restored, expected = (recipe_of(facts(one), one) for one in (run, named))
    assert record_of_parts(restored) == record_of_parts(expected)
    mimkit.export(run, format="safetensors", out=tmp_path / "method.safetensors")
    assert mimkit.load_method(tmp_path / "method.safetensors").target == expected.target


def test_parts_of_ones_own_are_handed_over_again(photos, tmp_path, capsys):
    run = tmp_path / "run"
    assert mimkit.pretrain(own(), settings(photos, epochs=1), run, **HERE)
    assert facts(run)["own_parts"] == {"target": ["Darker"]}
    assert facts(run)["needs"] == ["recipe"]
    again = r"was made in Python with parts of its own \(target: Darker\): give recipe="
    for work in (mimkit.resume, mimkit.load_method):
        with pytest.raises(ValueError, match=again):
            work(run)
    capsys.readouterr()
    assert main(["resume", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("give recipe=, the same Recipe again, or --recipe FILE.py:NAME")
    assert mimkit.load_encoder(run).image_size == (32, 32)  # the encoder is mimkit's
    assert mimkit.load_method(run, recipe=own()).target == Darker()
    with pytest.raises(ValueError, match=r"was trained with target Darker\(.*by=0\.5\), but recipe python now has"):
        mimkit.load_method(run, recipe=own(by=0.25))
    assert mimkit.resume(run, recipe=own(), **HERE)
    mimkit.export(run, format="safetensors", out=tmp_path / "method.safetensors", recipe=own())
    with pytest.raises(ValueError, match=again):
        mimkit.load_method(tmp_path / "method.safetensors")
    assert mimkit.load_method(tmp_path / "method.safetensors", recipe=own()).target == Darker()
    assert "recipe = ...  # the mimkit.Recipe it was trained with" in (tmp_path / "method.md").read_text()


def test_trials_elsewhere_need_parts_that_are_known_there(photos):
    plans = [
        plan_pretraining("python", compose(recipe, settings(photos)), settings(photos), device=CPU)
        for recipe in (mae(), own())
    ]
    assert plans[0].request()["recipe"] == "python"
    assert plans[1].request() == {}
    with pytest.raises(ValueError, match="--micro-batch auto: a job of kind pretrain cannot be tried out on cpu"):
        mimkit.pretrain(own(), settings(photos, micro_batch="auto"), "never", **HERE)


BANDS = np.random.default_rng(0).integers(256, size=(24, 5, 32, 32), dtype=np.uint8)


def test_data_in_memory_are_handed_over_again(tmp_path, capsys):
    run, data = tmp_path / "run", (BANDS, np.arange(24) % 2)
    asked = replace(settings("photos"), data=None)
    assert not mimkit.pretrain("mae", asked, run, data=data, callbacks=[interrupting(1, at=1)], **HERE)
    said = capsys.readouterr().err
    assert "5 channels, as the data have" in said
    assert said.splitlines()[-1].endswith(f"go on with: mimkit.resume('{run}', data=...) in Python")
    kept = facts(run)
    assert (kept["settings"]["data"], kept["settings"]["channels"], kept["needs"]) == (None, 5, ["data"])
    assert kept["data"]["path"] == in_words(data)
    again = f"{run} began with data in memory ({in_words(data)}): continue it with mimkit.resume('{run}', data=...)"
    with pytest.raises(ValueError, match=re.escape(again)):
        mimkit.resume(run, **HERE)
    assert main(["resume", str(run), "--device", "cpu"]) == 2
    assert capsys.readouterr().err == f"mimkit: {again}\n"
    with pytest.raises(ValueError, match=f"are no longer those that {run} began with"):
        mimkit.resume(run, data=(BANDS[::-1], data[1]), **HERE)
    assert mimkit.resume(run, data=data, **HERE)
    assert mimkit.pretrain("mae", asked, tmp_path / "undisturbed", data=data, **HERE)
    assert log(run) == log(tmp_path / "undisturbed")
    assert mimkit.probe(run, data=data, kind="knn", **HERE)["classes"] == 2
    mimkit.export(run, format="safetensors", out=tmp_path / "method.safetensors")
    assert mimkit.load_encoder(tmp_path / "method.safetensors").encoder.channels == 5
    with pytest.raises(ValueError, match="--channels 3: the images have 5"):
        mimkit.pretrain("mae", replace(asked, channels=3), tmp_path / "other", data=data, **HERE)


def test_a_moved_folder_is_named(photos, make_photos, tmp_path):
    mimkit.pretrain("mae", settings(photos, epochs=1), tmp_path / "run", **HERE)
    moved = make_photos(tmp_path / "moved", **PHOTOS)
    assert mimkit.resume(tmp_path / "run", data=moved, **HERE)
    other = make_photos(tmp_path / "other", count=20, classes=2)
    with pytest.raises(ValueError, match=f"the images in {other} are no longer those that"):
        mimkit.resume(tmp_path / "run", data=other, **HERE)


def test_channels_follow_data_in_memory():
    five = SimpleNamespace(channels=5)
    statistics = Normalization((0.5,) * 5, (0.2,) * 5)
    recipe, notes = with_channels_of(five, mae(), Settings())
    assert (recipe.channels, recipe.normalization) == (5, Normalization.for_channels(5))
    assert notes == ["5 channels, as the data have"]
    given = Settings(mean=statistics.mean, std=statistics.std)
    assert with_channels_of(five, mae(), given)[0].statistics == statistics
    assert with_channels_of(five, recipe, Settings(channels=5)) == (recipe, [])
    files, colour = SimpleNamespace(channels=None), mae()
    assert with_channels_of(files, colour, Settings()) == (colour, [])
    with pytest.raises(ValueError, match="--channels 3: the images have 5"):
        with_channels_of(five, mae(), Settings(channels=3))
    with pytest.raises(ValueError, match="--channels 5 is for data in memory: image files are read with 1 or 3"):
        with_channels_of(files, recipe, Settings(channels=5))
    with pytest.raises(ValueError, match="--mean, --std: 3 numbers for images of 5 channels"):
        with_channels_of(five, mae(), Settings(mean=(0.5,) * 3, std=(0.2,) * 3))


def test_callbacks_see_the_log_and_may_fail_without_loss(photos, tmp_path):
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    seen: list[dict] = []
    assert mimkit.pretrain("mae", settings(photos), undisturbed, callbacks=[seen.append], **HERE)
    assert seen == [json.loads(line) for line in log(undisturbed).splitlines()]

    def fails(row):
        if row["step"] == 1:
            raise KeyError("loss")

    also: list[dict] = []
    with pytest.raises(TrainingStopped) as stopped:
        mimkit.pretrain("mae", settings(photos), run, callbacks=[fails, also.append], **HERE)
    assert str(stopped.value) == (
        f"callback {fails.__qualname__} failed: KeyError in {Path(__file__).name}:"
        f"{fails.__code__.co_firstlineno + 2}: 'loss', step 1 of 2 saved; go on with: mimkit resume {run}, or "
        f"mimkit.resume('{run}') in Python"
    )
    more: list[dict] = []
    assert mimkit.resume(run, callbacks=[more.append], **HERE)
    assert log(run) == log(undisturbed)
    assert also + more == seen


def interrupting(times: int, at: int):
    """A callback that interrupts so many times on the first row of a step."""
    steps = iter([at])

    def interrupt(row):
        if row["step"] == at and next(steps, None) == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return interrupt


def test_an_interrupted_kernel_is_told_what_is_saved(photos, tmp_path, capsys):
    run = tmp_path / "run"
    assert not mimkit.pretrain("mae", settings(photos), run, callbacks=[interrupting(1, at=1)], **HERE)
    on = f"go on with: mimkit resume {run}, or mimkit.resume('{run}') in Python"
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped, step 1 of 2 saved; {on}"
    with pytest.raises(KeyboardInterrupt):
        mimkit.resume(run, callbacks=[interrupting(2, at=2)], **HERE)
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted, step 1 of 2 saved; {on}"
    assert mimkit.resume(run, **HERE)
    with pytest.raises(KeyboardInterrupt):
        mimkit.pretrain("mae", settings(photos), tmp_path / "other", callbacks=[interrupting(2, at=0)], **HERE)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("interrupted, nothing saved yet; start over with: mimkit resume ")
    assert os.path.isdir(tmp_path / "other")
