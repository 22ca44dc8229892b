"""What a request may hold, and how it is kept."""

import json
from pathlib import Path

import pytest

from mimkit.errors import flag
from mimkit.settings import Settings, as_size
from mimkit.training.machine import Machine

HERE = Path("photos")


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
