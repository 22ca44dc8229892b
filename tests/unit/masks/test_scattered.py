import pytest
import torch

from helpers.parts import draw
from mimkit.masks import ComplementaryMasks, Mask, RandomMask
from mimkit.randomness import sample_keys


@pytest.mark.parametrize(
    ("ratio", "cell", "size", "hidden"),
    [
        (0.75, 16, (224, 224), 147),  # MAE: 49 of 196 kept
        (0.75, 14, (224, 224), 192),  # ViT-H/14
        (0.6, 32, (192, 192), 22),  # SimMIM: ceil(36 · 0.6)
        (0.6, 32, (224, 224), 30),  # SimMIM: ceil(49 · 0.6)
        (0.75, 32, (448, 448), 147),  # LSMAE: 196 units of 2 x 2 patches
        (0.75, 32, (224, 224), 37),  # GreenMIM: int(49 · 0.25) = 12 kept
        (0.9, 16, (32, 80), 9),  # binary 0.1 · 10 is just below 1
        (0.5, 16, (64, 96), 12),
    ],
)
def test_published_counts(ratio, cell, size, hidden):
    mask = draw(RandomMask(ratio=ratio, cell=cell), torch.arange(40), size, encoder_cell=4)
    grid = size[0] // cell, size[1] // cell
    assert mask.hidden.shape == (40, *grid)
    assert mask.hidden.dtype == torch.bool
    assert mask.hidden.sum(dim=(1, 2)).tolist() == [hidden] * 40
    assert mask.count == hidden == Mask(mask.hidden).count
    assert mask.visible_ids(grid).shape == (40, grid[0] * grid[1] - hidden)


def test_cell_defaults_to_the_encoders():
    keys = torch.arange(3)
    assert draw(RandomMask(), keys, (64, 96), encoder_cell=8).grid == (8, 12)
    assert draw(RandomMask(cell=32), keys, (64, 96), encoder_cell=8).grid == (2, 3)


def test_every_cell_is_hidden_equally_often():
    """Over 20 000 images; the spread of a share of 0.75 is 0.003, and the largest of 36 stays within four of it."""
    keys = sample_keys(0, 0, torch.arange(20_000))
    share = draw(RandomMask(), keys, (96, 96), 16).hidden.float().mean(dim=0)
    assert (share - 0.75).abs().max() < 4 * (0.75 * 0.25 / 20_000) ** 0.5


def test_ratio_that_hides_all_or_nothing_is_refused():
    with pytest.raises(ValueError, match=r"mask ratio 0.9 leaves 0 of 4 cells visible"):
        draw(RandomMask(ratio=0.9), torch.arange(2), (32, 32), 16)


@pytest.mark.parametrize(("scored", "count"), [(1 / 3, 49), (0.5, 73), (0.99, 145), (0.03, 4)])
def test_scored_cells_are_some_of_the_hidden(scored, count):
    keys = sample_keys(0, 0, torch.arange(200))
    mask = draw(RandomMask(scored=scored), keys, (224, 224), 16)
    assert mask.scored_count == count
    assert mask.scored.sum(dim=(1, 2)).tolist() == [count] * 200
    assert not (mask.scored & ~mask.hidden).any()
    assert torch.equal(mask.hidden, draw(RandomMask(), keys, (224, 224), 16).hidden)
    assert len(mask.scored.flatten(1).unique(dim=0)) == 200


def test_all_scored_says_so_with_none():
    mask = draw(RandomMask(), torch.arange(2), (64, 64), 16)
    assert mask.scored is None
    assert mask.scored_count == mask.count


@pytest.mark.parametrize("scored", [0.0, 1.5, -1.0])
def test_scored_share_outside_is_refused(scored):
    with pytest.raises(ValueError, match=f"scored share must be above 0 and at most 1, got {scored}"):
        RandomMask(scored=scored)


def test_scored_share_that_scores_nothing_is_refused():
    with pytest.raises(ValueError, match=r"scored share 0.1 leaves none of 3 hidden cells to score"):
        draw(RandomMask(scored=0.1), torch.arange(2), (32, 32), 16)


@pytest.mark.parametrize("copies", [2, 4, 7])
def test_complementary_masks_show_every_cell_once(copies):
    mask = draw(ComplementaryMasks(copies=copies), sample_keys(0, 0, torch.arange(20)), (224, 224), 16)
    assert mask.hidden.shape == (20 * copies, 14, 14)
    assert mask.copies == copies
    assert mask.count == 196 - 196 // copies
    seen = (~mask.hidden).unflatten(0, (20, copies)).sum(dim=1)
    assert (seen == 1).all()
    assert len(mask.hidden.flatten(1).unique(dim=0)) == 20 * copies


def test_cells_that_cannot_be_dealt_are_refused():
    with pytest.raises(ValueError, match="6 cells cannot be dealt to 4 complementary masks"):
        draw(ComplementaryMasks(), torch.arange(2), (32, 48), 16)
    with pytest.raises(ValueError, match="at least 2 copies, got 1"):
        ComplementaryMasks(copies=1)
