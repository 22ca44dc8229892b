"""Tables of positions for another image size or attention window.

Shapes: h w window in tokens, R = (2h − 1)(2w − 1) + P rows of a table, P prefix rows, n heads.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimkit.backbones.latent import Encoder
from mimkit.grids import Grid, grid_for, positions_for


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


def resize_relative_bias(table: Tensor, old_window: Grid, new_window: Grid, prefix_rows: int = 0) -> Tensor:
    """A table [R, n] for another window, as BEiT and SimMIM do it when they fine-tune at another size.

    For each head the table is an image of (2h − 1) x (2w − 1) distances. Its values are placed at distances that grow
    geometrically, so that near neighbours keep their values and the farthest ones reach the new window's edge; a
    bicubic spline through them is evaluated at the new window's integer distances. Prefix rows (of the class token)
    stay as they are.

    Args:
        table: [(2h − 1)(2w − 1) + prefix_rows, n].
        old_window, new_window: (h, w) in tokens.
        prefix_rows: rows at the end of the table that are not about pairs of grid tokens.

    Raises:
        ValueError: the table has another number of rows, or a side to be resized has less than two tokens.
    """
    (h, w), (new_h, new_w) = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old_window, new_window))
    if len(table) != h * w + prefix_rows:
        raise ValueError(f"a window of {old_window} needs {h * w + prefix_rows} rows, got {len(table)}")
    if old_window == new_window:
        return table
    across, down = (_resizing(old, new) for old, new in zip(old_window, new_window, strict=True))
    images = table[: h * w].double().T.reshape(-1, h, w)
    resized = (across @ images @ down.T).reshape(-1, new_h * new_w).T
    return torch.cat([resized.to(table.dtype), table[h * w :]])


def _resizing(old: int, new: int) -> Tensor:
    """What resizes distances along one side of a window: linear in the values, so a matrix [2·new − 1, 2·old − 1]."""
    if old == new:
        return torch.eye(2 * old - 1, dtype=torch.float64)
    if min(old, new) < 2:
        raise ValueError(f"windows of {old} and {new} tokens: both need at least 2")
    from scipy.interpolate import CubicSpline  # slow to import

    at = geometric_distances(old - 1, new - 1)
    wanted = np.arange(1 - new, new).clip(at[0], at[-1]).astype(np.float64)
    return torch.from_numpy(CubicSpline(at, np.eye(2 * old - 1))(wanted))


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


def resize_tables(
    weights: dict[str, Tensor], encoder: Encoder, built: tuple[int, int], old: Encoder | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """An encoder's weights with its tables of positions for another image size, and the names of those that changed.

    Learned positions are resized by bicubic interpolation without antialiasing, as MAE, BEiT and DeiT do it, and fixed
    sine-cosine ones made afresh; relative positions as `resize_relative_bias` says.

    Args:
        weights: by the encoder's own names, of one built for images of `built` pixels.
        encoder: of the new size.
        built: (H, W).
        old: such an encoder, which knows its windows; else they are taken to be square.

    Raises:
        ValueError: a table fits no grid or window of either size.
    """
    expected, resized, names = encoder.state_dict(), dict(weights), []
    for name, value in weights.items():
        if name not in expected:
            continue
        if name.endswith("relative_position_bias_table") and value.ndim == 2:
            new_window = window_at(encoder, name)
            prefix = len(expected[name]) - math.prod(2 * side - 1 for side in new_window)
            old_window = window_at(old, name) if old else (window_of(len(value))[0],) * 2
            resized[name] = resize_relative_bias(value, old_window, new_window, prefix)
        elif name.endswith("pos_embed") and value.ndim == 3:
            resized[name] = _resize_positions(name, value, expected[name].shape[1], encoder, built)
        if resized[name].shape != expected[name].shape:
            raise ValueError(f"{encoder.name} has {name} for one image size only, which cannot be resized")
        if resized[name] is not value and not torch.equal(resized[name], value):
            names.append(name)
    return resized, names


def window_at(encoder: Encoder, table: str) -> Grid:
    """The window (h, w) of the module that has this table of relative positions."""
    module: Any = encoder.get_submodule(table.rpartition(".")[0])
    rows, columns = module.window_size
    return int(rows), int(columns)


def _resize_positions(name: str, table: Tensor, rows: int, encoder: Encoder, built: tuple[int, int]) -> Tensor:
    """A table [1, P + N, D] for the grid of the encoder's image size, with as many rows as are wanted."""
    for cell in sorted({encoder.smallest_cell, *(level.cell for level in encoder.levels)}):
        if any(side % cell for side in (*built, *encoder.image_size)):
            continue
        old, new = grid_for(built, cell), grid_for(encoder.image_size, cell)
        prefix = table.shape[1] - math.prod(old)
        if prefix >= 0 and prefix == rows - math.prod(new):
            return torch.cat([table[:, :prefix], positions_for(new, old, table[:, prefix:])], dim=1)
    raise ValueError(
        f"{name} has {table.shape[1]} positions for {built[0]} x {built[1]} pixels, which cannot be resized to {rows} "
        f"for {encoder.image_size[0]} x {encoder.image_size[1]}"
    )
