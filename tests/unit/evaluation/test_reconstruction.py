"""Reconstructions as pictures: visible pixels as they were, hidden ones grey, a perfect prediction gives the image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from helpers import parts
from helpers.sources import VIT, write_source
from mimkit.evaluation import reconstruction as pictures
from mimkit.masks import RandomMask
from mimkit.method import Method
from mimkit.targets import Hog, LowFreqPixels, Pixels

SIZE = (64, 96)  # 4 x 6 cells
KEYS = torch.arange(3)


def samples(channels: int = 3) -> Tensor:
    """uint8 [3, C, H, W]: noise, a slope, and one colour, whose cells have no deviation."""
    noise = torch.randint(256, (channels, *SIZE), generator=torch.Generator().manual_seed(0))
    slope = torch.linspace(0, 255, SIZE[1]).expand(channels, *SIZE)
    return torch.stack([noise, slope, torch.full_like(noise, 77)]).to(torch.uint8)


class Perfect(nn.Module):
    """Decodes every latent to the values that were asked for."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, latent, mask) -> Tensor:
        return self.values


def method(target, channels: int = 3) -> Method:
    return parts.method(parts.encoder(size=SIZE, channels=channels), target=target, mask=RandomMask(ratio=0.75))


def perfect(target, channels: int = 3) -> Method:
    made = method(target, channels)
    (values,) = target(made.normalization.from_bytes(samples(channels)), [(4, 6)])
    made.decoders = nn.ModuleList([Perfect(values)])
    return made


def hidden(made: Method) -> Tensor:
    """bool [B, 1, H, W]"""
    return parts.hidden_pixels(made.mask.sample(KEYS, made.mask.grid(SIZE, made.encoder.cell)), SIZE)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("target", [Pixels(), Pixels(normalized=False), LowFreqPixels()], ids=str)
def test_what_was_visible_stays_and_what_was_hidden_is_grey(target, channels):
    made = method(target, channels)
    rows = pictures.reconstruct_batch(made, samples(channels), KEYS)
    assert rows.shape == (3, len(pictures.columns(made)), channels, *SIZE)
    assert 0 <= rows.min() <= rows.max() <= 1
    original, visible, reconstruction, both = rows.unbind(dim=1)[:4]
    gone = hidden(made).expand_as(original)
    assert gone.float().mean() == 0.75
    torch.testing.assert_close(original, samples(channels) / 255, rtol=0, atol=1e-6)
    assert torch.equal(visible[~gone], original[~gone])
    assert (visible[gone] == 0.5).all()
    assert torch.equal(both[~gone], original[~gone])
    assert torch.equal(both[gone], reconstruction[gone])
    assert not torch.allclose(reconstruction[gone], original[gone], atol=0.05)  # untrained, it knows nothing


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalized", [True, False])
def test_a_perfect_prediction_gives_the_image_back(normalized, channels):
    original, _, reconstruction, both = pictures.reconstruct_batch(
        perfect(Pixels(normalized=normalized), channels), samples(channels), KEYS
    ).unbind(dim=1)
    torch.testing.assert_close(reconstruction, original, rtol=0, atol=1e-5)
    torch.testing.assert_close(both, original, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["centred", "mmselfsup"])
def test_a_perfect_prediction_of_low_frequencies_gives_their_image(kind):
    made = perfect(LowFreqPixels(filter=kind))
    rows = pictures.reconstruct_batch(made, samples(), KEYS)
    named = dict(zip(pictures.columns(made), rows.unbind(dim=1), strict=True))
    torch.testing.assert_close(named["reconstruction"], named["low-pass target"], rtol=0, atol=1e-5)
    assert (named["low-pass target"][0] - named["original"][0]).abs().mean() > 0.05  # noise has lost its detail
    torch.testing.assert_close(named["low-pass target"][2], named["original"][2], rtol=0, atol=2e-2)


def test_the_cells_true_statistics_are_restored():
    """A normalised target says nothing of a cell's mean and contrast: any prediction is shown with the true ones."""
    made = method(Pixels())
    images = (samples()[:1] // 2 + 64).to(torch.uint8)  # far from black and white, where pictures are cut off
    normalized = made.normalization.from_bytes(images)
    values = torch.randn(1, 4, 6, 16 * 16 * 3, generator=torch.Generator().manual_seed(1))
    values = (values - values.mean(dim=-1, keepdim=True)) / values.std(dim=-1, keepdim=True)
    picture = made.target.picture(values, normalized)
    for row in range(4):
        for column in range(6):
            cell = (0, slice(None), slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
            torch.testing.assert_close(picture[cell].mean(), normalized[cell].mean(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(picture[cell].std(), normalized[cell].std(), rtol=1e-4, atol=1e-4)


def test_what_has_no_picture():
    made = method(Hog())
    assert pictures.reconstruct_batch(made, samples(), KEYS) is None


def test_the_same_keys_give_the_same_pictures():
    made = method(Pixels())
    first, again = (pictures.reconstruct_batch(made, samples(), KEYS) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, pictures.reconstruct_batch(made, samples(), KEYS + 10))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_lays_rows_below_each_other(channels):
    rows = torch.linspace(0, 1, 2 * 3 * channels).view(2, 3, channels, 1, 1).expand(-1, -1, -1, 8, 12)
    with Image.open(io.BytesIO(pictures.png(pictures.sheet(rows)))) as picture:
        assert (picture.mode, picture.size) == ("RGB", (3 * 12 + 2 * pictures.GAP, 2 * 8 + pictures.GAP))
        pixels = np.asarray(picture)
    covered = np.zeros(pixels.shape[:2], dtype=bool)
    for i in range(2):
        for j in range(3):
            place = (slice(i * (8 + pictures.GAP), i * (8 + pictures.GAP) + 8),)
            place += (slice(j * (12 + pictures.GAP), j * (12 + pictures.GAP) + 12),)
            expected = (rows[i, j, :, 0, 0] * 255).round().expand(3) if channels == 1 else rows[i, j, :, 0, 0] * 255
            assert (pixels[place] == expected.round().numpy()).all()
            covered[place] = True
    assert (pixels[~covered] == 255).all()


def test_one_image_and_several_as_text_or_paths(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_source(tmp_path / "mae.safetensors", "mae", backbone=VIT, image_size=SIZE)
    first, second = sorted(photos.rglob("*.png"))[:2]
    one = pictures.reconstruct("~/mae.safetensors", images=str(first), out="~/one", device="cpu")
    both = pictures.reconstruct(tmp_path / "mae.safetensors", images=[first, str(second)], out=tmp_path / "both")
    assert [*one, *both] == [
        tmp_path / folder / f"{number:04d}-{path.stem}.png"
        for folder, number, path in (("one", 0, first), ("both", 0, first), ("both", 1, second))
    ]
    assert one[0].read_bytes() == both[0].read_bytes()
    with pytest.raises(ValueError, match="IMAGES: name at least one image file"):
        pictures.reconstruct(tmp_path / "mae.safetensors", images=[], out=tmp_path / "none")
