"""From files to batches: find images, split them, pack them, decode them, load them in order or shuffled.

Images are files in folders, or are stored in a pack or in shards; an `ImageList` hides the difference.
"""

from pathlib import Path
from typing import Any

from mimkit.data.decode import read_image
from mimkit.data.folder import all_with_splits, find_all, find_images, split
from mimkit.data.images import ImageList
from mimkit.data.jpeg import choose_decoder
from mimkit.data.loader import Batch, TrainBatches, load_images
from mimkit.data.pack import Pack, Packed, write_pack
from mimkit.data.shards.cache import Cache


def in_words(data: Any) -> str:
    """What data are: their path or URL, or their type and shape in memory."""
    return str(data) if isinstance(data, str | Path) else f"a {type(data).__name__} in memory"


__all__ = [
    "Batch",
    "Cache",
    "ImageList",
    "Pack",
    "Packed",
    "TrainBatches",
    "all_with_splits",
    "choose_decoder",
    "find_all",
    "find_images",
    "in_words",
    "load_images",
    "read_image",
    "split",
    "write_pack",
]
