"""Samples with nothing random."""

from mimkit.data import Examples, Samples
from mimkit.views import CenterCrop, Size


def centred(examples: Examples, size: Size, channels: int = 3) -> Samples:
    """The middle of each image."""
    return Samples(examples, view=CenterCrop(), size=size, channels=channels)
