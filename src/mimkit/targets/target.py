"""What a target is.

Shapes: B batch, C image channels, H W pixels, h w cells, V values of a cell.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from mimkit.grids import Grid


class Target(ABC):
    """Images in, values to predict out. `values` and `__call__` make a target; one that can be looked at says how."""

    @abstractmethod
    def values(self, cell: int, channels: int) -> int:
        """V, how many values one cell of `cell` x `cell` pixels has."""

    @abstractmethod
    def __call__(self, images: Tensor, grids: list[Grid]) -> list[Tensor]:
        """Normalised images float32 [B, C, H, W] to [B, h, w, V] for each grid."""

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor | None:
        """A prediction [B, h, w, V] as normalised images [B, C, H, W]; None where it has no picture.

        `images` gives what the prediction leaves out (a cell's mean and std), so a picture is not the
        prediction alone where the target is normalised.
        """
        return None

    def references(self, images: Tensor) -> list[Tensor]:
        """Images worth showing beside the original, because the values are taken from them."""
        return []

    @property
    def picture_note(self) -> str:
        """How `picture` makes its pictures, in one honest sentence."""
        return ""

    @property
    def reference_names(self) -> tuple[str, ...]:
        """Names of the images that `references` gives."""
        return ()
