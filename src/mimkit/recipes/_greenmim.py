"""GreenMIM: hierarchical transformers on visible tokens only (Huang et al., arXiv 2205.13515)."""

from dataclasses import replace
from functools import partial

from mimkit.backbones import create_encoder
from mimkit.decoders import TransformerDecoder
from mimkit.masks import RandomMask
from mimkit.recipes._mae import mae
from mimkit.recipes.recipe import Recipe
from mimkit.training.optim import Train


def greenmim() -> Recipe:
    """MAE for Swin: cells of its last grid hidden, the same ones in the whole batch, and one decoder block."""
    return replace(
        mae(),
        mask=RandomMask(ratio=0.75, shared=True),
        encoder=partial(create_encoder, name="swin_base_patch4_window7_224"),
        decoder=partial(TransformerDecoder, width=512, depth=1, heads=16),
        train=Train(epochs=800, batch_size=2048, base_lr=1.5e-4, warmup_epochs=40),
        paper="GreenMIM, arXiv 2205.13515",
        published="Swin-B 800 epochs: fine-tuned 83.8 (ImageNet-1k top-1)",
        verified="timm's Swin with nothing hidden; a loop over windows of visible tokens",
    )
