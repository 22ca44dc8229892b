"""The dense encoder (SimMIM §3.2): any backbone of timm's that hands out intermediate features, with mask tokens.

Hidden pixels are set to zero before the stem and the mask token takes the stem's output where they were, so that
nothing leaks through a stem whose kernels overlap cells.

Shapes: B batch, C image channels, H W pixels, h w cells, D width.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d, RmsNorm
from torch import Tensor, nn

from mimkit.backbones.latent import Encoder, Latent, Level
from mimkit.grids import grid_for, resample
from mimkit.masks import Mask


class MaskedStem(nn.Module):
    """A stem that takes the mask as one more image channel: passed along as data, it needs no state between calls.

    Args:
        stem: the backbone's own; what others ask this module for is answered by it.
        dim: width of its output.
        layout: of its output: NCHW, NHWC or NLC (raster order).
    """

    def __init__(self, stem: nn.Module, *, dim: int, layout: str) -> None:
        super().__init__()
        self.stem = stem
        self.mask_token = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.layout = layout

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("stem"), name)

    def forward(self, images: Tensor) -> Tensor:
        """The stem's output for images [B, C, H, W], or [B, C + 1, H, W] whose last channel is 1 at hidden pixels."""
        if images.shape[1] == self.channels_seen:
            return self.stem(images)
        hidden = images[:, -1:] > 0.5
        x = self.stem(images[:, :-1].masked_fill(hidden, 0.0))
        if self.layout == "NLC":
            cell = round((images.shape[2] * images.shape[3] / x.shape[1]) ** 0.5)
        else:
            cell = images.shape[2] // x.shape[2 if self.layout == "NCHW" else 1]
        at = hidden[:, :, ::cell, ::cell]  # cells of a mask are multiples of the stem's
        if self.layout == "NCHW":
            return torch.where(at, self.mask_token.to(x.dtype)[:, None, None], x)
        at = at.permute(0, 2, 3, 1)
        return torch.where(at.flatten(1, 2) if self.layout == "NLC" else at, self.mask_token.to(x.dtype), x)

    @property
    def channels_seen(self) -> int:
        """Image channels without the mask."""
        return next(m.in_channels for m in self.stem.modules() if isinstance(m, nn.Conv2d))


class ChannelsFirst(nn.Module):
    """A norm for feature maps [B, D, h, w], applied to tokens [B, K, D]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, K, D] to the same."""
        return self.norm(tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)


