"""Speed of reading, from an image file to a training view, in one thread, beside torchvision on the same files."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from mimkit.bench.step import Clock, alternate
from mimkit.data import ImageList, Samples, find_images, write_pack
from mimkit.data.jpeg import Decoder, choose_decoder
from mimkit.errors import BadImage
from mimkit.randomness import scramble
from mimkit.views import RandomResizedCrop, Size


def bench_data(
    data: Path, *, image_size: Size, images: int, rounds: int, short_side: int = 256, clock: Clock = "wall"
) -> dict[str, Any]:
    """Decode and RandomResizedCrop images: with the fast decoder, with Pillow, from a pack, and as torchvision does.

    Args:
        data: what `find_images` takes.
        image_size: (height, width) of the views.
        images: how many are read in each round, at most, drawn at random.
        rounds: repetitions; medians are reported, also of the ratios of one round.
        short_side: of the pack.
        clock: wall, or cpu for processor time, which other work on the machine disturbs less.

    Raises:
        BadImage: a file is no readable image.
        ValueError: there are no images, or they are not files.
    """
    listed = find_images(data)
    chosen = listed.take(np.random.default_rng(0).permutation(len(listed))[:images])
    files = [chosen.content(index) for index in range(len(chosen))]
    paths = [file for file in files if isinstance(file, Path)]
    if len(paths) < len(files):
        raise ValueError(f"bench data compares decoders on image files; {data} is not a folder of files")
    with tempfile.TemporaryDirectory() as folder:
        write_pack(chosen, None, Path(folder) / "bench.pack", short_side=short_side)
        packed = find_images(Path(folder) / "bench.pack")
        works = {
            "mimkit": _reading(chosen, image_size, "auto"),
            "mimkit_pillow": _reading(chosen, image_size, "pillow"),
            "mimkit_packed": _reading(packed, image_size, "auto"),
            "torchvision": _torchvision(paths, image_size),
        }
        seconds = alternate(works, rounds, clock)
    result: dict[str, Any] = {"data": str(data), "images": len(chosen), "image_size": list(image_size)}
    result |= {"rounds": rounds, "clock": clock, "decoder": choose_decoder("auto"), "packed_short_side": short_side}
    result |= {f"{name}_images_per_second": len(chosen) / median(times) for name, times in seconds.items()}
    for name in ("mimkit", "mimkit_pillow", "mimkit_packed"):
        pairs = zip(seconds["torchvision"], seconds[name], strict=True)
        ratio = median(theirs / ours for theirs, ours in pairs)
        result[f"{name.removeprefix('mimkit').removeprefix('_')}_speed_against_torchvision".lstrip("_")] = ratio
    return result


def _reading(images: ImageList, size: Size, decode: Decoder) -> Callable[[], None]:
    """Reads each image as the loader does."""
    samples = Samples(images, view=RandomResizedCrop(), size=size, decode=decode)
    keys, pixels = scramble(torch.arange(len(images))).numpy(), samples.empty(1)

    def read() -> None:
        for index in range(len(images)):
            read = samples.read(index, keys[index : index + 1], pixels)
            if isinstance(read, BadImage):
                raise read

    return read


def _torchvision(paths: list[Path], size: Size) -> Callable[[], None]:
    """Reads each image as an ImageFolder with MAE's transforms does."""
    from torchvision import transforms
    from torchvision.datasets.folder import pil_loader

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )

    def read() -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for path in paths:
                transform(pil_loader(str(path)))

    return read
