"""One function per method: its parts in one literal, its paper's values as defaults."""

from mimkit.recipes.localmim import localmim
from mimkit.recipes.mae import mae
from mimkit.recipes.mff import mff
from mimkit.recipes.pixmim import pixmim
from mimkit.recipes.recipe import Recipe, build
from mimkit.recipes.small import small

__all__ = ["Recipe", "build", "localmim", "mae", "mff", "pixmim", "small"]
