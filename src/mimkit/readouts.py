"""Which latents are decoded: the last block's, or several fused into one. The encoder's final norm is applied here.

Shapes: B batch, K tokens, D width, T taps.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mimkit.backbones import Encoder, Latent


class Readout(Protocol):
    """Names the taps it wants, and turns their latents into the levels to decode."""

    taps: tuple[int, ...]

    def __call__(self, latents: list[Latent], norm: nn.Module) -> list[Latent]: ...

    def scalars(self) -> dict[str, float]:
        """What the log should follow over the run, by name."""


class Last(nn.Module):
    """The last block through the final norm: one level."""

    taps = (-1,)

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()

    def forward(self, latents: list[Latent], norm: nn.Module) -> list[Latent]:
        (last,) = latents
        return [last.map(norm)]

    def scalars(self) -> dict[str, float]:
        return {}


class Fused(nn.Module):
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
