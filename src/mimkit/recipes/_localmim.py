"""LocalMIM: reconstruction at several depths (Wang et al., arXiv 2303.05251)."""

from dataclasses import replace
from functools import partial

from mimkit.backbones import create_encoder
from mimkit.decoders import TransformerDecoder
from mimkit.readouts import Levels
from mimkit.recipes._greenmim import greenmim
from mimkit.recipes._mae import mae
from mimkit.recipes.recipe import Recipe
from mimkit.targets import Hog, Pixels
from mimkit.training.optim import Train

PAPER = "LocalMIM, arXiv 2303.05251"


def localmim(isolated: bool = False) -> Recipe:
    """MAE's encoder, with gradient histograms decoded at four depths by one small block each, early ones finer.

    Args:
        isolated: no gradient passes from one tap's blocks to those before it.
    """
    base = mae()
    return replace(
        base,
        encoder=partial(base.encoder, isolated=True) if isolated else base.encoder,
        readout=Levels,
        decoder=partial(TransformerDecoder, width=256, depth=1, heads=8),
        target=Hog(bins=9),
        train=Train(epochs=1600, batch_size=2048, base_lr=2e-4, warmup_epochs=40, min_lr=1e-6 * 256 / 2048),
        paper=PAPER,
        published="" if isolated else "ViT-B 1600 epochs: fine-tuned 84.0 (ImageNet-1k top-1)",
        verified="HOG pixel by pixel, and of scikit-image where they meet; four explicit losses",
    )


def localmim_large() -> Recipe:
    """The same for ViT-L, with finer histograms."""
    return replace(
        localmim(),
        encoder=partial(create_encoder, name="vit_large_patch16_224"),
        target=Hog(bins=18),
        train=Train(epochs=800, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, min_lr=1e-6 * 256 / 4096),
        published="ViT-L 800 epochs: fine-tuned 85.8 (ImageNet-1k top-1)",
    )


def localmim_swin(target: Hog | Pixels = Hog(bins=18)) -> Recipe:  # noqa: B008 - frozen
    """GreenMIM's visible-only Swin, decoded after each stage by one small block, the finest one narrower.

    Args:
        target: gradient histograms, or the pixels of each level's cells.
    """
    narrow, wide = (partial(TransformerDecoder, width=width, depth=1, heads=4) for width in (64, 128))
    result = "84.1" if isinstance(target, Hog) else "84.0"
    return replace(
        greenmim(),
        readout=Levels,
        decoder=(narrow, wide, wide, wide),
        target=target,
        train=Train(epochs=400, batch_size=2048, base_lr=1e-4, warmup_epochs=40, decay_tokens=False),
        paper=PAPER,
        published=f"Swin-B 400 epochs: fine-tuned {result} (ImageNet-1k top-1)",
        verified="as greenmim, and the explicit losses of localmim",
    )


def localmim_swin_large() -> Recipe:
    """The same for Swin-L with windows of 14 x 14."""
    return replace(
        localmim_swin(),
        encoder=partial(create_encoder, name="swin_large_patch4_window7_224(window_size=14)"),
        train=Train(epochs=800, batch_size=4096, base_lr=1e-4, warmup_epochs=40, decay_tokens=False),
        published="Swin-L 800 epochs: fine-tuned 85.6 (ImageNet-1k top-1)",
    )
