"""Which latents are decoded: the last tap's, several fused into one, or several each on its own.

The encoder's final norm is applied here.

Shapes: B batch, K tokens, D width, T taps.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mimkit.backbones import Encoder, Latent, Level
from mimkit.backbones.init import init_like_mae
from mimkit.grids import put, take

PLAIN_SCALES = (0.25, 0.5, 1, 2)  # LocalMIM's cells over a plain transformer's: 4, 8, 16, 32 of 16 pixels


class Readout(nn.Module, ABC):
    """Selects taps of the encoder, and turns their latents into the levels to decode.

    Attributes:
        taps: of the encoder.
        levels: the shapes of the latents that come out.
        cells: for each, the side in pixels of the cells it is decoded to.
    """

    taps: tuple[int, ...]
    levels: tuple[Level, ...]
    cells: tuple[int, ...]

    @abstractmethod
    def forward(self, latents: list[Latent], norm: nn.Module) -> list[Latent]:
        """One un-normed latent per tap, and the encoder's final norm, to one latent per level."""

    def scalars(self) -> dict[str, float]:
        """Numbers to log during the run, by name."""
        return {}


class Last(Readout):
    """The last tap through the final norm: one level.

    Args:
        encoder: whose last tap it is.
        scale: side of the cells that are predicted, over the encoder's: 0.5 predicts four for each token.
    """

    taps = (-1,)

    def __init__(self, encoder: Encoder, scale: float = 1.0) -> None:
        super().__init__()
        self.levels = encoder.levels[-1:]
        self.cells = scale_cells(self.levels, (scale,))

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
            12 blocks, and the last, over the encoder's depth; "all" takes every block (the paper's pilot study).
        projection: of the shallow taps: a linear layer each, as published; "mlp" two with GELU between; None leaves
            them as they are (the pilot study).
        fusion: "average" by softmax weights, as published; "attention" lets each token of the last tap attend to the
            same token in all taps, and adds the result.

    Raises:
        ValueError: the taps differ in width or grid.
    """

    def __init__(
        self,
        encoder: Encoder,
        taps: Sequence[int] | Literal["all"] | None = None,
        projection: Literal["linear", "mlp"] | None = "linear",
        fusion: Literal["average", "attention"] = "average",
    ) -> None:
        super().__init__()
        if len(set(encoder.levels)) > 1:
            raise ValueError(
                f"Fused needs one grid; {encoder.name} has {encoder.depth}: use --readout fused-hierarchical"
            )
        self.taps = fusion_taps(encoder, taps)
        self.levels = encoder.levels[-1:]
        self.cells = (encoder.cell,)
        dim = encoder.dim
        makes = {
            "linear": lambda: nn.Linear(dim, dim),
            "mlp": lambda: nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)),
            None: nn.Identity,
        }
        self.projections = nn.ModuleList(makes[projection]() for _ in self.taps[:-1])
        init_like_mae(self.projections)
        self.weights = nn.Parameter(torch.ones(len(self.taps))) if fusion == "average" else None
        self.attention = TapAttention(dim) if fusion == "attention" else None

    def forward(self, latents: list[Latent], norm: nn.Module) -> list[Latent]:
        *shallow, last = latents

        def fuse(values: list[Tensor], deepest: Tensor) -> Tensor:
            projected = [project(value) for project, value in zip(self.projections, values, strict=True)]
            if self.attention is not None:
                return norm(self.attention([*projected, deepest]))
            assert self.weights is not None
            return norm(weighted_sum(self.weights, [*projected, deepest]))

        tokens = fuse([tap.tokens for tap in shallow], last.tokens)
        prefix = fuse([tap.prefix for tap in shallow], last.prefix)
        return [Latent(tokens=tokens, grid=last.grid, ids=last.ids, prefix=prefix)]

    def scalars(self) -> dict[str, float]:
        return {} if self.weights is None else fusion_weights(self.weights, self.taps)


class TapAttention(nn.Module):
    """Each token of the last tap attends to the same token in all taps; the result is added to it.

    Args:
        dim: width; heads have 64 channels where that divides it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // 64 if dim % 64 == 0 else 1
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        init_like_mae(self)
        nn.init.zeros_(self.out.weight)  # at first the result is the last tap alone

    def forward(self, taps: list[Tensor]) -> Tensor:
        """T taps [B, K, D], the last one as query, to [B, K, D]."""
        deepest = taps[-1]
        stacked = torch.stack(taps, dim=2)
        query = self.query(deepest).unflatten(-1, (self.heads, 1, -1))  # [B, K, heads, 1, d]
        key, value = (f(stacked).unflatten(-1, (self.heads, -1)).transpose(2, 3) for f in (self.key, self.value))
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return deepest + self.out(attended.flatten(2))


