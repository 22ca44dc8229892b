"""One function for all formats, as the command calls it."""

import pytest
import timm
from safetensors.torch import load_file

import mimkit
from helpers.sources import VIT, write_source
from mimkit.cli.main import main


def test_the_command_prints_what_the_function_returns(tmp_path, capsys):
    write_source(tmp_path / "mae.safetensors", "mae", backbone=VIT, image_size=(64, 64))
    out = tmp_path / "timm.safetensors"
    done = mimkit.export(tmp_path / "mae.safetensors", format="timm", out=str(out), image_size=96)
    assert done.out == out
    model = eval(done.use.removeprefix("load into "), {"timm": timm})
    assert not any(model.load_state_dict(load_file(out)))
    assert model.patch_embed.img_size == (96, 96)
    capsys.readouterr()
    request = ["export", str(tmp_path / "mae.safetensors"), "--format", "timm", "--image-size", "96", "--out", str(out)]
    assert main(request) == 0
    assert capsys.readouterr().out.splitlines() == done.lines()


def test_home_folders_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_source(tmp_path / "mae.safetensors", "mae", backbone=VIT, image_size=(64, 64))
    done = mimkit.export("~/mae.safetensors", format="safetensors", out="~/copy.safetensors")
    assert done.lines() == [f"{tmp_path}/copy.safetensors: load with mimkit.load_method('{tmp_path}/copy.safetensors')"]
    assert mimkit.load_method("~/copy.safetensors").encoder.image_size == (64, 64)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"format": "keras"}, "--format 'keras' is unknown; choose from timm, hf, onnx, safetensors"),
        ({"encoder_only": True}, "--encoder-only is for --format hf, not timm"),
        ({"format": "safetensors", "image_size": 96}, "--image-size 96 is for encoders; --format safetensors keeps"),
        ({"image_size": (1, 2, 3)}, "--image-size takes one side or a height and a width"),
        ({"out": "."}, r"--out \. is a folder, not a file"),
    ],
)
def test_what_does_not_go_together_is_refused_first(given, said):
    with pytest.raises(ValueError, match=said):
        mimkit.export(**{"source": "no such source", "format": "timm", "out": "w.safetensors"} | given)
