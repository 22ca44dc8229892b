"""What a request may hold, and how it is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mimkit.settings import ImportOptions, Settings, as_size

HERE = Path("photos")
IN_MEMORY = ": hand data in memory to pretrain(data=...)"


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


def test_settings_of_published_files_say_nothing_of_data():
    """They were written with an empty text."""
    assert Settings.from_json({**Settings().to_json(), "data": ""}) == Settings()
    assert Settings.from_json(json.loads(json.dumps(Settings().to_json()))) == Settings()


def test_values_of_other_types_become_those_of_the_command_line():
    given = Settings(
        data="photos", image_size=np.int64(96), epochs=3.0, mean=torch.tensor([0.5]), std=[np.float32(0.25)], taps=-1,
        channels=5, mask_ratio=np.float64(0.75), batch_size=np.int32(8), compile=np.bool_(True),
    )  # fmt: skip
    assert given == Settings(
        data=HERE, image_size=(96, 96), epochs=3, mean=(0.5,), std=(0.25,), taps=(-1,), channels=5, mask_ratio=0.75,
        batch_size=8, compile=True,
    )  # fmt: skip
    assert json.loads(json.dumps(given.to_json()))["epochs"] == 3


def test_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    for data in ("~/photos", Path("~/photos")):
        assert Settings(data=data).data == Path("/home/me/photos")
    assert Settings(data="https://host/~/photos.tar").data == "https://host/~/photos.tar"


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"epochs": 2.5}, "--epochs takes a whole number, got 2.5"),
        ({"base_lr": "1e-3"}, "--base-lr takes a number, got '1e-3' (a str)"),
        ({"compile": "yes"}, "--compile takes True or False, got 'yes'"),
        ({"precision": "fp16"}, "--precision takes bf16, bf16-pure or fp32, got 'fp16'"),
        ({"batch_size": True}, "--batch-size takes a whole number or auto, got True"),
        ({"held_out": None}, "--held-out takes a number, got None"),
        ({"mask_ratio": float("nan")}, "--mask-ratio takes a number, got nan"),
        ({"image_size": "224"}, "--image-size takes whole numbers, got '224' (a str)"),
        ({"image_size": []}, "--image-size takes one side or a height and a width, all above 0, got []"),
        ({"taps": ()}, "--taps names no block"),
        ({"backbone": 3}, "--backbone takes a string, got 3"),
        ({"channels": 0}, "--channels must be at least 1, got 0"),
        ({"data": ""}, "--data takes a path or a URL, got ''"),
        ({"data": torch.zeros(2)}, f"--data takes a path or a URL, got a Tensor{IN_MEMORY}"),
        ({"data": ["a", "b"]}, f"--data takes a path or a URL, got ['a', 'b']{IN_MEMORY}"),
    ],
    ids=str,
)  # fmt: skip
def test_what_settings_cannot_have(wrong, line):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - all of the message is compared
        Settings(**wrong)
    assert str(error.value) == line


def test_types_of_what_is_said_of_a_checkpoint():
    assert ImportOptions(image_size=96, heads=np.int64(3)) == ImportOptions(image_size=(96, 96), heads=3)
    for name in ("heads", "decoder_heads", "window"):
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be at least 1, got 0"):
            ImportOptions(**{name: 0})
    with pytest.raises(ValueError, match="--strict takes True or False, got 'no'"):
        ImportOptions(strict="no")
