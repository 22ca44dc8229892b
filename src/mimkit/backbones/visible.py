"""The visible-token encoder (MAE §3): a plain ViT of timm's that never computes on a hidden patch.

Shapes: B batch, C image channels, H W pixels, h w cells, N = h·w, K visible tokens, P prefix tokens, D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mimkit.backbones.latent import Encoder, Latent, Level
from mimkit.grids import (
    Grid,
    grid_for,
    patchify_channels_first,
    positions_for,
    resize_positions,
    sincos_positions,
    take,
)
from mimkit.masks import Mask


class VisibleViT(Encoder):
    """Drives the embedding, positions and blocks of a timm `VisionTransformer` over visible tokens only.

    Args:
        vit: the model, without head.
        name: timm's name for it.
        image_size: (H, W) it was built for.
        sincos: its position table is fixed, and if it is the sine-cosine one, computed anew for another image size
            instead of resized.
        isolated: stop gradients after each tap, so that a tap's loss trains the blocks since the tap before only
            (LocalMIM without global back-propagation).
        mask_token: have one, for masks that replace tokens (UM-MAE).
    """

    complete = False

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        name: str,
        image_size: tuple[int, int],
        sincos: bool,
        isolated: bool = False,
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        self.vit = vit
        self.name = name
        self.image_size = image_size
        self.sincos = sincos
        self.isolated = isolated
        self.smallest_cell: int = vit.patch_embed.patch_size[0]
        self.levels = (Level(vit.embed_dim, self.smallest_cell),) * len(vit.blocks)
        self.channels: int = vit.in_chans
        self.replaces = mask_token
        self.mask_token = nn.Parameter(torch.zeros(vit.embed_dim)) if mask_token else None
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    @property
    def norm(self) -> nn.Module:
        return self.vit.norm

    def forward(self, images: Tensor, mask: Mask | None = None, taps: Sequence[int] = (-1,)) -> list[Latent]:
        grid = grid_for((images.shape[-2], images.shape[-1]), self.cell)
        ids = None if mask is None else mask.visible_ids(grid)
        prefix_positions, cell_positions = self.positions(grid)
        tokens = self.embed(images, grid, ids, mask) + take(cell_positions.expand(len(images), -1, -1), ids)
        prefix = [p.expand(len(images), -1, -1) for p in (self.vit.cls_token, self.vit.reg_token) if p is not None]
        if prefix:
            count = self.vit.num_prefix_tokens
            tokens = torch.cat([torch.cat(prefix, dim=1) + prefix_positions, tokens], dim=1)
        else:
            count = 0

        wanted = self.resolve(taps)
        at: dict[int, Latent] = {}
        x = self.vit.norm_pre(self.vit.pos_drop(tokens))
        for i, block in enumerate(self.vit.blocks[: max(wanted) + 1]):
            x = block(x)
            if i in wanted:
                at[i] = Latent(tokens=x[:, count:], grid=grid, ids=ids, prefix=x[:, :count])
                x = x.detach() if self.isolated else x
        return [at[i] for i in wanted]

    def embed(self, images: Tensor, grid: Grid, ids: Tensor | None, mask: Mask | None) -> Tensor:
        """The patch embedding's convolution as the matrix product it is, [B, K, D]; hidden pixels are not even read.

        Raises:
            ValueError: the mask replaces tokens, and there is no mask token.
        """
        stem = self.vit.patch_embed
        patches = take(patchify_channels_first(images, grid), ids)
        replaced = None if mask is None else mask.replaced_on(grid)
        if replaced is None or ids is None:
            return stem.norm(F.linear(patches, stem.proj.weight.flatten(1), stem.proj.bias))
        if self.mask_token is None:
            raise ValueError(f"this mask replaces tokens, and {self.name} was made without a mask token")
        at = replaced.flatten(1).gather(1, ids)[:, :, None]
        tokens = stem.norm(F.linear(patches.masked_fill(at, 0.0), stem.proj.weight.flatten(1), stem.proj.bias))
        return torch.where(at, self.mask_token.to(tokens.dtype), tokens)

    def timm_weights(self) -> dict[str, Tensor]:
        return self.vit.state_dict()

    def positions(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Position embeddings of prefix [1, P, D] (or zero) and cells [1, N, D] for a grid, from the built one."""
        table = self.vit.pos_embed
        if table is None:
            nothing = self.vit.patch_embed.proj.weight.new_zeros(1, 1, 1)
            return nothing, nothing
        count = 0 if self.vit.no_embed_class else self.vit.num_prefix_tokens
        prefix = table[:, :count] if count else table.new_zeros(1, 1, 1)
        built = grid_for(self.image_size, self.cell)
        cells = table[:, count:]
        return prefix, positions_for(grid, built, cells) if self.sincos else resize_positions(cells, built, grid)


def with_sincos(vit: VisionTransformer, image_size: tuple[int, int]) -> None:
    """Replace learned positions by the fixed sine-cosine table, zero for prefix tokens, not trained."""
    if vit.pos_embed is not None:
        grid = grid_for(image_size, vit.patch_embed.patch_size[0])
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        table = torch.cat([torch.zeros(prefix, vit.embed_dim), sincos_positions(grid, vit.embed_dim)])
        vit.pos_embed = nn.Parameter(table[None], requires_grad=False)
