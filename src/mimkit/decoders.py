"""From a level's tokens to predictions for the cells of its grid.

A decoder is made with (dim, values, grid, out_grid, complete=...) and called with a latent and the mask.

Shapes: B batch, h w cells, N = h·w, K tokens, P prefix tokens, E decoder width, Q queried cells, V values of a cell.
"""

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimkit.backbones import Latent
from mimkit.backbones.init import init_like_mae
from mimkit.backbones.lean_block import LeanBlock
from mimkit.grids import Grid, positions_for, put, sincos_positions, take
from mimkit.masks import Mask


class TransformerDecoder(nn.Module):
    """MAE's decoder (§3): mask tokens fill the hidden cells, a few narrow blocks, a linear head.

    Args:
        dim: width of the latent.
        values: what to predict for each cell.
        grid: the latent's, for which it is built; others work (`positions_for`).
        out_grid: the predictions', if another (LocalMIM's rescaling).
        complete: the latent has all its tokens, so that there is nothing to fill, and no mask token to learn.
        width, depth, heads: of its blocks.
        head_scale: of the head's initial weights. At 1 (published) the first predictions are as large as the target,
            and short runs spend themselves on unlearning them; at 0.1 they start near its mean (see LOG.md).
        eps: of its LayerNorms.

    Attributes:
        positions: [1, N, E], fixed; imported ones need not be sine-cosine.
        scored_only: while training, predict no cells but those that the loss counts (`efficiency.tune` sets it).

    Raises:
        ValueError: the heads do not divide the width, or `rescaling` does not know such a pair of grids.
    """

    scored_only = False

    def __init__(
        self,
        dim: int,
        values: int,
        grid: Grid,
        out_grid: Grid | None = None,
        *,
        complete: bool = False,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        head_scale: float = 1.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        refuse_uneven(width, heads)
        norm = partial(nn.LayerNorm, eps=eps)
        self.grid = grid
        self.embed = nn.Linear(dim, width)
        self.mask_token = None if complete else nn.Parameter(torch.zeros(1, 1, width))
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(grid, width)[None])
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(width)
        self.rescale, rescaled_width = rescaling(width, grid, out_grid or grid, eps)
        self.head = nn.Linear(rescaled_width, values)
        init_like_mae(self)
        with torch.no_grad():
            self.head.weight *= head_scale

    def forward(self, latent: Latent, mask: Mask | None = None) -> Tensor:
        """One latent to predictions on the output grid, [B, h, w, values].

        All cells are predicted, hidden and visible. With `scored_only`, given a mask while training, those that the
        mask scores are, and all others are zero: the last block and the head compute no more than that.

        Raises:
            ValueError: tokens are missing from a latent that was to be complete.
        """
        x = self.fill(self.embed(latent.tokens), latent)
        positions = positions_for(latent.grid, self.grid, self.positions)
        x = torch.cat([self.embed(latent.prefix), x + positions], dim=1)  # the prefix has position zero
        prefix = latent.prefix.shape[1]
        fewer = self.scored_only and self.training and self.rescale is None
        if fewer and mask is not None and mask.grid[0] <= latent.grid[0]:
            return self.scored(x, prefix, mask, latent.grid)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x[:, prefix:]).unflatten(1, latent.grid)
        if self.rescale is not None:
            x = self.rescale(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(x)

    def scored(self, x: Tensor, prefix: int, mask: Mask, grid: Grid) -> Tensor:
        """Tokens [B, P + N, E] to predictions [B, h, w, values] of the cells that the mask scores, zero elsewhere."""
        query_ids = mask.scored_ids(grid)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        x = last(x, query_ids + prefix) if isinstance(last, LeanBlock) else take(last(x), query_ids + prefix)
        return put(self.head(self.norm(x)), query_ids, grid).unflatten(1, grid)

    def fill(self, tokens: Tensor, latent: Latent) -> Tensor:
        """Tokens [B, K, E] at their places in the grid, the mask token at all others: [B, N, E]."""
        if latent.ids is None:
            return tokens
        if self.mask_token is None:
            raise ValueError("a decoder built for complete latents was given one that lacks tokens")
        return put(tokens, latent.ids, latent.grid, fill=self.mask_token)


def rescaling(width: int, grid: Grid, out_grid: Grid, eps: float = 1e-6) -> tuple[nn.Module | None, int]:
    """Feature maps [B, width, h, w] from one grid to another, and the width they have there (LocalMIM §3.2).

    Twice or four times as fine: transposed convolutions that halve the width each, a norm and GELU between; half as
    fine: average pooling; the same: None.

    Raises:
        ValueError: any other pair of grids.
    """
    factors = {new / old for old, new in zip(grid, out_grid, strict=True)}
    if factors == {1}:
        return None, width
    if factors == {2}:
        return nn.ConvTranspose2d(width, width // 2, 2, 2), width // 2
    if factors == {4}:
        first, second = (nn.ConvTranspose2d(n, n // 2, 2, 2) for n in (width, width // 2))
        return nn.Sequential(first, LayerNorm2d(width // 2, eps=eps), nn.GELU(), second), width // 4
    if factors == {0.5}:
        return nn.AvgPool2d(2), width
    raise ValueError(f"a decoder rescales by 0.5, 1, 2 or 4, not a grid of {grid} to one of {out_grid}")


class LinearDecoder(nn.Module):
    """One linear layer per token, which predicts a cell or the finer cells in it (SimMIM §3.3, MaskFeat).

    A 1 x 1 convolution followed by a pixel shuffle, with its initialisation, torch's default. Needs an encoder that
    carries mask tokens itself.

    Args:
        dim: width of the latent.
        values: what to predict for each cell of the output grid.
        grid: the latent's; others work.
        out_grid: the predictions', the same or a whole number of times as fine along both sides.
        complete: the latent has all its tokens.

    Raises:
        ValueError: tokens will be missing, or the output grid is another.
    """

    def __init__(
        self, dim: int, values: int, grid: Grid, out_grid: Grid | None = None, *, complete: bool = False
    ) -> None:
        super().__init__()
        if not complete:
            raise ValueError(
                "a linear decoder cannot predict cells that the encoder leaves out: use a transformer decoder "
                "(--decoder transformer) or a dense encoder (--encoder dense)"
            )
        out_grid = out_grid or grid
        self.factor = out_grid[0] // grid[0]
        if self.factor < 1 or out_grid != (grid[0] * self.factor, grid[1] * self.factor):
            raise ValueError(f"a linear decoder cannot rescale a grid of {grid} to one of {out_grid}")
        self.head = nn.Linear(dim, values * self.factor**2)

    def forward(self, latent: Latent, mask: Mask | None = None) -> Tensor:
        """One latent with all its tokens to [B, h, w, values] on the output grid.

        Raises:
            ValueError: the latent lacks tokens.
        """
        if latent.ids is not None:
            raise ValueError("a linear decoder cannot predict cells that the encoder left out")
        h, w = latent.grid
        cells = self.head(latent.tokens).unflatten(2, (self.factor, self.factor, -1)).unflatten(1, (h, w))
        return cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # rows before columns: [B, h, f, w, f, V] first


class CrossDecoder(nn.Module):
    """CrossMAE's decoder (arXiv 2401.14391): each cell is predicted from the encoder's tokens alone.

    A query, the mask token at a cell's position, attends to prefix and visible tokens and to no other query. So only
    the queried cells cost anything, and none changes another's prediction.

    Args:
        dim: width of the latent.
        values: what to predict for each cell.
        grid: the latent's, for which it is built; others work (`positions_for`).
        out_grid: the predictions', which must be the same.
        complete: the latent has all its tokens, which leaves nothing to predict.
        width, depth, heads: of its blocks.
        eps: of its LayerNorms.

    Raises:
        ValueError: the latent is complete, the grids differ, or the heads do not divide the width.
    """

    def __init__(
        self,
        dim: int,
        values: int,
        grid: Grid,
        out_grid: Grid | None = None,
        *,
        complete: bool = False,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if complete:
            raise ValueError(
                "a cross decoder asks for cells that the encoder leaves out, and a dense encoder leaves out none: use "
                "a linear or transformer decoder (--decoder) or a visible-only encoder (--encoder visible)"
            )
        if out_grid not in (None, grid):
            raise ValueError(f"a cross decoder cannot rescale a grid of {grid} to one of {out_grid}")
        refuse_uneven(width, heads)
        self.grid = grid
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(grid, width)[None])
        self.context_norm = nn.LayerNorm(width, eps=eps)
        self.blocks = nn.ModuleList(CrossBlock(width, heads, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, values)
        init_like_mae(self)

    def forward(self, latent: Latent, mask: Mask | None = None) -> Tensor:
        """One latent to [B, h, w, values] on its grid.

        Predicted are the cells that the mask scores, where it scores some only, and all others are zero; else all
        cells of the grid, hidden and visible.

        Raises:
            ValueError: the mask's cells are finer than the latent's.
        """
        positions = positions_for(latent.grid, self.grid, self.positions).expand(len(latent.tokens), -1, -1)
        tokens = self.embed(latent.tokens) + take(positions, latent.ids)
        context = self.context_norm(torch.cat([self.embed(latent.prefix), tokens], dim=1))
        query_ids = None if mask is None or mask.scored is None else mask.scored_ids(latent.grid)
        x = self.mask_token + take(positions, query_ids)
        for block in self.blocks:
            x = block(x, context)
        return put(self.head(self.norm(x)), query_ids, latent.grid).unflatten(1, latent.grid)


class CrossBlock(nn.Module):
    """Queries [B, Q, E] attend to a context [B, P + K, E]; then an MLP of four times the width. Pre-norm."""

    def __init__(self, width: int, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(self.attention_norm(x)), *self.key_value(context).chunk(2, dim=2))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


def refuse_uneven(width: int, heads: int) -> None:
    """Raises ValueError where the heads do not divide the width."""
    if width % heads:
        raise ValueError(f"decoder width {width} is no multiple of its {heads} heads")
