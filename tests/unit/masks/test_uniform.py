import pytest
import torch

from helpers.parts import draw
from mimkit.masks import UniformMask
from mimkit.randomness import sample_keys


@pytest.mark.parametrize(("secondary", "replaced"), [(0.25, 12), (0.0, 0), (0.5, 24)])
def test_uniform_masks_keep_one_of_each_square(secondary, replaced):
    """UM-MAE at 224 pixels: 49 of 196 cells, of which a share is replaced."""
    mask = draw(UniformMask(secondary=secondary), sample_keys(0, 0, torch.arange(64)), (224, 224), 16)
    present = ~mask.hidden if mask.replaced is None else ~mask.hidden | mask.replaced
    squares = present.unflatten(2, (7, 2)).unflatten(1, (7, 2)).sum(dim=(2, 4))
    assert (squares == 1).all()
    assert (mask.replaced is None) == (replaced == 0)
    assert mask.replaced_count == replaced
    assert mask.count == 147 + replaced
    assert mask.visible_ids((14, 14)).shape == (64, 49)


def test_uniform_masks_keep_each_corner_equally_often():
    """Over 8 000 squares; the spread of a share of 0.25 is 0.0048, and the largest of four stays within four of it."""
    mask = draw(UniformMask(secondary=0), sample_keys(0, 0, torch.arange(500)), (8, 8), 1)
    kept = (~mask.hidden).float().unflatten(2, (4, 2)).unflatten(1, (4, 2)).mean(dim=(0, 1, 3))
    assert (kept - 0.25).abs().max() < 4 * (0.25 * 0.75 / 8000) ** 0.5


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"secondary": 1.0}, (64, 64), r"at least 0 and below 1, got 1\.0"),
        ({"secondary": -0.1}, (64, 64), r"at least 0 and below 1, got -0\.1"),
        ({"secondary": 0.25}, (32, 48), "a grid of 2 x 3 cannot be cut into"),
        ({"secondary": 0.25}, (32, 32), "secondary share 0.25 replaces none of 1 kept cells"),
    ],
)
def test_impossible_uniform_masks_are_refused(options, size, message):
    with pytest.raises(ValueError, match=message):
        draw(UniformMask(**options), torch.arange(2), size, 16)
