"""Distances between prediction and target, and their mean over hidden cells.

Shapes: B batch, h w cells, C values of a cell.
"""

from collections.abc import Callable

from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    """(prediction − target)², element by element."""
    return (prediction - target).square()


def absolute(prediction: Tensor, target: Tensor) -> Tensor:
    """|prediction − target|, element by element (SimMIM §3.4)."""
    return (prediction - target).abs()


def masked_mean(distances: Tensor, hidden: Tensor) -> Tensor:
    """Mean of [B, h, w, C] over the values of a cell, then over hidden cells.

    `hidden` [B, h, w] weighs the cells: 1 hidden, 0 visible, between on a grid coarser than the mask (LocalMIM's
    soft mask).
    """
    return (distances.mean(dim=-1) * hidden).sum() / hidden.sum()
