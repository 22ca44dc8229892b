"""What encoders give: the tokens of a grid, with class and register tokens kept apart.

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


class Encoder(nn.Module, ABC):
    """Images and a mask in, one latent per tap out. Called with `mask=None` it sees the whole image.

    Attributes:
        name: timm's.
        cell: side in pixels of the area that one token of the stem stands for.
        dim: width of the last tap.
        depth: number of blocks; taps count from 0, or from the end with −1.
        image_size: (H, W) it was built for; others work where positions can be resized.
        channels: of the image.
    """

    name: str
    cell: int
    dim: int
    depth: int
    image_size: tuple[int, int]
    channels: int

    @property
    @abstractmethod
    def norm(self) -> nn.Module:
        """The final norm. Encoders hand out un-normed latents; readouts apply it."""

    @abstractmethod
    def forward(self, images: Tensor, mask: Mask | None = None, taps: Sequence[int] = (-1,)) -> list[Latent]:
        """Normalised images [B, C, H, W] to one latent per tap, in the order of the taps."""