class FusedHierarchical(Readout):
    """MFF's fusion over the stages of a hierarchical backbone: each shallow stage is projected to the last one's grid.

    The projection is strided: it maps the tokens of a stage that lie in one cell of the last grid together.

    Args:
        encoder: gives the stages; each one's cells divide the last one's.
        taps: stages to fuse, the last one at the end. None takes all.
    """

    def __init__(self, encoder: Encoder, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        self.taps = fusion_taps(encoder, taps or "all")
        self.levels = encoder.levels[-1:]
        self.cells = (encoder.cell,)
        stages = [encoder.levels[tap] for tap in self.taps[:-1]]
        self.projections = nn.ModuleList(
            nn.Linear(stage.dim * (encoder.cell // stage.cell) ** 2, encoder.dim) for stage in stages
        )
        init_like_mae(self.projections)
        self.weights = nn.Parameter(torch.ones(len(self.taps)))

    def forward(self, latents: list[Latent], norm: nn.Module) -> list[Latent]:
        *shallow, last = latents
        projected = [
            project(gather_cells(latent, last)) for project, latent in zip(self.projections, shallow, strict=True)
        ]
        tokens = norm(weighted_sum(self.weights, [*projected, last.tokens]))
        return [Latent(tokens=tokens, grid=last.grid, ids=last.ids, prefix=norm(last.prefix))]

    def scalars(self) -> dict[str, float]:
        return fusion_weights(self.weights, self.taps)


class Levels(Readout):
    """LocalMIM's readout (arXiv 2303.05251 §3.2): every tap is a level of its own, early ones decoded to finer cells.

    Each tap has its own norm; the last one's is the encoder's, which downstream use inherits.

    Args:
        encoder: gives widths, depth and cells.
        taps: to decode, the last one at the end. None takes the published 1, 3, depth − 3, depth − 1 of a plain
            transformer, and the last four stages of a hierarchical backbone.

    The cells of a plain transformer's levels have `PLAIN_SCALES` times its patches' side; stages, whose own cells grow,
    are decoded to these.

    A dense encoder's stages with cells below 8 pixels are averaged to 8, the finest that the paper decodes on a
    hierarchical backbone: attention over the 3,136 tokens of a ConvNeXt's first stage would cost more than all else.

    Raises:
        ValueError: a plain transformer is given more or fewer taps than `PLAIN_SCALES`.
    """

    def __init__(self, encoder: Encoder, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        hierarchical = len(set(encoder.levels)) > 1
        published = (
            range(max(0, encoder.depth - 4), encoder.depth)
            if hierarchical
            else (1, 3, encoder.depth - 3, encoder.depth - 1)
        )
        self.taps = tuple(encoder.resolve(taps or published))
        scales = (1,) * len(self.taps) if hierarchical else PLAIN_SCALES
        if len(self.taps) != len(scales):
            raise ValueError(
                f"a plain transformer has one tap for each of {len(scales)} levels, got {len(self.taps)} taps"
            )
        stages = [encoder.levels[tap] for tap in self.taps]
        self.averaged = tuple(max(1, 8 // s.cell) if hierarchical and encoder.complete else 1 for s in stages)
        self.levels = tuple(Level(s.dim, s.cell * n) for s, n in zip(stages, self.averaged, strict=True))
        self.cells = scale_cells(self.levels, scales)
        self.norms = nn.ModuleList(nn.LayerNorm(level.dim, eps=1e-6) for level in self.levels[:-1])

    def forward(self, latents: list[Latent], norm: nn.Module) -> list[Latent]:
        coarser = [average_tokens(latent, factor) for latent, factor in zip(latents, self.averaged, strict=True)]
        return [latent.map(own) for latent, own in zip(coarser, [*self.norms, norm], strict=True)]


def average_tokens(latent: Latent, factor: int) -> Latent:
    """A latent with all its tokens on a grid `factor` times as coarse, each the mean of factor x factor tokens."""
    if factor == 1:
        return latent
    h, w = latent.grid[0] // factor, latent.grid[1] // factor
    tokens = latent.tokens.unflatten(1, (h, factor, w, factor)).mean(dim=(2, 4)).flatten(1, 2)
    return Latent(tokens=tokens, grid=(h, w), ids=None, prefix=latent.prefix)


def fusion_taps(encoder: Encoder, taps: Sequence[int] | Literal["all"] | None) -> tuple[int, ...]:
    """Taps to fuse, counted from 0, the encoder's last at the end.

    Raises:
        ValueError: the last one is not the encoder's, or one is named twice.
    """
    if taps is None:
        wanted = {tap * encoder.depth // 12 for tap in (0, 2, 4, 6, 8)}  # fewer than five where blocks are few
        return *sorted(wanted - {encoder.depth - 1}), encoder.depth - 1
    resolved = tuple(range(encoder.depth)) if taps == "all" else tuple(encoder.resolve(taps))
    if resolved[-1] != encoder.depth - 1 or len(set(resolved)) < len(resolved):
        raise ValueError(f"taps {resolved} must end with the last one, {encoder.depth - 1}, and differ from each other")
    return resolved


def scale_cells(levels: Sequence[Level], scales: Sequence[float]) -> tuple[int, ...]:
    """Cells of levels times scales, in whole pixels.

    Raises:
        ValueError: one is not whole.
    """
    cells = [level.cell * scale for level, scale in zip(levels, scales, strict=True)]
    if any(cell != int(cell) for cell in cells):
        raise ValueError(f"cells of {levels[0].cell} pixels cannot be scaled by {tuple(scales)} to whole pixels")
    return tuple(int(cell) for cell in cells)


def weighted_sum(weights: Tensor, values: list[Tensor]) -> Tensor:
    """Values [B, K, D] summed by the softmax of as many weights."""
    *firsts, last = weights.softmax(dim=0).unbind()
    total = last * values[-1]
    for weight, value in zip(firsts, values[:-1], strict=True):
        total = total + weight * value
    return total


def fusion_weights(weights: Tensor, taps: Sequence[int]) -> dict[str, float]:
    """The softmax of fusion weights, for the log."""
    return {
        f"fusion/block_{tap}": weight
        for tap, weight in zip(taps, weights.detach().softmax(dim=0).tolist(), strict=True)
    }


def gather_cells(latent: Latent, last: Latent) -> Tensor:
    """The f·f tokens of a finer latent that lie in each cell of the last one, in raster order: [B, K, f·f·D]."""
    (h, w), (fine_h, fine_w) = last.grid, latent.grid
    tokens = put(latent.tokens, latent.ids, latent.grid)
    cells = tokens.unflatten(1, (h, fine_h // h, w, fine_w // w)).transpose(2, 3).flatten(3).flatten(1, 2)
    return take(cells, last.ids)
