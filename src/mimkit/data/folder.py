"""Which images there are: folders walked, list files read, packs and shards opened, a share held out."""

import contextlib
import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mimkit.data.decode import image_suffixes
from mimkit.data.images import HELD_OUT, TRAIN, ImageList, Store
from mimkit.data.names import Names
from mimkit.data.pack import Pack, is_pack
from mimkit.data.shards import find_shards

HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")

_Parents = frozenset[tuple[int, int]]


def find_images(data: Path) -> ImageList:
    """The images of a folder and its sub-folders, of a pack, of shards, or those that a list file names.

    A folder: regular files with a suffix of a format that Pillow reads; hidden files and folders are passed over, links
    followed. The first folder of an image's path is its class, if all images lie in at least two such folders.

    A list file (`.txt`, UTF-8): one path a line, relative to the list file's folder or absolute, then, on every line or
    on none, a tab and the name of its class. Its order is kept. Nobody looks whether the files exist.

    A pack: what `mimkit pack` has written. Shards: see `find_shards`.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it holds no images, a folder may not be read, or a file cannot be understood.
    """
    data = Path(data)
    store = _open_store(data)
    if store is not None:
        return ImageList.of(store, np.arange(len(store.names)))
    if not data.exists():
        raise FileNotFoundError(f"{data} does not exist")
    if data.is_file():
        return _read_list(data)
    paths = Names.of(_walk(data))
    if not len(paths):
        raise ValueError(
            f"no images in {data} or its sub-folders: looked for .jpg, .jpeg, .png, .webp, .tif and the like"
        )
    folders = _top_folders(paths)
    if folders is None or len(folders.numbers) < 2:
        return ImageList(data, paths)
    return _labelled(data, paths, folders, sorted(folders.numbers))


