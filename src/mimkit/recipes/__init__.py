"""One function per method: its parts in one literal, its paper's values as defaults."""

from mimkit.recipes._convmae import convmae, fast_convmae
from mimkit.recipes._greenmim import greenmim
from mimkit.recipes._localmim import localmim, localmim_large, localmim_swin, localmim_swin_large
from mimkit.recipes._mae import mae
from mimkit.recipes._maskfeat import maskfeat
from mimkit.recipes._mff import mff, mff_hierarchical
from mimkit.recipes._pixmim import pixmim, pixmim_mff
from mimkit.recipes._simmim import simmim, simmim_vit
from mimkit.recipes._small import small
from mimkit.recipes.recipe import PARTS, DecoderMaker, Recipe, build, parts_in_words, record_of_parts
from mimkit.recipes.variants import crossmae, lsmae, pixio, um_mae

__all__ = [
    "PARTS",
    "DecoderMaker",
    "Recipe",
    "build",
    "convmae",
    "crossmae",
    "fast_convmae",
    "greenmim",
    "localmim",
    "localmim_large",
    "localmim_swin",
    "localmim_swin_large",
    "lsmae",
    "mae",
    "maskfeat",
    "mff",
    "mff_hierarchical",
    "parts_in_words",
    "pixio",
    "pixmim",
    "pixmim_mff",
    "record_of_parts",
    "simmim",
    "simmim_vit",
    "small",
    "um_mae",
]
