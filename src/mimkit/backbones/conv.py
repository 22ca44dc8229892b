"""ConvMAE's encoder (MCMAE, arXiv 2205.03892 §3): two masked convolution stages, then transformer blocks.

Its published form convolves whole images, hidden parts included, and takes out the visible tokens before the
transformer. But only the depth-wise convolutions reach over the border of a 16-pixel cell, and their input is zeroed
where it is hidden; all else happens inside a cell. So the same values come from visible cells alone: they are kept
as a list of small squares, and only laid out as an image for the depth-wise convolutions.

Shapes: B batch, C image channels, H W pixels, h w cells of 16 pixels, N = h·w, K visible cells, n side of the square
of tokens that a cell holds (4, 2, 1 in the three stages), k side of a kernel, D width.
"""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimkit.backbones.init import init_like_mae
from mimkit.backbones.latent import Encoder, Latent, Level
from mimkit.grids import Grid, grid_for, patchify, positions_for, put, sincos_positions, take, unpatchify
from mimkit.masks import Mask

CELL = 16


class ConvMAE(Encoder):
    """Masked convolution stages on cells of 4 and 8 pixels, then transformer blocks on those of 16: the taps.

    Its weights have the published checkpoints' names and shapes. There is no class token.

    Args:
        name: as `create_encoder` takes it.
        image_size: (H, W) it is built for; for others the fixed sine-cosine positions are computed anew.
        channels: image channels.
        dims: widths of the three stages.
        depths: their numbers of blocks.
        heads: of the last stage.
        drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.
        multi_scale: for pre-training, project the outputs of both convolution stages to the last width, and add them
            to the last tap of masked images, for the decoder. Downstream uses read out unmasked images, where nothing
            is added and these projections are not used.

    Raises:
        ValueError: the size is no multiple of 16 pixels, the last width none of 4 or of the heads, or stages are
            missing.
    """

    smallest_cell = CELL
    complete = False

    def __init__(
        self,
        *,
        name: str = "convmae_base",
        image_size: tuple[int, int],
        channels: int = 3,
        dims: Sequence[int] = (256, 384, 768),
        depths: Sequence[int] = (2, 2, 11),
        heads: int = 12,
        drop_path: float = 0.0,
        multi_scale: bool = True,
    ) -> None:
        super().__init__()
        if len(dims) != 3 or len(depths) != 3 or min(depths) < 1:
            raise ValueError(f"ConvMAE has three stages of one block or more, got widths {dims} and depths {depths}")
        if dims[2] % heads:
            raise ValueError(f"a width of {dims[2]} is no multiple of its {heads} heads")
        self.name = name
        self.image_size = image_size
        self.channels = channels
        self.levels = (Level(dims[2], CELL),) * depths[2]
        self.multi_scale = multi_scale
        rates = [drop_path * i / (sum(depths) - 1) for i in range(sum(depths))]
        first, second, third = (rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(3))
        layer_norm = partial(nn.LayerNorm, eps=1e-6)

        self.patch_embed1 = PatchEmbedding(channels, dims[0], 4)
        self.patch_embed2 = PatchEmbedding(dims[0], dims[1], 2)
        self.patch_embed3 = PatchEmbedding(dims[1], dims[2], 2)
        self.patch_embed4 = nn.Linear(dims[2], dims[2])
        self.blocks1 = nn.ModuleList(ConvBlock(dims[0], rate) for rate in first)
        self.blocks2 = nn.ModuleList(ConvBlock(dims[1], rate) for rate in second)
        self.blocks3 = nn.ModuleList(
            Block(dims[2], heads, qkv_bias=True, drop_path=rate, norm_layer=layer_norm) for rate in third
        )
        self._modules["norm"] = layer_norm(dims[2])  # the published name, which `Encoder` has as a property
        if multi_scale:
            self.stage1_output_decode = nn.Conv2d(dims[0], dims[2], 4, 4)
            self.stage2_output_decode = nn.Conv2d(dims[1], dims[2], 2, 2)
        table = sincos_positions(grid_for(image_size, CELL), dims[2])[None]
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        init_like_mae(self)
        for block in (*self.blocks1, *self.blocks2):
            block.attn.reset_parameters()  # as a matrix, a depth-wise kernel would start too small

    @property
    def norm(self) -> nn.Module:
        return dict(self.named_children())["norm"]

    def forward(self, images: Tensor, mask: Mask | None = None, taps: Sequence[int] = (-1,)) -> list[Latent]:
        grid = grid_for((images.shape[-2], images.shape[-1]), CELL)
        if mask is not None and mask.replaced is not None:
            raise ValueError(f"{self.name} has no mask token to put in place of hidden cells")
        wanted = self.resolve(taps)
        ids = None if mask is None else mask.visible_ids(grid)

        cells = take(patchify(images, grid).flatten(1, 2), ids).unflatten(2, (CELL, CELL, self.channels))
        first = self.patch_embed1(cells)
        for block in self.blocks1:
            first = block(first, grid, ids)
        second = self.patch_embed2(first)
        for block in self.blocks2:
            second = block(second, grid, ids)
        x = self.patch_embed4(self.patch_embed3(second).flatten(2))
        x = x + take(self.positions(grid).expand(len(x), -1, -1), ids)

        at: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks3[: max(wanted) + 1]):
            x = block(x)
            if i == self.depth - 1 and mask is not None and self.multi_scale:
                x = x + per_cell(self.stage1_output_decode, first).flatten(2)
                x = x + per_cell(self.stage2_output_decode, second).flatten(2)
            if i in wanted:
                at[i] = x
        return [Latent(tokens=at[i], grid=grid, ids=ids, prefix=at[i][:, :0]) for i in wanted]

    def positions(self, grid: Grid) -> Tensor:
        """Position embeddings [1, N, D] of a grid."""
        return positions_for(grid, grid_for(self.image_size, CELL), self.pos_embed)

    def timm_weights(self) -> dict[str, Tensor]:
        raise ValueError(f"timm has no model for {self.name}: export it as safetensors")