def split(data: Path, held_out: float = 0.1) -> tuple[ImageList, ImageList]:
    """Images to train on, and images held out.

    A folder that has `train` and one of `val`, `valid`, `validation`, `test`, with images in both, is used as it is; so
    is a pack made of one, and shards whose names begin so.
    Otherwise each image is held out or not by a hash of its path, so that adding images moves no other one. At least
    one image is held out where there are two; no class loses its last training image, unless all have just one.

    Args:
        data: as for `find_images`.
        held_out: share of the images to hold out, from 0 to below 1.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: the share is out of range, or there are no images.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"the held-out share must be at least 0 and below 1, got {held_out}")
    data = Path(data)
    folders = _split_folders(data)
    if folders is not None:
        return folders
    images = find_images(data)
    parts = given_parts(images)
    is_held_out = _choose(images, held_out) if parts is None else parts == HELD_OUT
    return images.take(np.flatnonzero(~is_held_out)), images.take(np.flatnonzero(is_held_out))


def find_all(data: Path) -> ImageList:
    """All images there are, with the labels that `split` gives them: those of `train` and `val` folders in one list.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: there are no images.
    """
    return all_with_parts(data)[0]


def all_with_parts(data: Path) -> tuple[ImageList, np.ndarray | None]:
    """What `find_all` finds, and TRAIN or HELD_OUT for each image, uint8 [N], where the data say how they are split.

    Raises:
        FileNotFoundError, ValueError: see `find_all`.
    """
    data = Path(data)
    folders = _split_folders(data)
    if folders is None:
        images = find_images(data)
        return images, given_parts(images)
    names = Names.of(f"{part.root.name}/{path}" for part in folders for path in part.paths)
    labels = [part.labels for part in folders if part.labels is not None]
    images = ImageList(data, names, np.concatenate(labels) if labels else None, folders[0].classes)
    return images, np.repeat(np.array([TRAIN, HELD_OUT], dtype=np.uint8), [len(part) for part in folders])


def given_parts(images: ImageList) -> np.ndarray | None:
    """uint8 [N], TRAIN or HELD_OUT, where a store says which images are held out; else None."""
    if images.store is None or images.store.parts is None:
        return None
    return images.store.parts[images.positions]


def _open_store(data: Path) -> Store | None:
    """The pack or the shards that a path names, or None if it is neither."""
    return Pack(data) if is_pack(data) else find_shards(data, lambda: next(_walk(data), None) is not None)


def _split_folders(data: Path) -> tuple[ImageList, ImageList] | None:
    train = Names.of(_walk(data / "train") if (data / "train").is_dir() else [])
    if not len(train):
        return None
    for folder in (data / name for name in HELD_OUT_FOLDERS if (data / name).is_dir()):
        held_out = Names.of(_walk(folder))
        if not len(held_out):
            continue
        ours, theirs = _top_folders(train), _top_folders(held_out)
        if ours is None or theirs is None or len(classes := sorted({*ours.numbers, *theirs.numbers})) < 2:
            return ImageList(data / "train", train), ImageList(folder, held_out)
        return _labelled(data / "train", train, ours, classes), _labelled(folder, held_out, theirs, classes)
    return None


def _choose(images: ImageList, share: float) -> np.ndarray:
    """Which images to hold out: bool [N]."""
    names = Names.of(images.paths).encoded()
    hashes = (int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) for name in names)
    ranks = np.fromiter(hashes, np.uint64, len(images)).astype(np.float64) / 2**64
    chosen = ranks < share
    labels = np.zeros(len(images), dtype=np.int64) if images.labels is None else images.labels
    counts = np.bincount(labels)
    for label in np.flatnonzero((counts > 0) & (counts == np.bincount(labels, weights=chosen))):
        members = np.flatnonzero(labels == label)
        chosen[members[ranks[members].argmax()]] = False
    if share > 0 and len(images) > 1 and not chosen.any():
        candidates = np.flatnonzero(counts[labels] > 1) if counts.max() > 1 else np.arange(len(images))
        chosen[candidates[ranks[candidates].argmin()]] = True
    return chosen


def _walk(folder: Path) -> Iterator[str]:
    """Paths of the image files below a folder, relative to it, in the order of their code points."""
    pending = [_entries(str(folder), "", frozenset())]
    while pending:
        for name, path, parents in pending[-1]:
            if path is None:
                yield name
            else:
                pending.append(_entries(path, name, parents))
                break
        else:
            pending.pop()


def _entries(path: str, prefix: str, parents: _Parents) -> Iterator[tuple[str, str | None, _Parents]]:
    """What a folder holds, in order: names of images with None, names of folders, which end in /, with their path."""
    suffixes = image_suffixes()
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino)
    if identity in parents:  # a link back to a folder that this one lies in
        return
    try:
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError as error:
        raise ValueError(f"the folder {path} cannot be read: permission denied") from error
    found: list[tuple[str, str | None]] = []
    for entry in visible:
        with contextlib.suppress(OSError):  # a link to nowhere, to itself, or to where we may not look
            if entry.is_dir():
                found.append((f"{prefix}{entry.name}/", entry.path))
            elif os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file():
                found.append((prefix + entry.name, None))
    # No two names are alike, so that sorting each folder by itself sorts all paths below it.
    for name, place in sorted(found):
        yield name, place, parents | {identity}


def _read_list(path: Path) -> ImageList:
    if path.suffix.lower() != ".txt":
        raise ValueError(
            f"{path} is neither a folder nor a list of images (.txt, one path a line), a pack of mimkit or a .tar file"
        )
    classes = _Classes()
    try:
        with path.open(encoding="utf-8-sig") as file:
            paths = Names.of(_listed(file, classes))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a list of images: no UTF-8 text") from error
    if not len(paths):
        raise ValueError(f"{path} lists no images: expected one path a line")
    if classes.numbers.keys() == {""}:
        return ImageList(path.parent, paths)
    if "" in classes.numbers:
        first = paths[classes.of_images.index(classes.numbers[""])]
        raise ValueError(f"{path} gives a class to some images, but none to {first}")
    return _labelled(path.parent, paths, classes, sorted(classes.numbers))


class _Classes:
    """Classes of images, gathered one by one: the number of each name, in the order met, and of each image."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.of_images = array("q")

    def add(self, name: str) -> None:
        self.of_images.append(self.numbers.setdefault(name, len(self.numbers)))


def _listed(lines: Iterable[str], classes: _Classes) -> Iterator[str]:
    """The path on each line that is not empty; its class goes to the classes, "" where there is none."""
    for line in lines:
        if line.strip():
            path, _, name = line.rstrip("\n").partition("\t")
            classes.add(name.strip())
            yield path


def _top_folders(paths: Names) -> _Classes | None:
    """The first folder of each path, or None if an image lies in none."""
    folders = _Classes()
    for path in paths:
        first, slash, _ = path.partition("/")
        if not slash:
            return None
        folders.add(first)
    return folders


def _labelled(root: Path, paths: Names, folders: _Classes, classes: list[str]) -> ImageList:
    positions = {name: i for i, name in enumerate(classes)}
    numbers = np.array([positions[name] for name in folders.numbers], dtype=np.int64)
    return ImageList(root, paths, numbers[np.array(folders.of_images, dtype=np.int64)], classes)
