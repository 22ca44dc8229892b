"""Which latents are decoded: the last block's, or several fused into one. The encoder's final norm is applied here.

Shapes: B batch, K tokens, D width, T taps.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mimkit.backbones import Encoder, Latent


@dataclass(frozen=True)
class Level:
    """One latent that is decoded: its width, and the side in pixels of the cells it is decoded to."""

    dim: int
    cell: int


class Readout(nn.Module, ABC):
    """Names the taps it wants, and turns their latents into the levels to decode.

    Attributes:
        taps: blocks of the encoder.
        levels: what comes out.
    """

    taps: tuple[int, ...]
    levels: tuple[Level, ...]

    @abstractmethod
    def forward(self, latents: list[Latent], norm: nn.Module) -> list[Latent]:
        """One un-normed latent per tap, and the encoder's final norm, to one latent per level."""

    def scalars(self) -> dict[str, float]:
        """What the log should follow over the run, by name."""
        return {}


class Last(Readout):
    """The last block through the final norm: one level."""

    taps = (-1,)

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.levels = (Level(encoder.dim, encoder.cell),)

    def forward(self, latents: list[Latent], norm: nn.Module) -> list[Latent]:
        (last,) = latents
        return [last.map(norm)]


class Fused(Readout):
    """MFF's fusion (arXiv 2308.00261 §3.3): shallow taps projected, then averaged with the last by learned weights.

    Class token and patches are fused alike; the final norm follows. Only pre-training uses it: downstream, the plain
    backbone is read out.

    Args:
        encoder: gives width and depth.
        taps: blocks to fuse, the last one at the end and unprojected. None spreads the published 0, 2, 4, 6, 8 of
            12 blocks, and the last, over the encoder's depth.
    """

    def __init__(self, encoder: Encoder, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        if taps is None:
            spread = {tap * encoder.depth // 12 for tap in (0, 2, 4, 6, 8)}  # fewer than five where blocks are few
            taps = [*sorted(spread - {encoder.depth - 1}), encoder.depth - 1]
        self.taps = tuple(taps)
        self.levels = (Level(encoder.dim, encoder.cell),)
        projections = [nn.Linear(encoder.dim, encoder.dim) for _ in self.taps[:-1]]
        for projection in projections:
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        self.projections = nn.ModuleList(projections)
        self.weights = nn.Parameter(torch.ones(len(self.taps)))

    def forward(self, latents: list[Latent], norm: nn.Module) -> list[Latent]:
        *shallow, last = latents
        *weights, last_weight = self.weights.softmax(dim=0).unbind()

        def fuse(values: list[Tensor], deepest: Tensor) -> Tensor:
            fused = last_weight * deepest
            for weight, project, value in zip(weights, self.projections, values, strict=True):
                fused = fused + weight * project(value)
            return norm(fused)

        tokens = fuse([tap.tokens for tap in shallow], last.tokens)
        prefix = fuse([tap.prefix for tap in shallow], last.prefix)
        return [Latent(tokens=tokens, grid=last.grid, ids=last.ids, prefix=prefix)]

    def scalars(self) -> dict[str, float]:
        shares = self.weights.detach().softmax(dim=0).tolist()
        return {f"fusion/block_{tap}": share for tap, share in zip(self.taps, shares, strict=True)}


class Levels(Readout):
    """LocalMIM's readout (arXiv 2303.05251 §3.2): every tap is a level of its own, early ones decoded to finer cells.

    Each tap has its own norm; the last one's is the encoder's, which downstream use inherits.

    Args:
        encoder: gives width, depth and cell.
        taps: blocks to decode, the last one at the end. None takes the published 1, 3, depth − 3, depth − 1.
        scales: side of each level's cells, over the encoder's cell: with 16-pixel patches 4, 8, 16 and 32 pixels.

    Raises:
        ValueError: as many taps as scales are needed.
    """

    def __init__(
        self, encoder: Encoder, taps: Sequence[int] | None = None, scales: Sequence[float] = (0.25, 0.5, 1, 2)
    ) -> None:
        super().__init__()
        self.taps = tuple(taps or (1, 3, encoder.depth - 3, encoder.depth - 1))
        if len(self.taps) != len(scales):
            raise ValueError(f"{len(self.taps)} taps need as many scales, got {len(scales)}")
        cells = [encoder.cell * scale for scale in scales]
        if any(cell != int(cell) for cell in cells):
            raise ValueError(f"a cell of {encoder.cell} pixels cannot be scaled by {tuple(scales)} to whole pixels")
        self.levels = tuple(Level(encoder.dim, int(cell)) for cell in cells)
        self.norms = nn.ModuleList(nn.LayerNorm(encoder.dim, eps=1e-6) for _ in self.taps[:-1])

    def forward(self, latents: list[Latent], norm: nn.Module) -> list[Latent]:
        return [latent.map(own) for latent, own in zip(latents, [*self.norms, norm], strict=True)]
