"""Tables of positions: relative ones resized to another window, decoders' in the form of ours.

Shapes: w side of a window in tokens, R = (2w − 1)² + P rows of a table, P prefix rows, n heads; N cells, E width.
"""

import math

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from mimkit.convert.rename import Weights
from mimkit.grids import Grid, positions_for


def window_of(rows: int) -> tuple[int, int]:
    """The window w that a table of (2w − 1)² + P rows is for, and P: 0 (Swin), or 3 where there is a class token.

    Raises:
        ValueError: no window has a table of so many rows.
    """
    for prefix in (0, 3):
        side = math.isqrt(max(rows - prefix, 0))
        if side * side == rows - prefix and side % 2:
            return (side + 1) // 2, prefix
    raise ValueError(f"no square window has a table of {rows} relative positions")


def resize_relative_bias(table: Tensor, old_window: int, new_window: int, prefix_rows: int = 0) -> Tensor:
    """A table [R, n] for another window, as BEiT and SimMIM do it when they fine-tune at another size.

    For each head the table is a (2w − 1)² image. Its values are placed at distances that grow geometrically, so that
    near neighbours keep their values and the farthest ones reach the new window's edge; a bicubic spline through them
    is evaluated at the new window's integer distances. Prefix rows (of the class token) stay as they are.

    Args:
        table: [(2·old_window − 1)² + prefix_rows, n].
        old_window, new_window: sides in tokens.
        prefix_rows: rows at the end of the table that are not about pairs of grid tokens.

    Raises:
        ValueError: the table has another number of rows, or a window has less than two tokens.
    """
    side, new_side = 2 * old_window - 1, 2 * new_window - 1
    if min(old_window, new_window) < 2:
        raise ValueError(f"windows of {old_window} and {new_window} tokens: both need at least 2")
    if len(table) != side * side + prefix_rows:
        raise ValueError(f"a window of {old_window} needs {side * side + prefix_rows} rows, got {len(table)}")
    if old_window == new_window:
        return table
    at = geometric_distances(old_window - 1, new_window - 1)
    wanted = np.arange(1 - new_window, new_window).clip(at[0], at[-1]).astype(np.float64)
    resize = torch.from_numpy(CubicSpline(at, np.eye(side))(wanted))  # linear in the values: a matrix [new, old]
    images = table[: side * side].double().T.reshape(-1, side, side)
    resized = (resize @ images @ resize.T).reshape(-1, new_side * new_side).T
    return torch.cat([resized.to(table.dtype), table[side * side :]])


def geometric_distances(steps: int, reach: int) -> np.ndarray:
    """−d … 0 … d, float64 [2·steps + 1], with d = 1, 1 + q, 1 + q + q² …, and q such that the last is `reach`.

    q lies between 1.01 and 1.5, so that a much smaller or larger reach is missed.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**steps) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    distances = np.cumsum(((low + high) / 2) ** np.arange(steps))
    return np.concatenate([-distances[::-1], [0.0], distances])


def place_positions(weights: Weights, decoder: str, grid: Grid, new_grid: Grid, prefix: int) -> Weights:
    """The weights with a decoder's table [1, N, E] or [1, P + N, E] in the form of ours: [1, N, E], on another grid.

    Our prefix tokens have position zero. A checkpoint's other position is added to the embedding's bias and the mask
    token, and subtracted from the cells' positions: every sum, and so every gradient, is unchanged.

    Args:
        weights: by our names.
        decoder: prefix of the names of its weights.
        grid: (h, w) that the table is for, unless only a square fits.
        new_grid: to resize it to.
        prefix: how many prefix tokens there are.

    Raises:
        ValueError: the table is for no such grid, or prefix tokens have different positions.
    """
    name = f"{decoder}.positions"
    table = weights[name].float()
    count, grid = grid_of(table.shape[1], prefix, grid)
    rows, cells = table.split((count, table.shape[1] - count), dim=1)
    result = dict(weights)
    if rows.any():
        if not torch.equal(rows, rows[:, :1].expand_as(rows)):
            raise ValueError(f"the decoder's {count} class tokens have different positions, and ours have none")
        cells = cells - rows[:, :1]
        for moved in (f"{decoder}.embed.bias", f"{decoder}.mask_token"):
            result[moved] = weights[moved].float() + rows[0, 0]
    return result | {name: positions_for(new_grid, grid, cells)}


def grid_of(rows: int, prefix: int, grid: Grid) -> tuple[int, Grid]:
    """How many of a table's rows are the prefix tokens' (all or none), and the grid of the others.

    Raises:
        ValueError: they are neither for this grid nor for a square one.
    """
    squares = [(math.isqrt(max(rows - count, 0)),) * 2 for count in (0, prefix)]
    for h, w in (grid, *squares):
        if rows - h * w in (0, prefix):
            return rows - h * w, (h, w)
    raise ValueError(f"the decoder has {rows} positions: neither for {grid[0]} x {grid[1]} cells nor for a square")
