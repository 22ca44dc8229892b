import pytest
import torch

from helpers import parts
from mimkit.targets import LowFreqPixels, Pixels
from mimkit.targets.pixels import normalize_cells

SIZE = (32, 48)


def test_raw_pixels_are_the_pixels():
    images = parts.images(2, SIZE)
    cells = Pixels(normalized=False)(images, [(2, 3)])[0]
    assert cells.shape == (2, 2, 3, Pixels().values(16, 3))
    assert cells[1, 0, 2, :3].tolist() == images[1, :, 0, 32].tolist()


def test_normalised_pixels_equal_loops():
    """Mean and unbiased variance over all p·p·C values of a cell jointly, 1e-6 under the root."""
    images = parts.images(2, SIZE) * 0.01  # small, so that 1e-6 shows
    cells = Pixels()(images, [(2, 3)])[0]
    for b in range(2):
        for i in range(2):
            for j in range(3):
                patch = images[b, :, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16].permute(1, 2, 0).flatten().double()
                mean = patch.sum() / 768
                variance = (patch - mean).square().sum() / 767
                expected = (patch - mean) / (variance + 1e-6).sqrt()
                torch.testing.assert_close(cells[b, i, j].double(), expected, rtol=0, atol=1e-5)


def test_flat_cell_gives_zeros():
    cells = Pixels()(torch.full((1, 3, *SIZE), 0.7), [(2, 3)])[0]
    assert cells.abs().max() < 1e-3
    assert cells.isfinite().all()


@pytest.mark.parametrize(
    "target", [Pixels(), Pixels(normalized=False), LowFreqPixels(), LowFreqPixels(normalized=False)]
)
def test_picture_of_the_target_is_the_image_it_was_taken_from(target):
    images = parts.images(2, SIZE)
    source = target.low_pass(images) if isinstance(target, LowFreqPixels) else images
    picture = target.picture(target(images, [(2, 3)])[0], images)
    assert picture.shape == images.shape
    torch.testing.assert_close(picture, source, rtol=1e-4, atol=1e-4)


def test_values_count_any_channels():
    for cell, channels in ((16, 3), (8, 1), (32, 7)):
        images = parts.images(1, (2 * cell, cell), channels)
        assert Pixels()(images, [(2, 1)])[0].shape[-1] == Pixels().values(cell, channels) == cell * cell * channels


def test_cells_are_normalised_each_by_itself_with_the_unbiased_variance():
    cells = 3 * parts.images(1, (2, 3), 8)[0] + 1
    expected = (cells - cells.mean(-1, keepdim=True)) / (cells.var(-1, keepdim=True, correction=1) + 1e-6).sqrt()
    torch.testing.assert_close(normalize_cells(cells), expected)


@pytest.mark.parametrize("target", [Pixels(), Pixels(normalized=False), LowFreqPixels()])
def test_references_are_named(target):
    images = parts.images(2, SIZE)
    references = target.references(images)
    assert len(references) == len(target.reference_names)
    assert all(reference.shape == images.shape for reference in references)
    assert target.picture_note.endswith(".")
