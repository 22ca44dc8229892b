"""Shards of noise, and what is read of them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from helpers.samples import centred
from mimkit.data import Cache, ImageList, TrainBatches, loader


def shards(root: Path, counts: tuple[int, ...] = (3, 4, 2, 5), stem: str = "train") -> Path:
    """Shards of noise, of two classes in turn."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(stem))
    for number, count in enumerate(counts):
        with tarfile.open(root / f"{stem}-{number:03d}.tar", "w") as archive:
            for i in range(count):
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(buffer, "PNG")
                for suffix, data in (("png", buffer.getvalue()), ("cls", b"%d" % (i % 2))):
                    member = tarfile.TarInfo(f"{number}-{i}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return root


def batches(images: ImageList, **options) -> TrainBatches:
    return TrainBatches(centred(images, (8, 8)), **({"batch_size": 4} | options))


def same(a: loader.Batch, b: loader.Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("images", "keys", "indices"))


def tars(cache: Cache) -> list[Path]:
    return sorted(cache.folder.glob("*.tar"))
