"""Geometry: images as grids of square cells.

Shapes: B batch, C image channels, H W pixels, h w cells, p side of a cell in pixels, N = h·w, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]


def grid_for(image_size: tuple[int, int], cell: int) -> Grid:
    """The grid (h, w) of `cell`-pixel cells over an image of (H, W) pixels.

    Raises:
        ValueError: the cell does not divide both sides.
    """
    height, width = image_size
    if height % cell or width % cell:
        raise ValueError(f"a cell of {cell} pixels does not divide an image of {height} x {width} pixels")
    return height // cell, width // cell


def patchify(images: Tensor, grid: Grid) -> Tensor:
    """[B, C, H, W] to [B, h, w, p·p·C]: rows, then columns, then channels fastest (MAE's order)."""
    batch, channels, height, width = images.shape
    h, w = grid
    cells = images.reshape(batch, channels, h, height // h, w, width // w)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, h, w, -1)


def patchify_channels_first(images: Tensor, grid: Grid) -> Tensor:
    """[B, C, H, W] to [B, N, C·p·p]: channels, then rows, then columns fastest (as in a convolution's kernel)."""
    h, w = grid
    return images.unflatten(3, (w, -1)).unflatten(2, (h, -1)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(cells: Tensor, channels: int) -> Tensor:
    """The inverse of `patchify`: [B, h, w, p·p·C] to [B, C, H, W]."""
    batch, h, w, values = cells.shape
    p = math.isqrt(values // channels)
    return cells.reshape(batch, h, w, p, p, channels).permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, h * p, w * p)


def resample(values: Tensor, grid: Grid) -> Tensor:
    """[B, h, w] on another grid that nests with it: repeated where that is finer, averaged where it is coarser.

    Raises:
        ValueError: along one side neither grid is a multiple of the other.
    """
    for axis, new in zip((1, 2), grid, strict=True):
        old = values.shape[axis]
        if new % old == 0:
            values = values.repeat_interleave(new // old, axis) if new != old else values
        elif old % new == 0:
            values = values.unflatten(axis, (new, old // new)).mean(axis + 1)
        else:
            raise ValueError(f"a grid of {old} cells and one of {new} cells do not nest")
    return values


def sincos_positions(grid: Grid, dim: int) -> Tensor:
    """Fixed 2-D sine-cosine table, float32 [h·w, D] (MAE §A.1).

    The first half of the channels encodes the *column*, the second half the row, each as [sin | cos]: the order
    that the published weights use.

    Raises:
        ValueError: `dim` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, got {dim}")
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


def resize_positions(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """A learned table [1, N, D] from one grid to another: bicubic, no antialias, as MAE, BEiT and DeiT publish it."""
    if old == new:
        return table
    image = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image.float(), size=new, mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(table.dtype)


def take(rows: Tensor, ids: Tensor | None) -> Tensor:
    """Of rows [B, N, D] those at ids [B, K], or all of them."""
    return rows if ids is None else rows.gather(1, ids[:, :, None].expand(-1, -1, rows.shape[2]))


def put(rows: Tensor, ids: Tensor | None, grid: Grid, fill: Tensor | None = None) -> Tensor:
    """The inverse of `take`: rows [B, K, D] at raster positions ids [B, K] of a grid, [B, N, D].

    Args:
        rows: one for each id, or with ids None one for each cell, which are returned as they are.
        ids: int64, None for all cells in raster order.
        grid: (h, w).
        fill: [1, 1, D], what all other cells hold; None for zero.
    """
    if ids is None:
        return rows
    fill = rows.new_zeros(1, 1, 1) if fill is None else fill.to(rows.dtype)
    everywhere = fill.expand(len(rows), grid[0] * grid[1], rows.shape[2])
    return everywhere.scatter(1, ids[:, :, None].expand_as(rows), rows)


def positions_for(grid: Grid, built: Grid, table: Tensor) -> Tensor:
    """The table [1, N, D] that was built for one grid, on another: sine-cosine computed anew, any other resized."""
    if grid != built and is_sincos(table, built):
        return sincos_positions(grid, table.shape[2]).to(table)[None]
    return resize_positions(table, built, grid)


def is_sincos(table: Tensor, grid: Grid) -> bool:
    """Whether a table [1, N, D] holds a grid's fixed sine-cosine positions, as far as bfloat16 can tell."""
    if table.shape[2] % 4:
        return False
    return torch.allclose(table[0].float(), sincos_positions(grid, table.shape[2]).to(table.device), rtol=0, atol=4e-3)
