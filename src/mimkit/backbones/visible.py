"""The visible-token encoder (MAE §3): a plain ViT of timm's that never computes on a hidden patch.

Shapes: B batch, C image channels, H W pixels, h w cells, N = h·w, K visible tokens, P prefix tokens, D width.
"""

from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mimkit.backbones.latent import Encoder, Latent
from mimkit.grids import Grid, grid_for, resize_positions, sincos_positions
from mimkit.masks import Mask


class VisibleViT(Encoder):
    """Drives the embedding, positions and blocks of a timm `VisionTransformer` over visible tokens only.

    Args:
        vit: the model, without head.
        name: timm's name for it.
        image_size: (H, W) it was built for.
        sincos: its position table is the fixed sine-cosine one, to be made afresh for another image size instead of
            resized.
    """

    def __init__(self, vit: VisionTransformer, *, name: str, image_size: tuple[int, int], sincos: bool) -> None:
        super().__init__()
        self.vit = vit
        self.name = name
        self.image_size = image_size
        self.sincos = sincos
        self.cell: int = vit.patch_embed.patch_size[0]
        self.dim: int = vit.embed_dim
        self.depth = len(vit.blocks)
        self.channels: int = vit.in_chans

    @property
    def norm(self) -> nn.Module:
        return self.vit.norm

    def forward(self, images: Tensor, mask: Mask | None = None, taps: Sequence[int] = (-1,)) -> list[Latent]:
        """Normalised images [B, C, H, W] to one un-normed latent per tap, in the order of the taps.

        Raises:
            ValueError: the patch does not divide the image, or a tap lies beyond the last block.
        """
        grid = grid_for((images.shape[-2], images.shape[-1]), self.cell)
        ids = None if mask is None else mask.visible_ids(grid)
        prefix_positions, cell_positions = self.positions(grid)
        tokens = self.embed(images, grid, ids) + take(cell_positions.expand(len(images), -1, -1), ids)
        prefix = [p.expand(len(images), -1, -1) for p in (self.vit.cls_token, self.vit.reg_token) if p is not None]
        if prefix:
            count = self.vit.num_prefix_tokens
            tokens = torch.cat([torch.cat(prefix, dim=1) + prefix_positions, tokens], dim=1)
        else:
            count = 0

        wanted = [tap % self.depth if -self.depth <= tap < self.depth else tap for tap in taps]
        if max(wanted) >= self.depth or min(wanted) < 0:
            raise ValueError(f"tap {max(wanted, key=abs)} lies outside the {self.depth} blocks of {self.name}")
        at: dict[int, Latent] = {}
        x = self.vit.norm_pre(self.vit.pos_drop(tokens))
        for i, block in enumerate(self.vit.blocks[: max(wanted) + 1]):
            x = block(x)
            if i in wanted:
                at[i] = Latent(tokens=x[:, count:], grid=grid, ids=ids, prefix=x[:, :count])
        return [at[i] for i in wanted]

    def embed(self, images: Tensor, grid: Grid, ids: Tensor | None) -> Tensor:
        """The patch embedding's convolution as the matrix product it is, [B, K, D]; hidden pixels are not even read."""
        h, w = grid
        patches = images.unflatten(3, (w, -1)).unflatten(2, (h, -1)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        stem = self.vit.patch_embed
        return stem.norm(F.linear(take(patches, ids), stem.proj.weight.flatten(1), stem.proj.bias))

    def positions(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Position embeddings of prefix [1, P, D] (or zero) and cells [1, N, D] for a grid, from the built one."""
        table = self.vit.pos_embed
        if table is None:
            nothing = self.vit.patch_embed.proj.weight.new_zeros(1, 1, 1)
            return nothing, nothing
        count = 0 if self.vit.no_embed_class else self.vit.num_prefix_tokens
        prefix = table[:, :count] if count else table.new_zeros(1, 1, 1)
        built = grid_for(self.image_size, self.cell)
        if grid != built and self.sincos:
            return prefix, sincos_positions(grid, self.dim).to(table)[None]
        return prefix, resize_positions(table[:, count:], built, grid)


def take(rows: Tensor, ids: Tensor | None) -> Tensor:
    """Of rows [B, N, D] those at ids [B, K], or all of them."""
    return rows if ids is None else rows.gather(1, ids[:, :, None].expand(-1, -1, rows.shape[2]))


def create_visible_vit(
    name: str,
    *,
    image_size: tuple[int, int],
    channels: int = 3,
    sincos: bool = True,
    pretrained: bool = False,
    drop_path: float = 0.0,
) -> VisibleViT:
    """A `VisibleViT` over any timm model of the class VisionTransformer.

    Args:
        name: timm's name, such as "vit_base_patch16_224".
        image_size: (H, W), need not be square nor what the name says.
        channels: image channels.
        sincos: replace learned positions by the fixed sine-cosine table, not trained, and initialise as MAE does.
        pretrained: load timm's weights (downloaded on first use), which keeps learned positions.
        drop_path: stochastic depth.

    Raises:
        ValueError: timm does not know the name, the model is no plain ViT, or its patch does not divide the size.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{suggest(name)}")
    # Not a final average pool: that would rename the norm and drop it from the token path.
    options = {"img_size": image_size, "in_chans": channels, "drop_path_rate": drop_path, "dynamic_img_size": True}
    try:
        vit = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="", **options)
    except (TypeError, AssertionError) as error:  # families without these options; distilled DeiTs assert
        raise ValueError(f"{name} is no plain ViT that visible-only encoding can drive") from error
    except RuntimeError as error:  # an unknown tag of weights
        raise ValueError(f"timm cannot make {name!r}: {' '.join(str(error).split())}") from error
    if type(vit) is not VisionTransformer:
        raise ValueError(f"{name} is a {type(vit).__name__}, no plain ViT that visible-only encoding can drive")
    if type(vit.patch_embed) is not PatchEmbed:  # the kernels of a convolutional stem would see hidden pixels
        raise ValueError(f"{name} embeds patches with a {type(vit.patch_embed).__name__}, which overlaps cells")
    patch = vit.patch_embed.patch_size
    if patch[0] != patch[1]:
        raise ValueError(f"{name} has patches of {patch[0]} x {patch[1]} pixels; cells must be square")
    grid = grid_for(image_size, patch[0])
    if not pretrained:
        init_like_mae(vit)
        if sincos and vit.pos_embed is not None:
            prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
            table = torch.cat([torch.zeros(prefix, vit.embed_dim), sincos_positions(grid, vit.embed_dim)])
            vit.pos_embed = nn.Parameter(table[None], requires_grad=False)
    return VisibleViT(vit, name=name, image_size=image_size, sincos=sincos and not pretrained)


def init_like_mae(module: nn.Module) -> None:
    """MAE's initialisation: Xavier-uniform linear layers with zero bias, patch embedding as the matrix it is,
    tokens N(0, 0.02), norms at identity.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(child.weight.flatten(1))
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in ("cls_token", "reg_token", "mask_token"):
            nn.init.normal_(parameter, std=0.02)


def suggest(name: str) -> str:
    """The end of a sentence about a misspelt timm name: "; did you mean A or B?", or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, timm.list_models(), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""
