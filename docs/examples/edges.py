"""A method: MAE that hides blocks and reconstructs where edges point."""

from dataclasses import replace

from mimkit.masks import BlockMask
from mimkit.recipes import Recipe, mae
from mimkit.targets import Hog


def edges() -> Recipe:
    """MAE with blocks of half the image hidden, and HOG to reconstruct."""
    return replace(mae(), mask=BlockMask(ratio=0.5), target=Hog(), paper="an example", published="", verified="as mae")
