"""The dense encoder (SimMIM §3.2): any backbone of timm's that hands out intermediate features, with mask tokens.

Hidden pixels are set to zero before the model and the mask token takes the stem's output where they were, so that
nothing leaks through a stem whose kernels overlap cells.

Shapes: B batch, C image channels, H W pixels, h w cells, D width, K tokens.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d, LayerNorm2dFp32, RmsNorm, RmsNormFp32, SimpleNorm
from timm.layers.norm import LayerNormExp2d
from torch import Tensor, nn

from mimkit.backbones.latent import Encoder, Latent, Level
from mimkit.grids import Grid, resample
from mimkit.masks import Mask

# Of a stem's output, by the number of its axes and those that grow with the width of the images.
LAYOUTS: dict[tuple[int, tuple[int, ...]], str] = {(4, (3,)): "NCHW", (4, (2,)): "NHWC", (3, (1,)): "NLC"}
NORMS_OF_TOKENS = (nn.LayerNorm, nn.RMSNorm, RmsNorm, RmsNormFp32, SimpleNorm)
NORMS_OF_MAPS = (LayerNorm2d, LayerNorm2dFp32, LayerNormExp2d)  # which are LayerNorms too


class MaskedStem(nn.Module):
    """A stem that takes the mask as one more image channel: passed along as data, it needs no state between calls.

    Args:
        stem: the backbone's own; attributes that this module lacks are read from it.
        image_channels: without the mask.
        dim: width of its output.
        cell: side in pixels of the cells of its output.
        layout: of its output: NCHW, NHWC or NLC (raster order).
    """

    def __init__(self, stem: nn.Module, *, image_channels: int, dim: int, cell: int, layout: str) -> None:
        super().__init__()
        self.stem = stem
        self.mask_token = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.image_channels, self.cell, self.layout = image_channels, cell, layout

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("stem"), name)

    def forward(self, images: Tensor, *args: Any, **options: Any) -> Tensor:
        """The stem's output for images [B, C, H, W], or [B, C + 1, H, W] whose last channel is 1 at hidden pixels.

        Hidden pixels must be zero already; further arguments are the stem's own.
        """
        if images.shape[1] == self.image_channels:
            return self.stem(images, *args, **options)
        x = self.stem(images[:, :-1], *args, **options)
        at = images[:, -1:, :: self.cell, :: self.cell] > 0.5  # cells of a mask are multiples of the stem's
        token = self.mask_token.to(x.dtype)
        if self.layout == "NCHW":
            return torch.where(at, token[:, None, None], x)
        at = at.permute(0, 2, 3, 1)
        return torch.where(at.flatten(1, 2) if self.layout == "NLC" else at, token, x)


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
        why: reason that it is not encoded from visible tokens only, to be shown to users.

    Raises:
        ValueError: the model hands out no intermediate features, cannot take images of that size, or its stem cannot
            be found.
    """

    complete = True
    replaces = True

    def __init__(self, model: Any, *, name: str, image_size: tuple[int, int], channels: int, why: str = "") -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"{name} hands out no intermediate features, which a dense encoder needs")
        self.model, self.name, self.image_size, self.channels, self.why = model, name, image_size, channels, why

        shadow = copy.deepcopy(model).to("meta").eval()  # meta tensors have shapes, no values
        images = torch.empty(2, channels, *image_size, device="meta")
        self.stem_path, self.smallest_cell, dim, layout = find_stem(shadow, images, name)
        about = {"image_channels": channels, "dim": dim, "cell": self.smallest_cell, "layout": layout}
        wrap_stem(model, self.stem_path, **about)
        with images.device:  # so that no second mask token is drawn
            wrap_stem(shadow, self.stem_path, **about)

        used = [path for path, parameter in shadow.named_parameters() if parameter.requires_grad]
        with torch.enable_grad():
            try:
                outputs = intermediates(shadow, torch.cat([images, images[:, :1]], dim=1), None, name)
            except (RuntimeError, TypeError) as error:
                said = " ".join(str(error).split())
                raise ValueError(f"{name} does not read its pixels through {self.stem_path} alone: {said}") from error
            parameters = [shadow.get_parameter(path) for path in used]
            gradients = torch.autograd.grad(outputs[-1].sum(), parameters, allow_unused=True)
        for path, gradient in zip(used, gradients, strict=True):
            model.get_parameter(path).requires_grad_(gradient is not None)
        self.levels = tuple(Level(x.shape[1], cell_of((x.shape[2], x.shape[3]), image_size, name)) for x in outputs)
        self.norm_path = find_norm(model, self.dim)
        self.norm.requires_grad_(True)

    @property
    def norm(self) -> nn.Module:
        if self.norm_path is None:
            return nn.Identity()
        norm = self.model.get_submodule(self.norm_path)
        of_tokens = isinstance(norm, NORMS_OF_TOKENS) and not isinstance(norm, NORMS_OF_MAPS)
        return norm if of_tokens else ChannelsFirst(norm)

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


