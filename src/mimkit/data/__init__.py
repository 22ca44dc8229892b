"""From files to batches: find images, split them, pack them, decode them, load them in order or shuffled.

Images are files in folders, or are stored in a pack, in shards or in memory; an `ImageList` hides the difference.
`Annotated` adds what belongs to them, and `Samples` the view that is taken of all of it.
"""

from mimkit.data.annotated import Annotated, Boxes, PixelMap, PixelMapFiles, Points
from mimkit.data.decode import read_image
from mimkit.data.folder import all_with_splits, find_all, find_images, split
from mimkit.data.images import ImageList
from mimkit.data.jpeg import choose_decoder
from mimkit.data.loader import Batch, TrainBatches, load_in_order
from mimkit.data.memory import Data, in_words
from mimkit.data.pack import Pack, Packed, write_pack
from mimkit.data.samples import Annotation, Examples, Samples
from mimkit.data.shards.cache import Cache

__all__ = [
    "Annotated",
    "Annotation",
    "Batch",
    "Boxes",
    "Cache",
    "Data",
    "Examples",
    "ImageList",
    "Pack",
    "Packed",
    "PixelMap",
    "PixelMapFiles",
    "Points",
    "Samples",
    "TrainBatches",
    "all_with_splits",
    "choose_decoder",
    "find_all",
    "find_images",
    "in_words",
    "load_in_order",
    "read_image",
    "split",
    "write_pack",
]
