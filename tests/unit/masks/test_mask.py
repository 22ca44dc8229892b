import pytest
import torch

from helpers import parts
from mimkit.masks import Mask


def cells(rows: list[str], mark: str) -> torch.Tensor:
    """One sample drawn as text, bool [1, h, w]: True where the mark stands."""
    return torch.tensor([[character == mark for character in row] for row in rows])[None]


def partial_mask() -> Mask:
    """3 x 2 cells: visible ".", hidden "x", replaced "r", scored "s"."""
    rows = [".r", "xs", "sx"]
    return Mask(~cells(rows, "."), replaced=cells(rows, "r"), scored=cells(rows, "s"))


def test_mask_counts_and_has_a_grid():
    mask = Mask(torch.tensor([[[True, False, True]], [[False, True, True]]]))
    assert mask.count == 2
    assert mask.grid == (1, 3)


def test_mask_refuses_unequal_counts():
    hidden = torch.tensor([[[True, False]], [[True, True]]])
    with pytest.raises(ValueError, match=r"same number of cells, got \[1, 2\]"):
        Mask(hidden)


def test_counts_are_read_where_not_given():
    mask = partial_mask()
    assert (mask.count, mask.replaced_count, mask.scored_count) == (5, 1, 2)
    plain = Mask(mask.hidden)
    assert (plain.count, plain.replaced_count, plain.scored_count) == (5, 0, 5)
    assert not plain.shared
    assert plain.copies == 1


def test_given_counts_are_believed():
    mask = Mask(torch.ones(1, 2, 2, dtype=torch.bool), 3)
    assert (mask.count, mask.replaced_count, mask.scored_count) == (3, 0, 3)


@pytest.mark.parametrize("name", ["replaced", "scored"])
def test_mask_refuses_cells_that_do_not_suit(name):
    hidden = torch.tensor([[[True, False]], [[False, True]]])
    with pytest.raises(ValueError, match=f"{name} cells must be hidden ones"):
        Mask(hidden, **{name: ~hidden})
    with pytest.raises(ValueError, match=rf"every sample must {name[:-1]} the same number of cells, got \[0, 1\]"):
        Mask(hidden, **{name: hidden & torch.tensor([True, False])})
    with pytest.raises(ValueError, match=rf"{name} cells of shape \[2, 2\] for hidden ones of \[2, 1, 2\]"):
        Mask(hidden, **{name: hidden[:, 0]})


def test_rows_must_be_a_multiple_of_the_copies():
    with pytest.raises(ValueError, match="3 rows of a mask are no multiple of its 2 copies"):
        Mask(torch.ones(3, 1, 1, dtype=torch.bool), copies=2)


def test_present_are_the_visible_and_the_replaced():
    mask = partial_mask()
    assert mask.visible_ids((3, 2)).tolist() == [[0, 1]]
    assert mask.visible_ids((3, 4)).tolist() == [[0, 1, 2, 3]]
    assert mask.visible_ids((6, 2)).tolist() == [[0, 1, 2, 3]]
    assert mask.replaced_on((3, 4)).tolist() == [[[False, False, True, True], [False] * 4, [False] * 4]]
    assert mask.replaced_on((3, 4)).dtype == torch.bool
    assert torch.equal(mask.replaced_on((3, 2)), mask.replaced)
    assert Mask(mask.hidden).replaced_on((6, 4)) is None


def test_weights_are_the_scored_share():
    mask = partial_mask()
    assert mask.weights((3, 2)).tolist() == [[[0, 0], [0, 1], [1, 0]]]
    assert mask.weights((3, 1)).tolist() == [[[0], [0.5], [0.5]]]
    assert mask.on((3, 1)).tolist() == [[[0.5], [1], [1]]]
    assert mask.scored_ids((3, 2)).tolist() == [[3, 4]]
    assert mask.scored_ids((3, 4)).tolist() == [[6, 7, 8, 9]]
    everything = mask.scoring_all()
    assert torch.equal(everything.weights((3, 2)), mask.on((3, 2)))
    assert everything.scored_ids((3, 2)).tolist() == [[1, 2, 3, 4, 5]]
    assert torch.equal(everything.replaced, mask.replaced)
    assert everything.scored_count == everything.count == 5


@pytest.mark.parametrize("grid", [(1, 2), (3, 1), (1, 4)])
def test_no_ids_and_no_replaced_cells_on_coarser_cells(grid):
    mask = partial_mask()
    for read in (mask.visible_ids, mask.scored_ids, mask.replaced_on):
        with pytest.raises(ValueError, match=f"cells of a {grid[0]} x {grid[1]} grid may be half hidden"):
            read(grid)


def test_share_of_finer_and_coarser_cells():
    mask = Mask(torch.tensor([[[True, False], [False, True]]]))
    assert mask.on((2, 2)).tolist() == [[[1, 0], [0, 1]]]
    assert mask.on((2, 4)).tolist() == [[[1, 1, 0, 0], [0, 0, 1, 1]]]
    assert mask.on((1, 2)).tolist() == [[[0.5, 0.5]]]
    assert mask.on((1, 1)).tolist() == [[[0.5]]]
    assert mask.on((2, 2)).dtype == torch.float32


@pytest.mark.parametrize("grid", [(4, 6), (8, 12), (4, 18)])
def test_visible_ids_are_the_visible_cells_in_raster_order(grid):
    mask = parts.hide(5, (4, 6), count=17)
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
        parts.hide(2, (4, 6), count=17).visible_ids(grid)


def test_no_visible_ids_on_cells_that_do_not_nest():
    with pytest.raises(ValueError, match="a grid of 4 cells and one of 6 cells do not nest"):
        parts.hide(2, (4, 6), count=17).visible_ids((6, 6))