def find_norm(model: nn.Module, dim: int) -> str | None:
    """The path of the final norm of a model without head, if it has one of that width."""
    modules = dict(model.named_modules())
    for path in ("norm", "fc_norm", "head.norm"):
        norm = modules.get(path, nn.Identity())
        if not isinstance(norm, nn.Identity | nn.ModuleList) and all(p.shape == (dim,) for p in norm.parameters()):
            return path
    return None


def cell_of(grid: Grid, image_size: tuple[int, int], name: str) -> int:
    """Side in pixels of the cells of a grid.

    Raises:
        ValueError: squares of no size make up the image.
    """
    cell = image_size[0] // grid[0]
    if (grid[0] * cell, grid[1] * cell) != image_size:
        raise ValueError(
            f"{name} turns {image_size[0]} x {image_size[1]} pixels into {grid[0]} x {grid[1]} cells, which are not "
            "squares side by side; choose another image size"
        )
    return cell


def wrap_stem(model: nn.Module, path: str, **about: Any) -> None:
    """Wrap the stem at that path in a `MaskedStem`."""
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, MaskedStem(model.get_submodule(path), **about))


def find_stem(model: nn.Module, images: Tensor, name: str) -> tuple[str, int, int, str]:
    """The path of the module in a model that reads the pixels, and cell, width and layout of its output.

    That is the largest module around the model's first convolution that makes one tensor of cells of the images. The
    layout shows when the images are widened, whatever their size; so the answer is the same for all sizes.

    Raises:
        ValueError: there is none, or the model does not take such images.
    """
    first = getattr(model, "pretrained_cfg", {}).get("first_conv")
    if not first:
        raise ValueError(f"timm does not say which convolution of {name} reads the pixels")
    steps = (first if isinstance(first, str) else first[0]).split(".")
    for path in (".".join(steps[: i + 1]) for i in range(len(steps))):
        stem = model.get_submodule(path)
        calls: list[Any] = []
        handle = stem.register_forward_hook(lambda *call, calls=calls: calls.append(call), with_kwargs=True)
        try:
            intermediates(model, images, None, name)
        except RuntimeError as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{name} cannot take {images.shape[-2]} x {images.shape[-1]} pixels: {said}") from error
        finally:
            handle.remove()
        if len(calls) != 1:
            continue
        _, (seen, *others), options, cells = calls[0]
        if not isinstance(cells, Tensor) or len(cells) != len(images) or seen.shape != images.shape:
            continue
        for part in stem.modules():
            vars(part)["strict_img_size"] = False  # what timm's patch embeddings call their check of the size
        try:
            wide = stem(torch.cat([images, images], dim=3), *others, **options)
        except (RuntimeError, AssertionError):
            continue
        grown = tuple(axis for axis, (old, new) in enumerate(zip(cells.shape, wide.shape, strict=True)) if old != new)
        layout = LAYOUTS.get((cells.ndim, grown))
        if layout is None:
            continue
        dim = cells.shape[1 if layout == "NCHW" else -1]
        size = (images.shape[2], images.shape[3])
        h = round((size[0] / size[1] * cells.shape[1]) ** 0.5) if layout == "NLC" else cells.shape[layout.index("H")]
        w = cells.shape[1] // h if layout == "NLC" else cells.shape[layout.index("W")]
        return path, cell_of((h, w), size, name), dim, layout
    raise ValueError(f"the stem of {name} cannot be found, so nothing can be hidden from it")
