"""From a level's tokens to predictions for every cell of its grid.

Shapes: B batch, h w cells, N = h·w, K tokens, P prefix tokens, E decoder width.
"""

from functools import partial

import torch
from timm.layers import LayerNorm2d
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimkit.backbones import Latent
from mimkit.backbones.visible import init_like_mae
from mimkit.grids import Grid, sincos_positions


class TransformerDecoder(nn.Module):
    """MAE's decoder (§3): mask tokens fill the hidden cells, a few narrow blocks, a linear head.

    Args:
        dim: width of the latent.
        values: what to predict for each cell.
        grid: the latent's, for which it is built; others work, positions are made afresh.
        out_grid: the predictions', if another (LocalMIM's rescaling).
        width, depth, heads: of its blocks.
        head_scale: of the head's initial weights. At 1 (published) the first predictions are as large as the target,
            and short runs spend themselves on unlearning them; at 0.1 they start near its mean (see LOG.md).
    """

    def __init__(
        self,
        dim: int,
        values: int,
        grid: Grid,
        out_grid: Grid | None = None,
        *,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        head_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"decoder width {width} is no multiple of its {heads} heads")
        self.grid = grid
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(grid, width)[None], persistent=False)
        layer_norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=layer_norm) for _ in range(depth))
        self.norm = layer_norm(width)
        self.rescale, rescaled_width = rescaling(width, grid, out_grid or grid)
        self.head = nn.Linear(rescaled_width, values)
        init_like_mae(self)
        with torch.no_grad():
            self.head.weight *= head_scale

    def forward(self, latent: Latent) -> Tensor:
        """One latent to predictions for all cells of the output grid, hidden and visible: [B, h, w, values]."""
        x = self.fill(self.embed(latent.tokens), latent)
        positions = self.positions if latent.grid == self.grid else sincos_positions(latent.grid, x.shape[2]).to(x)
        x = torch.cat([self.embed(latent.prefix), x + positions], dim=1)  # the prefix has position zero
        for block in self.blocks:
            x = block(x)
        x = x[:, latent.prefix.shape[1] :]
        x = self.norm(x).unflatten(1, latent.grid)
        if self.rescale is not None:
            x = self.rescale(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(x)

    def fill(self, tokens: Tensor, latent: Latent) -> Tensor:
        """Tokens [B, K, E] at their places in the grid, the mask token at all others: [B, N, E]."""
        if latent.ids is None:
            return tokens
        h, w = latent.grid
        everywhere = self.mask_token.to(tokens.dtype).expand(len(tokens), h * w, -1)
        return everywhere.scatter(1, latent.ids[:, :, None].expand_as(tokens), tokens)


def rescaling(width: int, grid: Grid, out_grid: Grid) -> tuple[nn.Module | None, int]:
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
        return nn.Sequential(first, LayerNorm2d(width // 2, eps=1e-6), nn.GELU(), second), width // 4
    if factors == {0.5}:
        return nn.AvgPool2d(2), width
    raise ValueError(f"a decoder rescales by 0.5, 1, 2 or 4, not a grid of {grid} to one of {out_grid}")


class LinearDecoder(nn.Module):
    """One linear layer per token (SimMIM §3.3). Needs an encoder that carries mask tokens itself.

    Args:
        dim: width of the latent.
        values: what to predict for each cell.
        grid, out_grid: the latent's and the predictions', which must be the same.

    Raises:
        ValueError: the grids differ.
    """

    def __init__(self, dim: int, values: int, grid: Grid, out_grid: Grid | None = None) -> None:
        super().__init__()
        if out_grid not in (None, grid):
            raise ValueError(f"a linear decoder cannot rescale a grid of {grid} to one of {out_grid}")
        self.head = nn.Linear(dim, values)

    def forward(self, latent: Latent) -> Tensor:
        """One latent with all its tokens to [B, h, w, values].

        Raises:
            ValueError: the latent lacks the hidden tokens.
        """
        if latent.ids is not None:
            raise ValueError("a linear decoder cannot predict cells that the encoder left out: use a transformer one")
        return self.head(latent.tokens).unflatten(1, latent.grid)