class DenseEncoder(Encoder):
    """Drives a timm model's `forward_intermediates` over the whole grid, mask tokens where pixels are hidden.

    Its taps are what the model calls intermediate features: every block of a plain transformer, every stage of others.
    Weights that the last tap does not depend on are frozen, but for the final norm.

    Args:
        model: without head.
        name: as `create_encoder` takes it.
        image_size: (H, W).
        channels: of the image.

    Raises:
        ValueError: the model hands out no intermediate features, or its stem cannot be found.
    """

    complete = True

    def __init__(self, model: Any, *, name: str, image_size: tuple[int, int], channels: int) -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"{name} hands out no intermediate features, which a dense encoder needs")
        self.model, self.name, self.image_size, self.channels = model, name, image_size, channels
        shadow = copy.deepcopy(model).to("meta").eval()  # shapes without numbers
        images = torch.empty(1, channels, *image_size, device="meta")
        path, shape, layout = find_stem(shadow, images, name)
        at = -1 if layout == "NLC" else {"NCHW": 2, "NHWC": 1}[layout]
        cells = image_size[0] // shape[at] if at > 0 else round((image_size[0] * image_size[1] / shape[1]) ** 0.5)
        self.smallest_cell = cells
        outputs = intermediates(shadow, images, None, name)
        self.levels = tuple(Level(x.shape[1], image_size[0] // x.shape[2]) for x in outputs)
        for level, x in zip(self.levels, outputs, strict=True):
            if grid_for(image_size, level.cell) != (x.shape[2], x.shape[3]):
                raise ValueError(
                    f"{name} turns {image_size} pixels into {tuple(x.shape[2:])} cells, which are not square"
                )
        gradients = torch.autograd.grad(outputs[-1].sum(), list(shadow.parameters()), allow_unused=True)
        for (path_to, _), gradient in zip(shadow.named_parameters(), gradients, strict=True):
            model.get_parameter(path_to).requires_grad_(gradient is not None)
        self.norm.requires_grad_(True)
        parent, _, child = path.rpartition(".")
        stem = MaskedStem(model.get_submodule(path), dim=shape[1 if layout == "NCHW" else -1], layout=layout)
        setattr(model.get_submodule(parent), child, stem)
        self.stem_path = path

    @property
    def norm(self) -> nn.Module:
        places = ("norm", "fc_norm", "head.norm")
        modules = dict(self.model.named_modules())
        for norm in (modules.get(place) for place in places):
            if isinstance(norm, nn.LayerNorm | RmsNorm) and not isinstance(norm, LayerNorm2d):
                return norm
            if norm is not None and next(norm.parameters(), None) is not None:
                return ChannelsFirst(norm)
        return nn.Identity()

    def forward(self, images: Tensor, mask: Mask | None = None, taps: Sequence[int] = (-1,)) -> list[Latent]:
        wanted = self.resolve(taps)
        if mask is not None:
            size = (images.shape[-2], images.shape[-1])
            if size[0] // mask.grid[0] % self.smallest_cell or size[1] // mask.grid[1] % self.smallest_cell:
                raise ValueError(
                    f"a mask of {mask.grid[0]} x {mask.grid[1]} cells over {size[0]} x {size[1]} pixels, but "
                    f"{self.name} hides multiples of {self.smallest_cell} pixels"
                )
            hidden = resample(mask.hidden, size)[:, None]
            images = torch.cat([images.masked_fill(hidden, 0.0), hidden.to(images.dtype)], dim=1)
        outputs = intermediates(self.model, images, sorted(set(wanted)), self.name)
        at = dict(zip(sorted(set(wanted)), outputs, strict=True))
        return [
            Latent(
                tokens=at[tap].flatten(2).transpose(1, 2),
                grid=(at[tap].shape[2], at[tap].shape[3]),
                ids=None,
                prefix=at[tap].new_zeros(len(images), 0, at[tap].shape[1]),
            )
            for tap in wanted
        ]

    def timm_weights(self) -> dict[str, Tensor]:
        wrapped, token = f"{self.stem_path}.stem.", f"{self.stem_path}.mask_token"
        weights = {n: value for n, value in self.model.state_dict().items() if n != token}
        return {
            n.replace(wrapped, f"{self.stem_path}.", 1) if n.startswith(wrapped) else n: v for n, v in weights.items()
        }


def intermediates(model: Any, images: Tensor, taps: list[int] | None, name: str) -> list[Tensor]:
    """Un-normed feature maps [B, D, h, w] of the taps, or of all.

    Raises:
        ValueError: the model does not take images of this size.
    """
    try:
        return model.forward_intermediates(images, indices=taps, norm=False, output_fmt="NCHW", intermediates_only=True)
    except AssertionError as error:
        raise ValueError(f"{name} cannot take {images.shape[-2]} x {images.shape[-1]} pixels: {error}") from error


def find_stem(model: nn.Module, images: Tensor, name: str) -> tuple[str, torch.Size, str]:
    """Where the module that reads the pixels stands in a model, with the shape and layout of what it gives.

    That is the model's own patch embedding or stem where it returns one tensor, else its first convolution.

    Raises:
        ValueError: there is none.
    """
    first = getattr(model, "pretrained_cfg", {}).get("first_conv")
    if not first:
        raise ValueError(f"timm does not say which convolution of {name} reads the pixels")
    conv = first if isinstance(first, str) else first[0]
    for path in dict.fromkeys((conv.partition(".")[0], conv)):
        stem = model.get_submodule(path)
        seen: list[Any] = []
        handle = stem.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append((inputs[0], output)))
        intermediates(model, images, None, name)
        handle.remove()
        if len(seen) == 1 and isinstance(seen[0][1], Tensor) and seen[0][0].shape == images.shape:
            shape = seen[0][1].shape
            layout = layout_of(stem, shape, (images.shape[-2], images.shape[-1]))
            if layout:
                return path, shape, layout
    raise ValueError(f"the stem of {name} cannot be found, so nothing can be hidden from it")


def layout_of(stem: nn.Module, shape: torch.Size, image_size: tuple[int, int]) -> str | None:
    """How a stem's output is laid out, or None where its shape leaves that open."""
    if isinstance(stem, nn.Conv2d):
        return "NCHW"
    if len(shape) == 3:
        return "NLC"
    height, width = image_size

    def fits(h: int, w: int) -> bool:
        return height % h == 0 and width % w == 0 and height // h == width // w

    fitting = [layout for layout, h, w in (("NCHW", 2, 3), ("NHWC", 1, 2)) if fits(shape[h], shape[w])]
    return fitting[0] if len(fitting) == 1 else None
