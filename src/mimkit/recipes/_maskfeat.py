"""MaskFeat: masked feature prediction (Wei et al., arXiv 2112.09133)."""

from functools import partial

from mimkit.backbones import create_encoder
from mimkit.decoders import LinearDecoder
from mimkit.losses import squared
from mimkit.masks import BlockMask
from mimkit.readouts import Last
from mimkit.recipes.recipe import Recipe
from mimkit.targets import Hog
from mimkit.training.optim import Train
from mimkit.views import RandomResizedCrop


def maskfeat() -> Recipe:
    """Mask tokens in place of hidden blocks, and gradient histograms of 2 x 2 cells in each patch from one layer."""
    return Recipe(
        view=RandomResizedCrop(scale=(0.5, 1.0)),
        mask=BlockMask(ratio=0.4),
        encoder=partial(create_encoder, name="vit_base_patch16_224", kind="dense"),
        readout=partial(Last, scale=0.5),
        decoder=LinearDecoder,
        target=Hog(bins=9),
        distance=squared,
        train=Train(
            epochs=300,
            batch_size=2048,
            base_lr=2e-4,
            warmup_epochs=30,
            min_lr=1e-6 * 256 / 2048,
            betas=(0.9, 0.999),
            decay_tokens=False,
            clip_grad=0.02,
        ),
        paper="MaskFeat, arXiv 2112.09133",
        published="ViT-B 1600 epochs: fine-tuned 84.0 (ImageNet-1k top-1)",
        verified="histograms and loss written out",
    )
