"""Tables of relative positions, resized as SimMIM and BEiT publish it."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from mimkit.backbones.resize import geometric_distances, resize_relative_bias, window_of


def slowly(table: Tensor, old: int, new: int) -> Tensor:
    """One head after the other, with SciPy's spline surface, distances summed up one by one."""
    side = 2 * old - 1

    def reached(ratio: float) -> float:
        return sum(ratio**i for i in range(side // 2))

    left, right = 1.01, 1.5
    while right - left > 1e-6:
        middle = (left + right) / 2
        if reached(middle) > (2 * new - 1) // 2:
            right = middle
        else:
            left = middle
    ratio, distances = (left + right) / 2, []
    for i in range(side // 2):
        distances.append((distances[-1] if distances else 0.0) + ratio**i)
    at = np.array([-d for d in reversed(distances)] + [0.0] + distances)
    wanted = np.arange(-(new - 1), new)
    heads = [
        RectBivariateSpline(at, at, head.view(side, side).double().numpy())(wanted, wanted).reshape(-1)
        for head in table.T
    ]
    return torch.from_numpy(np.stack(heads, axis=1)).float()


@pytest.mark.parametrize(("old", "new"), [(6, 7), (7, 6), (6, 12), (12, 14), (14, 24), (7, 12), (4, 32)])
def test_as_scipy(old, new):
    table = torch.randn((2 * old - 1) ** 2, 3, generator=torch.Generator().manual_seed(0))
    resized = resize_relative_bias(table, (old, old), (new, new))
    assert resized.shape == ((2 * new - 1) ** 2, 3)
    torch.testing.assert_close(resized, slowly(table, old, new), rtol=0, atol=2e-6)


def test_near_neighbours_keep_their_values():
    table = torch.randn(11 * 11, 2, generator=torch.Generator().manual_seed(0))
    resized = resize_relative_bias(table, (6, 6), (7, 7))
    before, after = table.view(11, 11, 2), resized.view(13, 13, 2)
    torch.testing.assert_close(after[5:8, 5:8], before[4:7, 4:7], rtol=0, atol=1e-5)


def test_there_and_back():
    """A smooth table survives 6 to 12 tokens and back; the middle exactly."""
    axis = torch.linspace(-1, 1, 11)
    table = torch.exp(-(axis[:, None] ** 2) - axis**2).reshape(-1, 1)
    again = resize_relative_bias(resize_relative_bias(table, (6, 6), (12, 12)), (12, 12), (6, 6))
    assert again.shape == table.shape
    torch.testing.assert_close(again.view(11, 11)[5, 5], table.view(11, 11)[5, 5], rtol=0, atol=1e-6)
    assert torch.equal(resize_relative_bias(table, (6, 6), (6, 6)), table)


def test_prefix_rows_stay():
    table = torch.randn(27**2 + 3, 2, generator=torch.Generator().manual_seed(0)).half()
    resized = resize_relative_bias(table, (14, 14), (24, 24), 3)
    assert resized.shape == (47**2 + 3, 2)
    assert resized.dtype == torch.float16
    assert torch.equal(resized[-3:], table[-3:])


def test_distances_reach_the_edge():
    distances = geometric_distances(6, 11)
    assert distances.shape == (13,)
    assert distances[-1] == pytest.approx(11, abs=1e-3)
    assert distances[7] == 1
    np.testing.assert_allclose(distances, -distances[::-1])


@pytest.mark.parametrize(
    ("rows", "window"), [(121, (6, 0)), (169, (7, 0)), (529, (12, 0)), (732, (14, 3)), (2212, (24, 3)), (9, (2, 0))]
)
def test_windows_of_tables(rows, window):
    assert window_of(rows) == window


def test_wrong_tables():
    with pytest.raises(ValueError, match="no square window has a table of 100"):
        window_of(100)
    with pytest.raises(ValueError, match="needs 121 rows, got 100"):
        resize_relative_bias(torch.zeros(100, 2), (6, 6), (7, 7))
    with pytest.raises(ValueError, match="at least 2"):
        resize_relative_bias(torch.zeros(1, 2), (1, 1), (7, 7))
