"""ConvMAE: masked convolution meets masked autoencoders (Gao et al., arXiv 2205.03892)."""

from dataclasses import replace
from functools import partial

from mimkit.backbones import create_encoder
from mimkit.masks import ComplementaryMasks
from mimkit.recipes._mae import mae
from mimkit.recipes.recipe import Recipe
from mimkit.training.optim import Train


def convmae() -> Recipe:
    """MAE on an encoder that starts with two masked convolution stages, whose outputs the decoder sees as well."""
    return replace(
        mae(),
        encoder=partial(create_encoder, name="convmae_base"),
        train=Train(epochs=1600, batch_size=3072, base_lr=1.5e-4, warmup_epochs=40),
        paper="ConvMAE, arXiv 2205.03892",
        published="ConvMAE-B 1600 epochs: fine-tuned 85.0, linear 70.9 (ImageNet-1k top-1)",
        verified="dense convolutions with explicit masks, sample by sample",
    )


def fast_convmae() -> Recipe:
    """The same with four masks for each image that together show all of it, so that fewer images are read."""
    return replace(
        convmae(),
        mask=ComplementaryMasks(copies=4),
        train=Train(epochs=50, batch_size=1024, base_lr=1.5e-4, warmup_epochs=10),
        published="FastConvMAE-B 50 epochs: fine-tuned 84.4 (ImageNet-1k top-1)",
    )
