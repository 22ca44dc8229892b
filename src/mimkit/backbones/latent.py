"""What encoders are and give: the tokens of a grid, with class and register tokens kept apart.

Shapes: B batch, K tokens present, P prefix tokens, D width, h w the grid the tokens lie on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from mimkit.grids import Grid
from mimkit.masks import Mask


@dataclass(frozen=True, eq=False)
class Latent:
    """Tokens of one depth of an encoder.

    Args:
        tokens: [B, K, D], the tokens of grid cells only.
        grid: (h, w) of the whole grid.
        ids: int64 [B, K], where each token lies in raster order; None when all h·w tokens are there, in that order.
        prefix: [B, P, D], class and register tokens; P may be 0.
    """

    tokens: Tensor
    grid: Grid
    ids: Tensor | None
    prefix: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Latent":
        """The function applied to tokens and prefix alike."""
        return replace(self, tokens=function(self.tokens), prefix=function(self.prefix))


@dataclass(frozen=True)
class Level:
    """The shape of one latent: its width, and the side in pixels of the cells it is about."""

    dim: int
    cell: int


def count_parameters(module: nn.Module, *, trainable_only: bool = False) -> int:
    """How many numbers a module's parameters consist of, or those of them that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


class Encoder(nn.Module, ABC):
    """Images and a mask in, one latent per tap out. Called with `mask=None` it sees the whole image.

    Attributes:
        name: as `create_encoder` takes it.
        levels: what each tap hands out: the blocks of a plain transformer, the stages of a hierarchical backbone.
            Taps count from 0, or from the end with −1.
        image_size: (H, W) it was built for; others work where positions can be resized.
        channels: of the image.
        smallest_cell: side in pixels of the smallest cell that it can hide; a mask's cells are multiples of it.
        replaces: whether it has a mask token, for masks that replace tokens.
        complete: whether masked latents have all tokens, mask tokens among them, or the visible ones only.
    """

    name: str
    levels: tuple[Level, ...]
    image_size: tuple[int, int]
    channels: int
    smallest_cell: int
    replaces: bool = False
    complete: bool

    @property
    def depth(self) -> int:
        """How many taps there are."""
        return len(self.levels)

    @property
    def dim(self) -> int:
        """Width of the last tap."""
        return self.levels[-1].dim

    @property
    def cell(self) -> int:
        """Side in pixels of the last tap's cells: what masks hide and decoders predict unless told otherwise."""
        return self.levels[-1].cell

    @property
    @abstractmethod
    def norm(self) -> nn.Module:
        """The final norm, for tokens [B, K, D]. Encoders hand out un-normed latents; readouts apply it."""

    @abstractmethod
    def forward(self, images: Tensor, mask: Mask | None = None, taps: Sequence[int] = (-1,)) -> list[Latent]:
        """Normalised images [B, C, H, W] to one un-normed latent per tap, in the order of the taps.

        Raises:
            ValueError: cells do not divide the image, a mask does not fit, or a tap lies beyond the last one.
        """

    @abstractmethod
    def timm_weights(self) -> dict[str, Tensor]:
        """The backbone's weights under the names that timm's model of this name has for them.

        Raises:
            ValueError: timm has no such model.
        """

    def resolve(self, taps: Sequence[int]) -> list[int]:
        """Taps counted from 0.

        Raises:
            ValueError: a tap lies beyond the last one.
        """
        for tap in taps:
            if not -self.depth <= tap < self.depth:
                raise ValueError(f"tap {tap} lies outside the {self.depth} of {self.name}")
        return [tap % self.depth for tap in taps]
