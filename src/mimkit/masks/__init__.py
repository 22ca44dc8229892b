"""What is hidden, and how it is drawn."""

from mimkit.masks.block import BlockMask
from mimkit.masks.mask import Mask
from mimkit.masks.sampler import MaskSampler
from mimkit.masks.scattered import ComplementaryMasks, RandomMask
from mimkit.masks.uniform import UniformMask

__all__ = ["BlockMask", "ComplementaryMasks", "Mask", "MaskSampler", "RandomMask", "UniformMask"]
