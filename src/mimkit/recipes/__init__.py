"""One function per method: its parts in one literal, its paper's values as defaults."""

from mimkit.recipes.localmim import localmim
from mimkit.recipes.mae import mae
from mimkit.recipes.mff import mff
from mimkit.recipes.pixmim import pixmim, pixmim_mff
from mimkit.recipes.recipe import Recipe, build, parts_in_words
from mimkit.recipes.small import small

__all__ = ["Recipe", "build", "localmim", "mae", "mff", "parts_in_words", "pixmim", "pixmim_mff", "small"]
