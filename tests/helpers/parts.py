"""Small parts for the tests: tiny encoders with random weights, whole methods, images, masks."""

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from mimkit.backbones import Encoder, VisibleViT
from mimkit.decoders import TransformerDecoder
from mimkit.grids import Grid, grid_for, sincos_positions
from mimkit.losses import Distance, squared
from mimkit.masks import Mask, MaskSampler, RandomMask
from mimkit.method import Method
from mimkit.readouts import Last, Readout
from mimkit.targets import Pixels, Target
from mimkit.views import Normalization

Size = tuple[int, int]


def timm_vit(name: str, *, size: Size, channels: int = 3, dim: int = 48, depth: int = 3, heads: int = 3, **options):
    """timm's ViT of that family, made small, without head, every trainable weight moved off its initial value."""
    options = {"num_classes": 0, "global_pool": "", "img_size": size, "in_chans": channels} | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = timm.create_model(name, embed_dim=dim, depth=depth, num_heads=heads, **options)
    return perturb(vit).eval()


def shapes(name: str, **options) -> dict[str, Tensor]:
    """The weights of a model of timm's, which take no memory and have no values."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **options).state_dict()


def encoder(name: str = "vit_tiny_patch16_224", *, size: Size, sincos: bool = False, **options) -> VisibleViT:
    """A small `VisibleViT` (options as in `timm_vit`), its positions random, or fixed sine-cosine ones."""
    vit = timm_vit(name, size=size, dynamic_img_size=True, **options)
    if sincos:
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        grid = grid_for(size, vit.patch_embed.patch_size[0])
        table = torch.cat([torch.zeros(prefix, vit.embed_dim), sincos_positions(grid, vit.embed_dim)])
        vit.pos_embed = nn.Parameter(table[None], requires_grad=False)
    return VisibleViT(vit, name=name, image_size=size, sincos=sincos)


def method(
    encoder: VisibleViT,
    *,
    readout: Callable[[Encoder], Readout] = Last,
    target: Target | None = None,
    mask: MaskSampler | None = None,
    distance: Distance = squared,
    width: int = 32,
    depth: int = 2,
    heads: int = 4,
) -> Method:
    """MAE around an encoder, unless told otherwise, every trainable weight moved off its initial value."""
    target = target or Pixels()
    values = target.values(encoder.cell, encoder.channels)
    grid = grid_for(encoder.image_size, encoder.cell)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = TransformerDecoder(encoder.dim, values, grid, width=width, depth=depth, heads=heads)
        built_readout = readout(encoder)
    composed = Method(
        mask=mask or RandomMask(),
        encoder=encoder,
        readout=built_readout,
        decoders=[decoder],
        target=target,
        distance=distance,
        normalization=Normalization.for_channels(encoder.channels),
    )
    perturb(composed.readout, seed=1)
    perturb(composed.decoders, seed=2)
    return composed


def perturb(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random noise on every trainable parameter, so that no bias, norm or layer scale sits where it cannot be seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                deviation = 0.3 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
                parameter += deviation * torch.randn(parameter.shape, generator=generator)
    return module


def images(batch: int, size: Size, channels: int = 3, seed: int = 0) -> Tensor:
    """Float images [B, C, H, W] of unit deviation."""
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def coarse_images(count: int, side: int) -> Tensor:
    """uint8 [count, 3, side, side]: coloured blocks of 8 pixels with fine noise, whole numbers only."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(200, (count, 3, side // 8, side // 8), generator=generator)
    noise = torch.randint(56, (count, 3, side, side), generator=generator)
    return (blocks.repeat_interleave(8, 2).repeat_interleave(8, 3) + noise).to(torch.uint8)


def hide(batch: int, grid: Grid, count: int, seed: int = 0) -> Mask:
    """A mask that hides `count` random cells of each sample, drawn without mimkit's own sampler."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.stack([torch.randperm(grid[0] * grid[1], generator=generator) for _ in range(batch)])
    return Mask((ranks < count).reshape(batch, *grid))


def hidden_pixels(mask: Mask, size: Size) -> Tensor:
    """bool [B, 1, H, W]: True where the mask covers a pixel."""
    h, w = mask.hidden.shape[1:]
    rows, columns = torch.arange(size[0]) * h // size[0], torch.arange(size[1]) * w // size[1]
    return mask.hidden[:, rows][:, :, columns][:, None]


def draw(
    sampler: MaskSampler, keys: Tensor, image_size: Size, encoder_cell: int, batch_key: Tensor | None = None
) -> Mask:
    """A mask for images of that size, and an encoder with cells of so many pixels."""
    return sampler.sample(keys, sampler.grid(image_size, encoder_cell), batch_key)
