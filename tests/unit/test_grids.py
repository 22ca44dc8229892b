import math

import pytest
import torch

from helpers import parts
from mimkit.grids import grid_for, patchify, resample, resize_positions, sincos_positions, unpatchify


def test_grid_for():
    assert grid_for((224, 224), 16) == (14, 14)
    assert grid_for((64, 96), 32) == (2, 3)  # height first
    with pytest.raises(ValueError, match="a cell of 14 pixels does not divide an image of 224 x 230 pixels"):
        grid_for((224, 230), 14)
    with pytest.raises(ValueError, match="a cell of 14 pixels does not divide an image of 230 x 224 pixels"):
        grid_for((230, 224), 14)


@pytest.mark.parametrize(
    ("size", "grid", "channels"), [((6, 4), (3, 2), 3), ((8, 12), (2, 3), 1), ((5, 10), (1, 2), 7)]
)
def test_patchify_order(size, grid, channels):
    """Value (row·p + column)·C + channel of cell (i, j) is pixel (i·p + row, j·p + column) of that channel."""
    images = torch.arange(2 * channels * size[0] * size[1]).reshape(2, channels, *size)
    cells = patchify(images, grid)
    p = size[0] // grid[0]
    assert cells.shape == (2, *grid, p * p * channels)
    for i in range(grid[0]):
        for j in range(grid[1]):
            for row in range(p):
                for column in range(p):
                    for channel in range(channels):
                        values = cells[:, i, j, (row * p + column) * channels + channel]
                        assert torch.equal(values, images[:, channel, i * p + row, j * p + column])


@pytest.mark.parametrize(
    ("size", "grid", "channels"), [((32, 48), (2, 3), 3), ((28, 14), (4, 2), 1), ((8, 8), (8, 8), 4)]
)
def test_unpatchify_undoes_patchify(size, grid, channels):
    images = parts.images(2, size, channels)
    assert torch.equal(unpatchify(patchify(images, grid), channels), images)


def test_resample_repeats_where_finer():
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    finer = resample(values, (4, 6))
    assert finer.tolist() == [[[1, 1, 1, 2, 2, 2]] * 2 + [[3, 3, 3, 4, 4, 4]] * 2]


def test_resample_averages_where_coarser():
    values = torch.arange(24.0).reshape(1, 4, 6)
    coarser = resample(values, (2, 2))
    expected = [[values[0, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean().item() for j in range(2)] for i in range(2)]
    assert coarser.tolist() == [expected]


def test_resample_may_go_both_ways_at_once():
    values = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])  # 1 x 4 to 2 x 2
    assert resample(values, (2, 2)).tolist() == [[[1.5, 3.5], [1.5, 3.5]]]


def test_resample_to_its_own_grid_is_the_same():
    values = parts.images(1, (3, 5), 2)[0]
    assert torch.equal(resample(values, (3, 5)), values)


def test_resample_down_undoes_up_and_keeps_the_mean():
    values = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(resample(resample(values, (6, 20)), (3, 5)), values)
    assert torch.allclose(resample(values, (1, 1)).flatten(), values.mean(dim=(1, 2)))


@pytest.mark.parametrize("grid", [(14, 14), (7, 21), (6, 7), (7, 5)])
def test_resample_refuses_grids_that_do_not_nest(grid):
    if grid[0] % 7 == 0 and grid[1] % 7 == 0:
        assert resample(torch.ones(1, 7, 7), grid).shape == (1, *grid)
    else:
        with pytest.raises(ValueError, match=r"a grid of 7 cells and one of \d cells do not nest"):
            resample(torch.ones(1, 7, 7), grid)


def test_sincos_needs_a_multiple_of_four():
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        sincos_positions((2, 2), 30)


def test_resize_positions_equals_cubic_convolution_written_out():
    """Bicubic with a = −0.75, half-pixel centres, borders repeated, no antialias: each output from 4 x 4 inputs."""

    def weight(distance: float, a: float = -0.75) -> float:
        d = abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    def taps(place: int, old: int, new: int) -> list[tuple[int, float]]:
        centre = (place + 0.5) * old / new - 0.5
        first = math.floor(centre) - 1
        return [(min(max(i, 0), old - 1), weight(centre - i)) for i in range(first, first + 4)]

    old, dim = (4, 3), 2
    table = parts.images(1, (12, dim), 1)[0]
    for new in [(6, 5), (2, 3), (3, 7)]:
        resized = resize_positions(table, old, new)
        assert resized.shape == (1, new[0] * new[1], dim)
        for y in range(new[0]):
            for x in range(new[1]):
                expected = sum(
                    wy * wx * table[0, i * old[1] + j]
                    for i, wy in taps(y, old[0], new[0])
                    for j, wx in taps(x, old[1], new[1])
                )
                torch.testing.assert_close(resized[0, y * new[1] + x], expected, rtol=0, atol=1e-5)


def test_resize_positions_to_the_same_grid_is_the_table_itself():
    table = parts.images(1, (12, 8), 1)[0]
    assert resize_positions(table, (3, 4), (3, 4)) is table


def test_resize_positions_keeps_the_dtype():
    assert resize_positions(torch.ones(1, 4, 8, dtype=torch.bfloat16), (2, 2), (4, 4)).dtype == torch.bfloat16
