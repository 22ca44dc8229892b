"""For few images and a short budget: PixMIM with MFF, at settings found by search (see LOG.md)."""

from dataclasses import replace
from functools import partial

from mimkit.backbones import create_encoder
from mimkit.decoders import TransformerDecoder
from mimkit.masks import RandomMask
from mimkit.recipes._mae import mae
from mimkit.recipes._mff import mff
from mimkit.recipes._pixmim import pixmim
from mimkit.recipes.recipe import Recipe
from mimkit.training.optim import Train


def small() -> Recipe:
    """PixMIM + MFF on a tiny ViT at 128 pixels with a shallow decoder, for thousands of images on a CPU."""
    return replace(
        pixmim(mff(mae())),
        encoder=partial(create_encoder, name="vit_tiny_patch16_224"),
        mask=RandomMask(ratio=0.8),
        decoder=partial(TransformerDecoder, width=64, depth=1, heads=2, head_scale=0.1),
        image_size=(128, 128),
        train=Train(epochs=15, batch_size=64, base_lr=2e-3, warmup_epochs=1.5, decay_tokens=False),
        paper="PixMIM + MFF, settings of our own",
        published="",
        verified="its parts",
    )
