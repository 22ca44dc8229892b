"""MFF: multi-level feature fusion (Liu et al., arXiv 2308.00261)."""

from dataclasses import replace

from mimkit.readouts import Fused, FusedHierarchical
from mimkit.recipes._mae import mae
from mimkit.recipes.recipe import Recipe
from mimkit.views import SimpleResizedCrop

PUBLISHED = "ViT-B on MAE, 800 epochs: fine-tuned 83.7, linear 68.3 (ImageNet-1k top-1)"


def mff(base: Recipe) -> Recipe:
    """The base, decoding shallow and deep features fused. The published runs also use PixMIM's crop."""
    return replace(
        base,
        view=SimpleResizedCrop(),
        readout=Fused,
        train=replace(base.train, decay_tokens=False),
        paper="MFF, arXiv 2308.00261",
        published=PUBLISHED if base.paper == mae().paper else "",
        verified="an explicit loop over taps",
    )


def mff_hierarchical(base: Recipe) -> Recipe:
    """The same for backbones with stages, which are projected to the last one's grid before they are averaged."""
    return replace(
        mff(base),
        readout=FusedHierarchical,
        published="",
        verified="strided convolutions over dense maps",
    )
