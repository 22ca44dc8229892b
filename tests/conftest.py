"""Fixtures of all tests. Plain builders stand in helpers."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.servers import ShardServer, serving


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real test data: $MIMKIT_DATA, else shared/data beside the repository. Skips where it is absent."""
    root = Path(os.environ.get("MIMKIT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no test data at {root}; set MIMKIT_DATA")
    return root


@pytest.fixture(scope="session")
def make_photos() -> Callable[..., Path]:
    """Writes a folder of small coloured pictures, in class folders where classes are asked for.

    Those at the places `broken`, in the order of their paths, are files that hold no picture.
    """

    def make(folder: Path, *, count: int, classes: int = 0, size: int = 40, broken: Iterable[int] = ()) -> Path:
        rng = np.random.default_rng(0)
        for i in range(count):
            place = folder / f"class_{i % classes}" if classes else folder
            place.mkdir(parents=True, exist_ok=True)
            tint = 128 + 60 * np.sin(np.arange(3) + (i % classes if classes else i))
            pixels = tint + rng.normal(0, 20, (size, size, 3)).cumsum(axis=1) / 4
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{i:04d}.png")
        paths = sorted(folder.rglob("*.png"))
        for index in broken:
            paths[index].write_bytes(b"no picture")
        return folder

    return make


@pytest.fixture(scope="module")
def photos(request, tmp_path_factory, make_photos) -> Path:
    """The photos of a module: 40 small ones in two classes, or those that its `PHOTOS` asks `make_photos` for."""
    wanted = getattr(request.module, "PHOTOS", {"count": 40, "classes": 2})
    return make_photos(tmp_path_factory.mktemp("data") / "photos", **wanted)


@pytest.fixture
def server(served: Path) -> Iterator[ShardServer]:
    """A web server of the folder that the fixture `served`, of whoever asks for it, gives."""
    with serving(served) as running:
        yield running
