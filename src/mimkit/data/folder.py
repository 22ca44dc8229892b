"""Find the images of folders, list files, packs and shards, and split them into training and held-out ones."""

import bisect
import functools
import hashlib
import itertools
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mimkit.data.decode import image_suffixes
from mimkit.data.images import ImageList, Store
from mimkit.data.memory import Data, ImagesInMemory, are_paths, numbered
from mimkit.data.pack import Pack, is_pack
from mimkit.data.shards.cache import Cache
from mimkit.data.shards.open_url import open_url
from mimkit.data.shards.parquet import is_parquet
from mimkit.data.shards.saved_dataset import SavedDataset, is_saved_dataset
from mimkit.data.shards.tar import find_shards
from mimkit.data.splits import HELD_OUT, HELD_OUT_NAMES, TRAIN
from mimkit.data.string_array import StringArray
from mimkit.files import Location, located

_EMPTY_HASH = hashlib.blake2b(digest_size=8)
_Parents = frozenset[tuple[int, int]]


def find_images(data: Data, cache: Cache | None = None) -> ImageList:
    """The images of a folder and its sub-folders, of a pack, of shards, or those that a list file names.

    A folder: regular files with a suffix of a format that Pillow reads; hidden files and folders are ignored, links
    followed. The first folder of an image's path is its class, if all images are in at least two such folders.

    A list file (`.txt`, UTF-8): one path a line, relative to the list file's folder or absolute, then, on every line or
    on none, a tab and the name of its class. The order is kept. Whether the files exist is not checked.

    A list of paths: its order is kept, whether they exist is not checked. Images in memory: see `Data`.

    A pack: written by `mimkit pack`. Shards: see `find_shards`, and `open_url` for those at a URL. A folder saved by
    Hugging Face's `datasets`: see `SavedDataset`.

    Args:
        data: a path, a URL, or what else `Data` allows.
        cache: for shards from URLs and rewritten parquet files; default: `Cache.at()`.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it holds no images, a folder may not be read, or a file is malformed.
    """
    if not isinstance(data, str | Path):
        return _given(data)
    data = located(data)
    store = _open_store(data, cache)
    if store is not None:
        return ImageList.of(store, np.arange(len(store.names)))
    data = Path(data)
    if not data.exists():
        raise FileNotFoundError(f"{data} does not exist")
    if data.is_file():
        return _read_list(data)
    paths = StringArray.of(_walk(data))
    if not len(paths):
        raise ValueError(
            f"no images in {data} or its sub-folders: looked for .jpg, .jpeg, .png, .webp, .tif and the like"
        )
    folders = _top_folders(paths)
    if folders is None or len(folders.numbers) < 2:
        return ImageList(data, paths)
    return _labelled(data, paths, folders, sorted(folders.numbers))


