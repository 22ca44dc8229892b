"""Tables of positions for another image size or attention window.

Shapes: w side of a window in tokens, R = (2w − 1)² + P rows of a table, P prefix rows, n heads.
"""

import math

import numpy as np
import torch
from torch import Tensor

from mimkit.backbones.latent import Encoder
from mimkit.grids import grid_for, positions_for


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
    from scipy.interpolate import CubicSpline  # slow to import

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


def resize_tables(
    weights: dict[str, Tensor], expected: dict[str, Tensor], encoder: Encoder, built: tuple[int, int]
) -> tuple[dict[str, Tensor], list[str]]:
    """An encoder's weights with its tables of positions for another image size, and the names of those that changed.

    Learned positions are resized by bicubic interpolation without antialiasing, as MAE, BEiT and DeiT do it, and fixed
    sine-cosine ones made afresh; relative positions as `resize_relative_bias` says.

    Args:
        weights: by the encoder's own names, of one built for images of `built` pixels.
        expected: the fresh weights of the encoder for its own size.
        encoder: gives the new size and the sides of cells.
        built: (H, W).

    Raises:
        ValueError: a table fits no grid or window of either size.
    """
    resized, names = dict(weights), []
    for name, value in weights.items():
        wanted = expected.get(name)
        if wanted is None or (value.shape == wanted.shape and not name.endswith("pos_embed")):
            continue
        if name.endswith("relative_position_bias_table"):
            (old, prefix), (new, _) = window_of(len(value)), window_of(len(wanted))
            resized[name] = resize_relative_bias(value, old, new, prefix)
        elif name.endswith("pos_embed") and value.ndim == 3:
            resized[name] = _resize_positions(name, value, wanted.shape[1], encoder, built)
        if not torch.equal(resized[name], value):
            names.append(name)
    return resized, names


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
