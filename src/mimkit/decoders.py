"""From a level's tokens to predictions for every cell of its grid.

Shapes: B batch, h w cells, N = h·w, K tokens, P prefix tokens, E decoder width.
"""

from functools import partial

import torch
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
        grid: the grid it is built for; others work, positions are made afresh.
        width, depth, heads: of its blocks.
    """

    def __init__(
        self, dim: int, values: int, grid: Grid, *, width: int = 512, depth: int = 8, heads: int = 16
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"decoder width {width} is no multiple of its {heads} heads")
        self.grid = grid
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(grid, width)[None], persistent=False)
        layer_norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=layer_norm) for _ in range(depth))
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, values)
        init_like_mae(self)

    def forward(self, latent: Latent) -> Tensor:
        """One latent to predictions for all cells, hidden and visible: [B, h, w, values]."""
        x = self.fill(self.embed(latent.tokens), latent)
        positions = self.positions if latent.grid == self.grid else sincos_positions(latent.grid, x.shape[2]).to(x)
        x = torch.cat([self.embed(latent.prefix), x + positions], dim=1)  # the prefix has position zero
        for block in self.blocks:
            x = block(x)
        x = x[:, latent.prefix.shape[1] :]
        return self.head(self.norm(x)).unflatten(1, latent.grid)

    def fill(self, tokens: Tensor, latent: Latent) -> Tensor:
        """Tokens [B, K, E] at their places in the grid, the mask token at all others: [B, N, E]."""
        if latent.ids is None:
            return tokens
        h, w = latent.grid
        everywhere = self.mask_token.to(tokens.dtype).expand(len(tokens), h * w, -1)
        return everywhere.scatter(1, latent.ids[:, :, None].expand_as(tokens), tokens)


class LinearDecoder(nn.Module):
    """One linear layer per token (SimMIM §3.3). Needs an encoder that carries mask tokens itself.

    Args:
        dim: width of the latent.
        values: what to predict for each cell.
        grid: unused; every decoder is built from the same three facts.
    """

    def __init__(self, dim: int, values: int, grid: Grid) -> None:
        super().__init__()
        self.head = nn.Linear(dim, values)

    def forward(self, latent: Latent) -> Tensor:
        """One latent with all its tokens to [B, h, w, values].

        Raises:
            ValueError: the latent lacks the hidden tokens.
        """
        if latent.ids is not None:
            raise ValueError("a linear decoder cannot predict cells that the encoder left out: use a transformer one")
        return self.head(latent.tokens).unflatten(1, latent.grid)
