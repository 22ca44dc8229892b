"""What encoders give: the tokens of a grid, with class and register tokens kept apart.

Shapes: B batch, K tokens present, P prefix tokens, D width, h w the grid the tokens lie on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

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


class Encoder(Protocol):
    """Images and a mask in, one latent per tap out. Called with `mask=None` it sees the whole image."""

    name: str  # timm's
    cell: int  # side in pixels of the area one token stands for, at the stem
    dim: int  # width of the last tap
    depth: int  # number of blocks; taps count from 0, or from the end with -1
    image_size: tuple[int, int]  # it was built for; others work where positions can be resized
    channels: int  # of the image
    norm: nn.Module  # the final norm: encoders hand it out unused, readouts apply it

    def __call__(self, images: Tensor, mask: Mask | None = None, taps: Sequence[int] = (-1,)) -> list[Latent]: ...
