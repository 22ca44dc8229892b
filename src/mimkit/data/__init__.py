"""From files to batches: finding images, splitting them, reading them, loading them in order or shuffled."""

from mimkit.data.decode import BadImage, read_image
from mimkit.data.folder import ImageList, find_all, find_images, split
from mimkit.data.loader import Batch, TooManyBadImages, TrainBatches, load_images

__all__ = [
    "BadImage",
    "Batch",
    "ImageList",
    "TooManyBadImages",
    "TrainBatches",
    "find_all",
    "find_images",
    "load_images",
    "read_image",
    "split",
]
