import build
import pytest
import torch

from mimkit.masks import Mask, RandomMask
from mimkit.randomness import sample_keys


def test_mask_counts_and_has_a_grid():
    mask = Mask(torch.tensor([[[True, False, True]], [[False, True, True]]]))
    assert mask.count == 2
    assert mask.grid == (1, 3)


def test_mask_refuses_unequal_counts():
    hidden = torch.tensor([[[True, False]], [[True, True]]])
    with pytest.raises(ValueError, match=r"same number of cells, got \[1, 2\]"):
        Mask(hidden)


def test_share_of_finer_and_coarser_cells():
    mask = Mask(torch.tensor([[[True, False], [False, True]]]))
    assert mask.on((2, 2)).tolist() == [[[1, 0], [0, 1]]]
    assert mask.on((2, 4)).tolist() == [[[1, 1, 0, 0], [0, 0, 1, 1]]]
    assert mask.on((1, 2)).tolist() == [[[0.5, 0.5]]]
    assert mask.on((1, 1)).tolist() == [[[0.5]]]
    assert mask.on((2, 2)).dtype == torch.float32


@pytest.mark.parametrize("grid", [(4, 6), (8, 12), (4, 18)])
def test_visible_ids_are_the_visible_cells_in_raster_order(grid):
    mask = build.hide(5, (4, 6), count=17)
    ids = mask.visible_ids(grid)
    rows, columns = grid[0] // 4, grid[1] // 6
    assert ids.dtype == torch.int64
    for sample in range(5):
        expected = [
            y * grid[1] + x
            for y in range(grid[0])
            for x in range(grid[1])
            if not mask.hidden[sample, y // rows, x // columns]
        ]
        assert ids[sample].tolist() == expected
    assert ids.shape == (5, 7 * rows * columns)


@pytest.mark.parametrize("grid", [(2, 3), (4, 3), (2, 6), (1, 1)])
def test_no_visible_ids_on_coarser_cells(grid):
    with pytest.raises(ValueError, match=f"cells of a {grid[0]} x {grid[1]} grid may be half hidden by .* 4 x 6 cells"):
        build.hide(2, (4, 6), count=17).visible_ids(grid)


def test_no_visible_ids_on_cells_that_do_not_nest():
    with pytest.raises(ValueError, match="a grid of 4 cells and one of 6 cells do not nest"):
        build.hide(2, (4, 6), count=17).visible_ids((6, 6))


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
    mask = RandomMask(ratio=ratio, cell=cell).sample(torch.arange(40), size, encoder_cell=4)
    grid = size[0] // cell, size[1] // cell
    assert mask.hidden.shape == (40, *grid)
    assert mask.hidden.dtype == torch.bool
    assert mask.hidden.sum(dim=(1, 2)).tolist() == [hidden] * 40
    assert mask.count == hidden == Mask(mask.hidden).count
    assert mask.visible_ids(grid).shape == (40, grid[0] * grid[1] - hidden)


def test_cell_defaults_to_the_encoders():
    keys = torch.arange(3)
    assert RandomMask().sample(keys, (64, 96), encoder_cell=8).grid == (8, 12)
    assert RandomMask(cell=32).sample(keys, (64, 96), encoder_cell=8).grid == (2, 3)


def test_same_key_same_mask_whatever_the_batch():
    keys = sample_keys(0, 0, torch.arange(32))
    sampler = RandomMask()
    whole = sampler.sample(keys, (224, 224), 16).hidden
    assert torch.equal(sampler.sample(keys.flip(0), (224, 224), 16).hidden, whole.flip(0))
    for index in (0, 13, 31):
        assert torch.equal(sampler.sample(keys[index : index + 1], (224, 224), 16).hidden[0], whole[index])
    assert torch.equal(sampler.sample(keys, (224, 224), 16).hidden, whole)


def test_different_keys_different_masks():
    keys = torch.cat([sample_keys(seed, epoch, torch.arange(100)) for seed in (0, 1) for epoch in (0, 1)])
    hidden = RandomMask().sample(keys, (224, 224), 16).hidden
    assert len(hidden.flatten(1).unique(dim=0)) == 400


def test_every_cell_is_hidden_equally_often():
    """Over 20 000 images; the spread of a share of 0.75 is 0.003, and the largest of 36 stays within four of it."""
    keys = sample_keys(0, 0, torch.arange(20_000))
    share = RandomMask().sample(keys, (96, 96), 16).hidden.float().mean(dim=0)
    assert (share - 0.75).abs().max() < 4 * (0.75 * 0.25 / 20_000) ** 0.5


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 75])
def test_ratio_outside_is_refused(ratio):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {ratio}"):
        RandomMask(ratio=ratio)


def test_ratio_that_hides_all_or_nothing_is_refused():
    with pytest.raises(ValueError, match=r"mask ratio 0.9 leaves 0 of 4 cells visible"):
        RandomMask(ratio=0.9).sample(torch.arange(2), (32, 32), 16)


def test_cell_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match="a cell of 32 pixels does not divide an image of 48 x 48 pixels"):
        RandomMask(cell=32).sample(torch.arange(2), (48, 48), 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_are_the_same_on_a_gpu():
    keys = sample_keys(0, 0, torch.arange(64))
    here, there = (RandomMask().sample(k, (224, 224), 16) for k in (keys, keys.cuda()))
    assert torch.equal(here.hidden, there.hidden.cpu())
    assert torch.equal(here.visible_ids((28, 28)), there.visible_ids((28, 28)).cpu())
