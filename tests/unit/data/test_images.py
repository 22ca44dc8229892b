"""A list of images: parts of it, and the fingerprint that tells it from others."""

from pathlib import Path

import numpy as np

from helpers.files import touch
from mimkit.data import ImageList, find_images


def test_take_keeps_classes_and_order() -> None:
    images = ImageList(Path("x"), ["a", "b", "c"], np.array([0, 1, 1]), ["p", "q"])
    some = images.take([2, 0])
    assert some.paths == ["c", "a"]
    assert some.labels is not None
    assert some.labels.tolist() == [1, 0]
    assert some.classes == ["p", "q"]
    nothing = images.take([])
    assert len(nothing) == 0
    assert nothing.labels is not None
    assert nothing.labels.dtype == np.int64


def test_fingerprint_changes_with_names_and_labels_not_with_the_place(tmp_path: Path) -> None:
    names = ("ant/1.png", "bee/1.png", "bee/2.png")
    images = find_images(touch(tmp_path / "here", *names))
    assert find_images(touch(tmp_path / "there", *names)).fingerprint() == images.fingerprint()
    root, paths, labels, classes = images.root, images.paths, images.labels, images.classes
    assert labels is not None
    others = [
        images.take([0, 1]),
        images.take([1, 0, 2]),
        ImageList(root, ["ant/1.png", "bee/1.png", "bee/3.png"], labels, classes),
        ImageList(root, paths, labels[::-1].copy(), classes),
        ImageList(root, paths, labels, ["ant", "wasp"]),
        ImageList(root, paths),
    ]
    assert len({other.fingerprint() for other in [images, *others]}) == len(others) + 1
