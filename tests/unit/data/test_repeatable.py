"""Views and data that draw from elsewhere than their key are noticed."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.data import Annotated, Boxes, Examples, Samples, TrainBatches, find_images
from mimkit.data.repeatable import require_repeatable
from mimkit.randomness import seeded
from mimkit.views import CenterCrop, Picture, RandomResizedCrop, Size

PHOTOS = {"count": 4, "size": 40}


def torchs(image: Picture, size: Size, rng: np.random.Generator) -> np.ndarray:
    torch.rand(1)
    return CenterCrop()(image, size)


def numpys(image: Picture, size: Size, rng: np.random.Generator) -> np.ndarray:
    np.random.rand()
    return CenterCrop()(image, size)


def pythons(image: Picture, size: Size, rng: np.random.Generator) -> np.ndarray:
    random.random()
    return CenterCrop()(image, size)


class Keeping:
    """A generator of its own."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __call__(self, image: Picture, size: Size, rng: np.random.Generator) -> np.ndarray:
        return RandomResizedCrop()(image, size, self.rng)


def sometimes(image: Picture, size: Size, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.5:
        torch.rand(1)
    return CenterCrop()(image, size)


@pytest.mark.parametrize(
    ("view", "whose"), [(torchs, "torch"), (sometimes, "torch"), (numpys, "NumPy"), (pythons, "Python")]
)
def test_global_generators_are_noticed(photos: Path, view, whose: str) -> None:
    samples = Samples(find_images(photos), view=view, size=(8, 8))
    expected = f"{view.__name__}.* draws from the global generator of {whose}"
    with torch.random.fork_rng(devices=[]), pytest.raises(ValueError, match=expected):
        require_repeatable(samples)


def test_training_batches_look_first(tmp_path: Path) -> None:
    """And past files that cannot be read."""
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"unreadable")
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    batches = TrainBatches(Samples(find_images(tmp_path), view=torchs, size=(8, 8)), batch_size=2)
    with torch.random.fork_rng(devices=[]), pytest.raises(ValueError, match=r"torchs.* draws from the global"):
        batches.from_step(0)


def test_what_draws_from_the_key_alone(photos: Path) -> None:
    def jittered(image: Picture, size: Size, rng: np.random.Generator) -> np.ndarray:
        with seeded(rng):
            return CenterCrop()(image, size) // (1 + int(torch.randint(3, ()))) + np.uint8(random.random() < 0.5)

    require_repeatable(Samples(find_images(photos), view=jittered, size=(8, 8)))


def test_generators_that_a_view_keeps_are_noticed(photos: Path) -> None:
    with pytest.raises(ValueError, match=r"Keeping.* makes something else of .* with the same key"):
        require_repeatable(Samples(find_images(photos), view=Keeping(), size=(8, 8)))


def test_views_that_draw_from_their_key_pass(photos: Path) -> None:
    require_repeatable(Samples(find_images(photos), view=RandomResizedCrop(), size=(8, 8)))
    boxes = Annotated(find_images(photos), boxes=[Boxes(np.ones((3, 4)))] * 4)
    require_repeatable(Samples(boxes, view=RandomResizedCrop(), size=(8, 8)))


class Drawing(Examples):
    """Examples whose labels are drawn anew."""

    def __len__(self) -> int:
        return 4

    def path(self, index: int) -> str:
        return f"drawn {index}"

    def example(self, index: int) -> dict:
        return {"images": Image.new("RGB", (9, 9)), "labels": DRAWN.integers(2**60)}


DRAWN = np.random.default_rng(0)


def test_annotations_that_differ_are_noticed() -> None:
    with pytest.raises(ValueError, match="or the data set, makes something else of drawn 0"):
        require_repeatable(Samples(Drawing(), view=CenterCrop(), size=(8, 8)))
