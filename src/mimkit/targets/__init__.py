"""What is reconstructed. A target is a frozen description that turns images into values for the cells of a grid."""

from mimkit.targets.features import Features
from mimkit.targets.hog import Hog
from mimkit.targets.lowfreq import LowFreqPixels
from mimkit.targets.pixels import Pixels
from mimkit.targets.target import Target

__all__ = ["Features", "Hog", "LowFreqPixels", "Pixels", "Target"]
