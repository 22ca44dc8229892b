"""Variants of MAE with other values of its parts: longer sequences, other masks, lighter decoders."""

from dataclasses import replace
from functools import partial

from mimkit.backbones import create_encoder
from mimkit.decoders import CrossDecoder, TransformerDecoder
from mimkit.masks import RandomMask, UniformMask
from mimkit.recipes._mae import mae
from mimkit.recipes.recipe import Recipe
from mimkit.training.optim import Train


def lsmae() -> Recipe:
    """MAE on sequences four times as long, hiding cells of 2 x 2 patches (Hu et al., arXiv 2210.07224)."""
    return replace(
        mae(),
        mask=RandomMask(ratio=0.75, cell=32),
        decoder=partial(TransformerDecoder, width=384, depth=8, heads=12),
        train=Train(epochs=1600, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40),
        image_size=(448, 448),
        paper="LSMAE, arXiv 2210.07224",
        published="",
        verified="as mae; mask cells of 2 x 2 patches",
    )


def pixio() -> Recipe:
    """MAE with cells of 4 x 4 patches hidden, eight class tokens and a decoder of 32 blocks."""
    return replace(
        mae(),
        mask=RandomMask(ratio=0.75, cell=64),
        encoder=partial(create_encoder, name="vit_base_patch16_224(reg_tokens=7)"),
        decoder=partial(TransformerDecoder, width=512, depth=32, heads=16),
        image_size=(256, 256),
        paper="Pixio (CVPR 2026), its three switches on MAE",
        published="",
        verified="as mae",
    )


def crossmae() -> Recipe:
    """MAE whose mask tokens attend to visible tokens only, a third of them predicted (Fu et al., arXiv 2401.14391)."""
    return replace(
        mae(),
        mask=RandomMask(ratio=0.75, scored=1 / 3),
        decoder=partial(CrossDecoder, width=512, depth=12, heads=16),
        paper="CrossMAE, arXiv 2401.14391",
        published="",
        verified="a loop over cells, heads and tokens",
    )


def um_mae() -> Recipe:
    """One patch of every 2 x 2 encoded, a quarter of those as mask tokens (Li et al., arXiv 2205.10063)."""
    return replace(
        mae(),
        mask=UniformMask(secondary=0.25),
        encoder=partial(create_encoder, name="vit_base_patch16_224", mask_token=True),
        paper="UM-MAE, arXiv 2205.10063",
        published="",
        verified="one of every four cells; as mae",
    )
