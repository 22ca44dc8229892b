"""Cells hidden one by one: at random, or dealt out between copies of an image.

Shapes: B batch, h w cells of the mask's own grid, N = h·w.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mimkit.grids import Grid
from mimkit.masks.mask import Mask
from mimkit.masks.sampler import MaskSampler, floor
from mimkit.randomness import random_orders


@dataclass(frozen=True)
class RandomMask(MaskSampler):
    """Cells hidden uniformly at random, afresh for each sample (MAE §3, SimMIM §3.2).

    Keeps floor(N·(1 − ratio)) of N cells: 49 of 196 at 0.75, 14 of 36 at SimMIM's 0.6.

    Args:
        ratio: hidden share, between 0 and 1.
        cell: side of a cell in pixels; None takes the encoder's.
        shared: one mask for the whole batch (GreenMIM).
        scored: share of the hidden cells that the loss counts, rounded down (CrossMAE). To count a quarter of all
            cells at a ratio of 0.75, it is 1/3.

    Raises:
        ValueError: the ratio is outside (0, 1), or leaves nothing visible or nothing hidden; `scored` is outside
            (0, 1], or leaves nothing to score.
    """

    ratio: float = 0.75
    cell: int | None = None
    shared: bool = False
    scored: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"mask ratio must lie between 0 and 1, got {self.ratio}")
        if not 0 < self.scored <= 1:
            raise ValueError(f"scored share must be above 0 and at most 1, got {self.scored}")

    def sample(self, keys: Tensor, grid: Grid, batch_key: Tensor | None = None) -> Mask:
        h, w = grid
        visible = floor(h * w * (1 - self.ratio))
        if not 0 < visible < h * w:
            raise ValueError(f"mask ratio {self.ratio} leaves {visible} of {h * w} cells visible")
        count = h * w - visible
        scored = floor(count * self.scored)
        if scored == 0:
            raise ValueError(f"scored share {self.scored} leaves none of {count} hidden cells to score")
        drawn = (keys[:1] if batch_key is None else batch_key) if self.shared else keys
        ranks = random_orders(drawn, h * w).unflatten(1, (h, w)).expand(len(keys), -1, -1)
        return Mask(
            ranks >= visible,
            count,
            scored=ranks >= h * w - scored if scored < count else None,
            scored_count=scored,
            shared=self.shared,
        )


@dataclass(frozen=True)
class ComplementaryMasks(MaskSampler):
    """The cells of each image are dealt into equal sets; of its copies, each sees one of them (FastConvMAE).

    Args:
        copies: of every image; with 4, each hides three of four cells.
        cell: side of a cell in pixels; None takes the encoder's.

    Raises:
        ValueError: fewer than 2 copies, or they do not divide the cells.
    """

    copies: int = 4
    cell: int | None = None

    def __post_init__(self) -> None:
        if self.copies < 2:
            raise ValueError(f"complementary masks need at least 2 copies, got {self.copies}")

    def sample(self, keys: Tensor, grid: Grid, batch_key: Tensor | None = None) -> Mask:
        h, w = grid
        if h * w % self.copies:
            raise ValueError(f"{h * w} cells cannot be dealt to {self.copies} complementary masks")
        owner = random_orders(keys, h * w) % self.copies
        hidden = owner[:, None] != torch.arange(self.copies, device=keys.device)[:, None]
        return Mask(hidden.flatten(0, 1).unflatten(1, (h, w)), h * w - h * w // self.copies, copies=self.copies)
