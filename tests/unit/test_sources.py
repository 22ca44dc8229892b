"""Where encoders and methods come from, at their own image size or another."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import RectBivariateSpline

from helpers.sources import SWIN, VIT, write_source
from mimkit.backbones.resize import geometric_distances, resize_relative_bias
from mimkit.cli.main import main
from mimkit.compose import compose, description_of
from mimkit.grids import sincos_positions
from mimkit.recipes import parts_in_words
from mimkit.settings import Settings
from mimkit.sources import load_encoder, load_method
from mimkit.training.run_folder import Run

BEIT = "beit_base_patch16_224(embed_dim=48,depth=2,num_heads=4,use_abs_pos_emb=False,use_rel_pos_bias=True)"
HIERA = "hiera_tiny_224(embed_dim=16, num_heads=1, stages=(1, 1, 2, 1))"


def images(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_learned_positions_are_resized_as_mae_does(tmp_path, capsys):
    """Bicubic, no antialiasing, the class token's kept; all other weights as they were."""
    write_source(tmp_path / "w.safetensors", "mae", backbone=VIT.replace(")", ",sincos=False)"), image_size=(64, 64))
    built = load_encoder(tmp_path / "w.safetensors")
    assert not capsys.readouterr().err
    larger = load_encoder(tmp_path / "w.safetensors", image_size=(96, 128))
    assert larger.image_size == (96, 128)
    then, now = built.encoder.vit.pos_embed, larger.encoder.vit.pos_embed
    grid = then[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(6, 8), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    assert torch.equal(now[:, 1:], expected)
    assert torch.equal(now[:, :1], then[:, :1])
    for (name, one), other in zip(built.state_dict().items(), larger.state_dict().values(), strict=True):
        assert name.endswith("pos_embed") or torch.equal(one, other)
    assert torch.equal(
        larger(images(96, 128)), built.encoder(images(96, 128))[0].map(built.encoder.norm).tokens.mean(1)
    )
    assert capsys.readouterr().err == (
        f"{tmp_path}/w.safetensors was trained at 64 x 64, used at 96 x 128 pixels: 1 table of positions resized\n"
    )


def test_sine_cosine_positions_are_made_afresh(tmp_path):
    write_source(tmp_path / "w.safetensors", "mae", backbone=VIT, image_size=(64, 64))
    larger = load_encoder(tmp_path / "w.safetensors", image_size=(96, 160))
    assert torch.equal(larger.encoder.vit.pos_embed[0, 1:], sincos_positions((6, 10), 48))


def test_relative_positions_are_resized_as_simmim_does(tmp_path):
    """A BEiT's window is the image: its tables grow with it, the class token's rows apart."""
    write_source(tmp_path / "w.safetensors", "simmim", backbone=BEIT, image_size=(64, 64), mask_cell=16)
    built = load_encoder(tmp_path / "w.safetensors").encoder.state_dict()
    larger = load_encoder(tmp_path / "w.safetensors", image_size=(96, 96))
    tables = [name for name in built if name.endswith("relative_position_bias_table")]
    assert len(tables) == 2
    for name in tables:
        assert torch.equal(larger.encoder.state_dict()[name], resize_relative_bias(built[name], (4, 4), (6, 6), 3))
    assert larger(images(96, 96)).shape == (2, 48)


def test_swin_keeps_its_windows(tmp_path, capsys):
    write_source(tmp_path / "w.safetensors", "greenmim", backbone=SWIN, image_size=(64, 64))
    built, larger = (load_encoder(tmp_path / "w.safetensors", image_size=size) for size in (None, (128, 64)))
    assert "no positions to resize" in capsys.readouterr().err
    for one, other in zip(built.state_dict().values(), larger.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert larger(images(128, 64)).shape == (2, 32)


def test_positions_of_a_stem_whose_cells_are_no_tap(tmp_path):
    write_source(tmp_path / "w.safetensors", "simmim", backbone=HIERA, image_size=(64, 64), mask_cell=32)
    larger = load_encoder(tmp_path / "w.safetensors", image_size=(128, 128))
    assert larger(images(128, 128)).shape == (2, 128)


def test_sizes_that_do_not_fit_are_refused(tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    write_source(path, "mae", backbone=VIT, image_size=(64, 64))
    with pytest.raises(ValueError, match=r"--image-size: .*60"):
        load_encoder(path, image_size=(60, 60))
    assert main(["embed", str(path), "--data", str(tmp_path), "--out", "f.npz", "--image-size", "60"]) == 2
    assert "--image-size: a cell of 16 pixels does not divide an image of 60 x 60 pixels" in capsys.readouterr().err


def test_an_encoder_is_made_from_its_own_part_alone(tmp_path):
    """Whatever else of a method this version does not know."""
    decoder = {"decoder": {"name": "OfTomorrow", "values": {}}}
    write_source(tmp_path / "w.safetensors", "mae", backbone=VIT, image_size=(64, 64))
    plain = load_encoder(tmp_path / "w.safetensors")
    asked = Settings(backbone=VIT, image_size=(64, 64))
    described = description_of("mae", compose("mae", asked), asked)
    write_source(
        tmp_path / "t.safetensors",
        "mae",
        backbone=VIT,
        image_size=(64, 64),
        more={"parts": described["parts"] | decoder},
    )
    assert torch.equal(load_encoder(tmp_path / "t.safetensors")(images(64, 64)), plain(images(64, 64)))
    with pytest.raises(ValueError, match="this version of mimkit has no decoder OfTomorrow"):
        load_method(tmp_path / "t.safetensors")


@pytest.mark.parametrize("size", [(80, 208), (96, 128), (128, 64)])
def test_relative_positions_of_windows_that_are_not_square(tmp_path, size):
    """Row by row of a table, a spline along each side; 5 x 13 tokens have as many rows as a square of 8 would."""
    write_source(tmp_path / "w.safetensors", "simmim", backbone=BEIT, image_size=(64, 128), mask_cell=16)
    built = load_encoder(tmp_path / "w.safetensors").encoder.state_dict()
    larger = load_encoder(tmp_path / "w.safetensors", image_size=size)
    (h, w), wanted = (size[0] // 16, size[1] // 16), larger.encoder.state_dict()
    for name in (name for name in built if name.endswith("relative_position_bias_table")):
        old = built[name][:-3].double().numpy().reshape(7, 15, -1)
        at = [(geometric_distances(n - 1, m - 1) if n != m else np.arange(1 - n, n)) for n, m in ((4, h), (8, w))]
        to = [np.arange(1 - n, n).clip(a[0], a[-1]) for n, a in zip((h, w), at, strict=True)]
        for head in range(old.shape[2]):
            surface = RectBivariateSpline(*at, old[:, :, head])(*to)
            got = wanted[name][:-3, head].reshape(2 * h - 1, 2 * w - 1)
            torch.testing.assert_close(got, torch.from_numpy(surface).float(), rtol=1e-4, atol=1e-5)
        assert torch.equal(wanted[name][-3:], built[name][-3:])
    assert larger(images(*size)).shape == (2, 48)


def test_a_backbone_keeps_its_form_at_another_size(tmp_path):
    """Left to itself, Swin falls back to a dense encoder where its windows do not divide the image."""
    write_source(tmp_path / "visible.safetensors", "greenmim", backbone=SWIN, image_size=(64, 64))
    with pytest.raises(ValueError, match=r"--image-size: .* visible tokens only: windows of 4 x 4 tokens"):
        load_encoder(tmp_path / "visible.safetensors", image_size=72)
    write_source(tmp_path / "dense.safetensors", "simmim", backbone=SWIN, image_size=(72, 72), mask_cell=8)
    larger = load_encoder(tmp_path / "dense.safetensors", image_size=64)
    assert type(larger.encoder) is type(load_encoder(tmp_path / "dense.safetensors").encoder)
    assert larger(images(64, 64)).shape == (2, 32)


def test_tables_of_one_size_only_are_named(tmp_path):
    backbone = "levit_128s(embed_dim=(16, 16, 16), num_heads=(1, 1, 1), depth=(1, 1, 1), key_dim=8)"
    write_source(tmp_path / "w.safetensors", "simmim", backbone=backbone, image_size=(64, 64), mask_cell=16)
    with pytest.raises(ValueError, match=r"--image-size: .* for one image size only, which cannot be resized"):
        load_encoder(tmp_path / "w.safetensors", image_size=128)


OWN = """
from dataclasses import dataclass, replace
from mimkit.losses import squared
from mimkit.masks import RandomMask
from mimkit.recipes import mae

def huber(prediction, target, beta=1.0):
    return squared(prediction, target) * beta

@dataclass(frozen=True)
class Mine(RandomMask):
    smooth: float = float("inf")

def recipe():
    return replace(mae(), distance=huber, mask=Mine(ratio=0.5))

def lambdas():
    return replace(mae(), distance=lambda prediction, target: squared(prediction, target))
"""


@pytest.mark.parametrize("name", ["recipe", "lambdas"])
def test_a_recipe_of_a_file_is_compared_with_what_format_1_wrote_of_it(tmp_path, name):
    """Its parts are not mimkit's to know: the same text is the same part."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    made = f"{file}:{name}"
    small = {"backbone": VIT, "image_size": (64, 64), "mask": "shared"}
    texts = parts_in_words(compose(made, Settings(**small)))
    older = {"format": 1, "parts": texts}
    write_source(tmp_path / "w.safetensors", made, more=older, **small)
    assert load_method(tmp_path / "w.safetensors", recipe=made).mask.shared
    write_source(tmp_path / "x.safetensors", made, more=older | {"parts": texts | {"distance": "absolute"}}, **small)
    with pytest.raises(ValueError, match="was trained with distance absolute, but recipe"):
        load_method(tmp_path / "x.safetensors", recipe=made)


def test_a_mask_of_ones_own_stays_when_it_is_shared(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    mask = compose(f"{tmp_path / 'mine.py'}:recipe", Settings(mask="shared")).mask
    assert (type(mask).__name__, mask.ratio, mask.shared) == ("Mine", 0.5, True)


@pytest.mark.parametrize(
    "damage", [None, [], {}, {"format": "2"}, {"format": 0}, {"format": 2}, {"recipe": 3, "parts": 4}]
)
def test_what_says_nothing_sensible_of_itself_is_refused_in_a_line(tmp_path, capsys, damage):
    path = tmp_path / "w.safetensors"
    write_source(path, "mae", backbone=VIT, image_size=(64, 64), metadata={"mimkit.request": json.dumps(damage)})
    run = Run.create(tmp_path / "run", {"format": 2})
    (run.folder / "run.json").write_text(json.dumps(damage))
    for command in (["export", str(path), "--format", "timm", "--out", "x"], ["resume", str(run.folder)]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert command[1] in line
