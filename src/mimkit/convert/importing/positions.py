"""Decoders' tables of positions, as this package has them.

Shapes: N cells, E width, P prefix rows.
"""

import math

import torch

from mimkit.convert.rename import Weights
from mimkit.grids import Grid, positions_for


def place_positions(weights: Weights, decoder: str, grid: Grid, new_grid: Grid, prefix: int) -> Weights:
    """The weights with a decoder's table [1, N, E] or [1, P + N, E] as ours has it: [1, N, E], on another grid.

    With us prefix tokens have position zero. Where theirs is another, all tokens are moved by it: the embedding's bias
    and the mask token take it up, and the cells' positions give it back. Every sum, and so every gradient, stays.

    Args:
        weights: by our names.
        decoder: what the names of its weights begin with.
        grid: (h, w) that the table is for, unless only a square fits.
        new_grid: that it shall be for.
        prefix: how many prefix tokens there are.

    Raises:
        ValueError: the table is for no such grid, or prefix tokens have different positions.
    """
    name = f"{decoder}.positions"
    table = weights[name].float()
    count, grid = grid_of(table.shape[1], prefix, grid)
    rows, cells = table.split((count, table.shape[1] - count), dim=1)
    placed = dict(weights)
    if rows.any():
        if not torch.equal(rows, rows[:, :1].expand_as(rows)):
            raise ValueError(f"the decoder's {count} class tokens have different positions, and ours have none")
        cells = cells - rows[:, :1]
        for moved in (f"{decoder}.embed.bias", f"{decoder}.mask_token"):
            placed[moved] = weights[moved].float() + rows[0, 0]
    return placed | {name: positions_for(new_grid, grid, cells)}


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