class PatchEmbedding(nn.Module):
    """Tokens of k x k pixels or finer tokens: a convolution with stride k, a norm, GELU. [B, K, n, n, C] to n/k, D."""

    def __init__(self, channels: int, dim: int, side: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, side, side)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, cells: Tensor) -> Tensor:
        return F.gelu(self.norm(per_cell(self.proj, cells)))


class ConvBlock(nn.Module):
    """A transformer block with a 5 x 5 depth-wise convolution, blind to hidden cells, in place of attention."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, 4 * dim, use_conv=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, cells: Tensor, grid: Grid, ids: Tensor | None) -> Tensor:
        """Cells [B, K, n, n, D] at places ids [B, K] of the grid (None: all of them) to the same shape."""
        around = self.convolve(per_cell(self.conv1, self.norm1(cells)), grid, ids)
        cells = cells + self.drop_path(per_cell(self.conv2, around))
        inside = per_cell(self.mlp.fc2, self.mlp.act(per_cell(self.mlp.fc1, self.norm2(cells))))
        return cells + self.drop_path(inside)

    def convolve(self, cells: Tensor, grid: Grid, ids: Tensor | None) -> Tensor:
        """The depth-wise convolution of the image made of these cells, zero where cells are hidden."""
        everywhere = put(cells.flatten(2), ids, grid).unflatten(1, grid)
        image = self.attn(unpatchify(everywhere, cells.shape[4]))
        return take(patchify(image, grid).flatten(1, 2), ids).view_as(cells)


def per_cell(conv: nn.Conv2d, cells: Tensor) -> Tensor:
    """A convolution whose kernel is its stride, as the matrix product it is: [B, K, n, n, C] to [B, K, n/k, n/k, D]."""
    k = conv.kernel_size[0]
    if k > 1:
        cells = cells.unflatten(3, (-1, k)).unflatten(2, (-1, k)).permute(0, 1, 2, 4, 6, 3, 5).flatten(4)
    return F.linear(cells, conv.weight.flatten(1), conv.bias)
