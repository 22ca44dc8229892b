"""LocalMIM: reconstruction at several depths (Wang et al., arXiv 2303.05251)."""

from dataclasses import replace
from functools import partial

from mimkit.decoders import TransformerDecoder
from mimkit.readouts import Levels
from mimkit.recipes.mae import mae
from mimkit.recipes.recipe import Recipe
from mimkit.targets import Hog
from mimkit.train import Train


def localmim() -> Recipe:
    """MAE's encoder, with gradient histograms decoded at four depths by one small block each, early ones finer."""
    return replace(
        mae(),
        readout=Levels,
        decoder=partial(TransformerDecoder, width=256, depth=1, heads=8),
        target=Hog(bins=9),
        train=Train(epochs=1600, batch_size=2048, base_lr=2e-4, warmup_epochs=40, min_lr=1e-6),
        paper="LocalMIM, arXiv 2303.05251",
        published="ViT-B 1600 epochs: fine-tuned 84.0 (ImageNet-1k top-1)",
    )
