"""A Swin Transformer of timm's that never computes on a hidden token (GreenMIM, arXiv 2205.13515).

Shapes: B batch, C image channels, H W pixels, h w cells of a stage, K visible tokens, D width, n heads, d width of a
head, G groups of g slots each (`window_groups.py`), S = G·g.
"""

import math
from collections.abc import Sequence
from types import MethodType

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from mimkit.backbones.latent import Encoder, Latent, Level
from mimkit.backbones.window_groups import WindowGroups, group_windows
from mimkit.grids import Grid, grid_for, patchify_channels_first, take
from mimkit.masks import Mask


class VisibleSwin(Encoder):
    """Drives the stages of a timm `SwinTransformer` over visible tokens only.

    Visible tokens come out as they would of the dense model, were the hidden ones missing from its windows. A tap
    comes after a stage and the merging of patches that follows it.

    Args:
        swin: the model, without head.
        name: timm's name for it.
        image_size: (H, W) it was built for; its windows are fixed, so it takes no other.
        isolated: stop gradients after each tap, so that a tap's loss trains the stage before it only (LocalMIM
            without global back-propagation).

    Raises:
        ValueError: it was built for another size, its patches are not square, or its last stage's cells or a block's
            windows do not divide the image: timm pads there, which visible tokens alone cannot reproduce.
    """

    complete = False

    def __init__(
        self, swin: SwinTransformer, *, name: str, image_size: tuple[int, int], isolated: bool = False
    ) -> None:
        super().__init__()
        self.swin = swin
        self.name = name
        self.image_size = image_size
        self.isolated = isolated
        self.channels: int = swin.in_chans
        (height, width), (built_height, built_width) = image_size, swin.patch_embed.img_size
        if (height, width) != (built_height, built_width):
            raise ValueError(
                f"{name} was built for images of {built_height} x {built_width} pixels, not {height} x {width}"
            )
        patch, patch_width = swin.patch_embed.patch_size
        if patch != patch_width:
            raise ValueError(f"its patches have {patch} x {patch_width} pixels, and cells must be square")
        cells = [patch * 2**i for i in range(len(swin.layers))]
        dims = [stage.blocks[0].dim for stage in swin.layers]
        self.levels = tuple(Level(*level) for level in zip(dims[1:] + dims[-1:], cells[1:] + cells[-1:], strict=True))
        self.smallest_cell = cells[-1]
        grid_for(image_size, self.smallest_cell)
        self.grids = [grid_for(image_size, cell) for cell in cells]
        for (h, w), stage in zip(self.grids, swin.layers, strict=True):
            for block in stage.blocks:
                rows, columns = block.window_size
                if h % rows or w % columns:
                    raise ValueError(f"windows of {rows} x {columns} tokens do not divide a stage of {h} x {w} tokens")
                block.forward = MethodType(forward_block, block)

    @property
    def norm(self) -> nn.Module:
        return self.swin.norm

    def forward(self, images: Tensor, mask: Mask | None = None, taps: Sequence[int] = (-1,)) -> list[Latent]:
        if images.shape[-2:] != self.image_size:
            (height, width), (h, w) = self.image_size, images.shape[-2:]
            raise ValueError(f"{self.name} was built for images of {height} x {width} pixels, got {h} x {w}")
        wanted = self.resolve(taps)
        ids = None if mask is None else self.ids(mask)
        x = self.swin.patch_embed(images) if ids is None else self.embed(images, ids[0])
        at: dict[int, Latent] = {}
        for i, stage in enumerate(self.swin.layers[: max(wanted) + 1]):
            if mask is None or ids is None:
                x = stage.blocks(x)
            else:
                groups: dict[tuple[Grid, Grid], WindowGroups] = {}
                for block in stage.blocks:
                    windows = (block.window_size, block.shift_size)
                    if windows not in groups:
                        groups[windows] = group_windows(ids[i][:1] if mask.shared else ids[i], self.grids[i], *windows)
                    x = block(x, groups[windows])
            after = min(i + 1, self.depth - 1)
            x = merge(self.swin.layers[after].downsample, x) if after > i else x
            if i in wanted:
                tokens = x.flatten(1, 2) if ids is None else x
                there = None if ids is None else ids[after]
                at[i] = Latent(tokens=tokens, grid=self.grids[after], ids=there, prefix=tokens[:, :0])
                x = x.detach() if self.isolated else x
        return [at[i] for i in wanted]

    def ids(self, mask: Mask) -> list[Tensor]:
        """Raster positions of each stage's visible tokens, int64 [B, K], in the order in which they are computed.

        The last stage's ascend; before it, the four tokens that merge stand together, in the order in which timm
        concatenates them, so that merging is a reshape.

        Raises:
            ValueError: the mask's cells do not consist of the last stage's, or it replaces tokens.
        """
        (height, width), (h, w) = self.image_size, mask.grid
        last = self.grids[-1]
        if last[0] % h or last[1] % w:
            raise ValueError(
                f"a mask of {h} x {w} cells over {height} x {width} pixels does not consist of cells of "
                f"{self.smallest_cell} pixels, the smallest that {self.name} can hide"
            )
        if mask.replaced is not None:
            raise ValueError(f"this mask replaces {mask.replaced_count} cells, and {self.name} has 0 mask tokens")
        ids = [mask.visible_ids(last)]
        for grid in self.grids[-2::-1]:
            coarse = ids[0]
            corner = 2 * (coarse // (grid[1] // 2)) * grid[1] + 2 * (coarse % (grid[1] // 2))
            children = torch.stack([corner, corner + grid[1], corner + 1, corner + grid[1] + 1], dim=2)
            ids.insert(0, children.flatten(1))
        return ids

    def embed(self, images: Tensor, ids: Tensor) -> Tensor:
        """The patch embedding's convolution as the matrix product it is, [B, K, D]; hidden pixels are not even read."""
        stem = self.swin.patch_embed
        patches = take(patchify_channels_first(images, self.grids[0]), ids)
        return stem.norm(F.linear(patches, stem.proj.weight.flatten(1), stem.proj.bias))

    def timm_weights(self) -> dict[str, Tensor]:
        return self.swin.state_dict()


def merge(merging: PatchMerging, x: Tensor) -> Tensor:
    """timm's merging of 2 x 2 tokens, for [B, h, w, D], or for visible tokens [B, K, D] in the order of `ids`."""
    return merging(x) if x.ndim == 4 else merging.reduction(merging.norm(x.unflatten(1, (-1, 4)).flatten(2)))


def forward_block(block: SwinTransformerBlock, x: Tensor, groups: WindowGroups | None = None) -> Tensor:
    """What a block of timm's does here, under its own name: tokens [B, K, D] of these groups to the same.

    Without groups, whole images [B, h, w, D], as in timm.
    """
    if groups is None:
        return type(block).forward(block, x)
    x = x + block.drop_path1(attend(block.attn, block.norm1(x), groups))
    return x + block.drop_path2(block.mlp(block.norm2(x)))


def attend(attention: WindowAttention, x: Tensor, groups: WindowGroups) -> Tensor:
    """Attention of tokens [B, K, D] to the visible tokens of their windows, [B, K, D].

    Where samples have groups of their own, the batch is taken as one sample of B·K tokens in B·G groups. So there are
    b samples (B or 1), whose groups are the same and share one bias.
    """
    batch, count, _ = x.shape
    heads: int = attention.num_heads
    shared = groups.samples == 1
    b, tokens = (batch, count) if shared else (1, batch * count)
    qkv = attention.qkv(x).view(b, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()
    q, k, v = qkv if groups.slots is None else (part.index_select(2, groups.slots) for part in qkv)
    # [b, n, G, g, d]; fused kernels take two batch dimensions.
    merged = (1, 2) if shared else (0, 1)
    q, k, v = (part.unflatten(2, groups.inside.shape).flatten(*merged) for part in (q, k, v))
    bias = window_bias(attention, groups).to(q.dtype)
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=bias.flatten(0, 1).expand(b, -1, -1, -1) if shared else bias,
        dropout_p=attention.attn_drop.p if attention.training else 0.0,
        scale=attention.scale,
    )
    out = out.reshape(b, heads, -1, out.shape[-1]).transpose(1, 2)  # [b, S, n, d]
    out = out if groups.places is None else out.index_select(1, groups.places)
    return attention.proj_drop(attention.proj(out.reshape(batch, count, -1)))


def window_bias(attention: WindowAttention, groups: WindowGroups) -> Tensor:
    """What is added to the logits, [n, G, g, g]: the relative position bias inside windows, -inf between them.

    For each query the bias to every place in its window is looked up, then each key picks its own: the gradient so
    adds up over rows, not over single pairs, where a device would have millions wait for few addresses.
    """
    area = len(attention.relative_position_index)
    table = F.embedding(attention.relative_position_index, attention.relative_position_bias_table)  # [area, area, n]
    table = F.pad(table.transpose(1, 2), (0, 1), value=-math.inf)
    rows = F.embedding(groups.inside, table.flatten(1)).unflatten(2, (-1, area + 1)).permute(2, 0, 1, 3)
    return rows.gather(3, groups.keys.expand(len(rows), -1, -1, -1))