def split(data: Data, held_out: float = 0.1, cache: Cache | None = None) -> tuple[ImageList, ImageList]:
    """Images to train on, and images held out.

    A folder that has `train` and one of `val`, `valid`, `validation`, `test`, with images in both, is used as it is; so
    is a pack made of one, and shards whose names begin so.
    Otherwise a hash of its path decides whether an image is held out, so that adding images does not move others. Of
    two or more images at least one is held out. No class loses its last training image, unless all have just one.

    Args:
        data: as for `find_images`.
        held_out: share of the images to hold out, from 0 to below 1.
        cache: as for `find_images`.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: the share is out of range, or there are no images.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"the held-out share must be at least 0 and below 1, got {held_out}")
    folders = _split_folders(data)
    if folders is not None:
        return folders
    images = find_images(data, cache)
    splits = given_splits(images)
    is_held_out = _choose(images, held_out) if splits is None else splits == HELD_OUT
    return images.take(np.flatnonzero(~is_held_out)), images.take(np.flatnonzero(is_held_out))


def find_all(data: Data, cache: Cache | None = None) -> ImageList:
    """All images, labelled as by `split`: those of `train` and `val` folders are in one list.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: there are no images.
    """
    return all_with_splits(data, cache)[0]


def all_with_splits(data: Data, cache: Cache | None = None) -> tuple[ImageList, np.ndarray | None]:
    """What `find_all` finds, and TRAIN or HELD_OUT for each image, uint8 [N], or None where the data give no split.

    Raises:
        FileNotFoundError, ValueError: see `find_all`.
    """
    folders = _split_folders(data)
    if folders is None:
        images = find_images(data, cache)
        return images, given_splits(images)
    names = StringArray.of(f"{Path(folder.root).name}/{path}" for folder in folders for path in folder.paths)
    labels = [folder.labels for folder in folders if folder.labels is not None]
    images = ImageList(
        Path(folders[0].root).parent, names, np.concatenate(labels) if labels else None, folders[0].classes
    )
    return images, np.repeat(np.array([TRAIN, HELD_OUT], dtype=np.uint8), [len(folder) for folder in folders])


def given_splits(images: ImageList) -> np.ndarray | None:
    """uint8 [N], TRAIN or HELD_OUT for each image, where its store gives a split; else None."""
    if images.store is None or images.store.splits is None:
        return None
    return images.store.splits[images.positions]


def _given(data: Any) -> ImageList:
    """Images from a list of paths, or in memory; a list of images as it is."""
    if isinstance(data, ImageList):
        return data
    if isinstance(data, np.ndarray) and data.dtype.kind in "UO":
        data = data.tolist()
    if are_paths(data):
        return ImageList(Path(), StringArray.of(str(Path(path).expanduser().absolute()) for path in data))
    if isinstance(data, tuple) and len(data) == 2 and are_paths(data[0]):
        images, (labels, classes) = _given(data[0]), numbered(np.asarray(data[1]), None)
        if len(labels) != len(images):
            raise ValueError(f"{len(labels)} labels for {len(images)} paths")
        return ImageList(images.root, images.paths, labels, classes)
    store = ImagesInMemory(data)
    return ImageList.of(store, np.arange(len(store.names)))


def _open_store(data: Location, cache: Cache | None) -> Store | None:
    """The pack, shards or saved data set that a path or URL names, or None if it is none of them."""
    if isinstance(data, str):
        return open_url(data, cache or Cache.at())
    if is_pack(data):
        return Pack(data)
    if is_saved_dataset(data):
        return SavedDataset(data)

    @functools.cache
    def has_images() -> bool:
        return data.is_dir() and next(_walk(data), None) is not None

    # In order of cost: images are found at once, sub-folders are searched for tar files last.
    if not has_images() and is_parquet(data):
        return open_url(f"file://{data.absolute()}", cache or Cache.at())
    return find_shards(data, has_images)


def _split_folders(data: Data) -> tuple[ImageList, ImageList] | None:
    where = located(data) if isinstance(data, str | Path) else None
    if not isinstance(where, Path):
        return None
    folders = [where / name for name in HELD_OUT_NAMES if (where / name).is_dir()]
    train = StringArray.of(_walk(where / "train") if folders and (where / "train").is_dir() else [])
    if not len(train):
        return None
    for folder in folders:
        held_out = StringArray.of(_walk(folder))
        if not len(held_out):
            continue
        ours, theirs = _top_folders(train), _top_folders(held_out)
        if ours is None or theirs is None or len(classes := sorted({*ours.numbers, *theirs.numbers})) < 2:
            return ImageList(where / "train", train), ImageList(folder, held_out)
        return _labelled(where / "train", train, ours, classes), _labelled(folder, held_out, theirs, classes)
    return None


def _choose(images: ImageList, share: float) -> np.ndarray:
    """Which images to hold out: bool [N]."""
    hashes = np.fromiter(map(_hash, StringArray.of(images.paths).encoded()), "S8", len(images))
    ranks = hashes.view(">u8").astype(np.float64) / 2**64
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


def _hash(name: bytes) -> bytes:
    state = _EMPTY_HASH.copy()  # cheaper than a new hash
    state.update(name)
    return state.digest()


def _walk(folder: Path) -> Iterator[str]:
    """Paths of the image files below a folder, relative to it, in the order of their code points."""
    return itertools.chain.from_iterable(_walk_in_pieces(folder))  # at no cost per image


def _walk_in_pieces(folder: Path) -> Iterator[list[str]]:
    pending = [_entries(str(folder), "", frozenset())]
    while pending:
        for names, inner in pending[-1]:
            yield names
            if inner is not None:
                pending.append(_entries(*inner))
                break
        else:
            pending.pop()


def _entries(path: str, prefix: str, parents: _Parents) -> Iterator[tuple[list[str], tuple[str, str, _Parents] | None]]:
    """A folder in order: names of images, then the arguments of this function for the sub-folder after them."""
    suffixes = image_suffixes()
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino)
    if identity in parents:  # a link to a folder that contains this one
        return
    try:
        with os.scandir(path) as entries:
            images, folders = _sorted_out(entries, prefix, suffixes)
    except PermissionError as error:
        raise ValueError(f"the folder {path} cannot be read: permission denied") from error
    # Names within a folder are unique, so sorting each folder by itself sorts all paths below it.
    start = 0
    for name, inner in sorted(folders.items()):
        end = bisect.bisect(images, name)
        yield images[start:end], (inner, name, parents | {identity})
        start = end
    yield images[start:], None


def _sorted_out(
    entries: Iterable[os.DirEntry[str]], prefix: str, suffixes: frozenset[str]
) -> tuple[list[str], dict[str, str]]:
    """Names of the images, sorted, and the path of each folder by its name, which ends in /."""
    images, folders = [], {}
    for entry in entries:
        name = entry.name
        if name.startswith("."):
            continue
        try:  # a dangling or circular link, or no permission
            if name[name.rfind(".") :].lower() in suffixes and entry.is_file():
                images.append(prefix + name)
            elif entry.is_dir():
                folders[f"{prefix}{name}/"] = entry.path
        except OSError:
            continue
    images.sort()
    return images, folders


def _read_list(path: Path) -> ImageList:
    if path.suffix.lower() != ".txt":
        raise ValueError(
            f"{path} is neither a folder nor a list of images (.txt, one path a line), a pack of mimkit or a .tar file"
        )
    classes = _Classes()
    try:
        with path.open(encoding="utf-8-sig") as file:
            paths = StringArray.of(_listed(file, classes))
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
    """Classes of images, collected one by one: the number of each name, by first appearance, and of each image."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.of_images = array("q")

    def number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))


def _listed(lines: Iterable[str], classes: _Classes) -> Iterator[str]:
    """The path on each non-empty line; its class, "" where there is none, is added to `classes`."""
    for line in lines:
        if line.strip():
            path, _, name = line.rstrip("\n").partition("\t")
            classes.of_images.append(classes.number(name.strip()))
            yield path


def _top_folders(paths: StringArray) -> _Classes | None:
    """The first folder of each path, or None if an image is in no folder."""
    folders = _Classes()
    first = None
    for path in paths.encoded():
        if first is None or not path.startswith(first):  # paths of one folder are adjacent
            name, slash, _ = path.partition(b"/")
            if not slash:
                return None
            first = name + slash
            number = folders.number(name.decode("utf-8", "surrogateescape"))
        folders.of_images.append(number)
    return folders


def _labelled(root: Path, paths: StringArray, folders: _Classes, classes: list[str]) -> ImageList:
    positions = {name: i for i, name in enumerate(classes)}
    numbers = np.array([positions[name] for name in folders.numbers], dtype=np.int64)
    return ImageList(root, paths, numbers[np.array(folders.of_images, dtype=np.int64)], classes)
