"""The example in docs/examples is true: the target inverts, and a run with it starts from the command line."""

import json
from pathlib import Path

import pytest
import torch

from helpers import parts
from mimkit.cli.main import main
from mimkit.compose import find_recipe

FILE = Path(__file__).parents[2] / "docs" / "examples" / "laplacian.py"


@pytest.fixture(scope="module")
def target():
    return find_recipe(f"{FILE}:recipe").target


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_the_bands_add_up_to_the_image(target, size):
    images = parts.images(2, size)
    for cell in (4, 16):
        (values,) = target(images, [(size[0] // cell, size[1] // cell)])
        assert values.shape[-1] == target.values(cell, 3) == 3 * (cell**2 + (cell // 2) ** 2 + (cell // 4) ** 2)
        torch.testing.assert_close(target.picture(values, images), images)


def test_bands_are_what_halving_loses(target):
    """Slowly, for one pixel of each band."""
    (image,) = parts.images(1, (16, 16))
    fine, middle, left = target.pyramid(image[None])
    half = torch.stack([image[:, y : y + 2, x : x + 2].mean((1, 2)) for y in (0, 2) for x in (4, 6)])  # [4, C]
    torch.testing.assert_close(fine[0, :, 1, 5], 4 * (image[:, 1, 5] - half[0]))
    torch.testing.assert_close(middle[0, :, 0, 2], 2 * (half[0] - half.mean(0)))
    torch.testing.assert_close(left[0, :, 0, 1], half.mean(0))


def test_a_cell_that_cannot_be_halved_is_refused(target):
    with pytest.raises(ValueError, match="6 pixels cannot be halved 2 times"):
        target.values(6, 3)


def test_it_runs_from_the_command_line(tmp_path, make_photos, capsys):
    photos = make_photos(tmp_path / "photos", count=20)
    run = tmp_path / "run"
    small = ["--backbone", "vit_tiny_patch16_224(embed_dim=48,depth=2,num_heads=3)", "--image-size", "32"]
    small += ["--epochs", "1", "--batch-size", "6", "--decoder-width", "32", "--decoder-depth", "1"]
    recipe = f"{FILE}:recipe"
    assert main(["pretrain", recipe, "--data", str(photos), "--out", str(run), *small, "--decoder-heads", "2"]) == 0
    assert json.loads((run / "run.json").read_text())["parts"]["target"]["name"] == "LaplacianPyramid"
    assert list((run / "reconstructions").glob("*.png"))

    picture = str(next(photos.glob("*.png")))
    assert main(["reconstruct", str(run), picture, "--out", str(tmp_path / "pictures")]) == 2
    assert f"name it with --recipe {recipe}" in capsys.readouterr().err
    named = ["reconstruct", str(run), picture, "--out", str(tmp_path / "pictures"), "--recipe", recipe]
    assert main(named) == 0
