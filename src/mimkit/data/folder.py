"""Which images there are: folders walked, list files read, a share held out."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimkit.data.decode import image_suffixes

HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")


@dataclass(frozen=True, eq=False)
class ImageList:
    """Image files, with their class where they have one. Made without looking into any file.

    Args:
        root: the folder that paths are relative to.
        paths: with `/` between folders; sorted, or in the order of their list file, where they may be absolute.
        labels: int64 [N], positions in `classes`, or None.
        classes: names, sorted, or None.
    """

    root: Path
    paths: list[str]
    labels: np.ndarray | None = None
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        return self.root / self.paths[index]

    def take(self, indices: Sequence[int] | np.ndarray) -> "ImageList":
        """Some of the images, in the order given; the classes stay."""
        labels = None if self.labels is None else self.labels[np.asarray(indices, dtype=np.int64)]
        return ImageList(self.root, [self.paths[i] for i in indices], labels, self.classes)

    def fingerprint(self) -> str:
        """SHA-256 over relative paths, labels and class names, in hexadecimal.

        It neither reads the files nor asks for their sizes, so that a million images on a network disk take a second:
        a file whose content changed under the same name goes unnoticed. The root takes no part: a moved folder keeps
        its fingerprint.
        """
        labels = b"" if self.labels is None else self.labels.astype("<i8").tobytes()
        sections = [_bytes("\0".join(self.paths)), labels, _bytes("\0".join(self.classes or []))]
        return hashlib.sha256(b"".join(hashlib.sha256(section).digest() for section in sections)).hexdigest()


def find_images(data: Path) -> ImageList:
    """The images of a folder and its sub-folders, or those that a list file names.

    A folder: regular files with a suffix of a format that Pillow reads; hidden files and folders are passed over, links
    followed. The first folder of an image's path is its class, if all images lie in at least two such folders.

    A list file (`.txt`, UTF-8): one path a line, relative to the list file's folder or absolute, then, on every line or
    on none, a tab and the name of its class. Its order is kept. Nobody looks whether the files exist.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it holds no images, a folder may not be read, or the list file cannot be understood.
    """
    data = Path(data)
    if not data.exists():
        raise FileNotFoundError(f"{data} does not exist")
    if data.is_file():
        return _read_list(data)
    paths = _walk(data)
    if not paths:
        raise ValueError(
            f"no images in {data} or its sub-folders: looked for .jpg, .jpeg, .png, .webp, .tif and the like"
        )
    names = _top_folders(paths)
    if names is None or len(set(names)) < 2:
        return ImageList(data, paths)
    return _labelled(data, paths, names, sorted(set(names)))


def split(data: Path, held_out: float = 0.1) -> tuple[ImageList, ImageList]:
    """Images to train on, and images held out.

    A folder that has `train` and one of `val`, `valid`, `validation`, `test`, with images in both, is used as it is.
    Otherwise each image is held out or not by a hash of its path, so that adding images moves no other one. At least
    one image is held out where there are two; no class loses its last training image, unless all have just one.

    Args:
        data: a folder or list file, as for `find_images`.
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
    is_held_out = _choose(images, held_out)
    return images.take(np.flatnonzero(~is_held_out)), images.take(np.flatnonzero(is_held_out))


def find_all(data: Path) -> ImageList:
    """All images there are, with the labels that `split` gives them: those of `train` and `val` folders in one list.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: there are no images.
    """
    data = Path(data)
    folders = _split_folders(data)
    if folders is None:
        return find_images(data)
    paths = [(part.root / path).relative_to(data).as_posix() for part in folders for path in part.paths]
    labels = [part.labels for part in folders if part.labels is not None]
    return ImageList(data, paths, np.concatenate(labels) if labels else None, folders[0].classes)


def _split_folders(data: Path) -> tuple[ImageList, ImageList] | None:
    train = _walk(data / "train") if (data / "train").is_dir() else []
    held_out_folders = (data / name for name in HELD_OUT_FOLDERS if (data / name).is_dir())
    folder, held_out = next(((folder, paths) for folder in held_out_folders if (paths := _walk(folder))), (data, []))
    if not train or not held_out:
        return None
    names, held_out_names = _top_folders(train), _top_folders(held_out)
    if names is None or held_out_names is None or len(classes := sorted({*names, *held_out_names})) < 2:
        return ImageList(data / "train", train), ImageList(folder, held_out)
    return _labelled(data / "train", train, names, classes), _labelled(folder, held_out, held_out_names, classes)


def _choose(images: ImageList, share: float) -> np.ndarray:
    """Which images to hold out: bool [N]."""
    hashes = [hashlib.blake2b(_bytes(path), digest_size=8).digest() for path in images.paths]
    ranks = np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.float64) / 2**64
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


def _walk(folder: Path) -> list[str]:
    """Sorted paths of the image files below a folder, relative to it."""
    suffixes = image_suffixes()
    found = []
    pending = [(str(folder), "", frozenset[tuple[int, int]]())]
    while pending:
        path, prefix, parents = pending.pop()
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in parents:  # a link back to a folder that this one lies in
            continue
        try:
            with os.scandir(path) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except PermissionError as error:
            raise ValueError(f"the folder {path} cannot be read: permission denied") from error
        for entry in visible:
            with contextlib.suppress(OSError):  # a link to nowhere, to itself, or to where we may not look
                if entry.is_dir():
                    pending.append((entry.path, f"{prefix}{entry.name}/", parents | {identity}))
                elif os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file():
                    found.append(prefix + entry.name)
    return sorted(found)


def _read_list(path: Path) -> ImageList:
    if path.suffix.lower() != ".txt":
        raise ValueError(f"{path} is neither a folder nor a list of images (.txt, one path a line)")
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a list of images: no UTF-8 text") from error
    if not lines:
        raise ValueError(f"{path} lists no images: expected one path a line")
    paths, tabs, names = (list(column) for column in zip(*(line.partition("\t") for line in lines), strict=True))
    if not any(tabs):
        return ImageList(path.parent, paths)
    names = [name.strip() for name in names]
    if "" in names:
        raise ValueError(f"{path} gives a class to some images, but none to {paths[names.index('')]}")
    return _labelled(path.parent, paths, names, sorted(set(names)))


def _top_folders(paths: list[str]) -> list[str] | None:
    """The first folder of each path, or None if an image lies in none."""
    parts = [path.partition("/") for path in paths]
    return [first for first, _, _ in parts] if all(slash for _, slash, _ in parts) else None


def _labelled(root: Path, paths: list[str], names: list[str], classes: list[str]) -> ImageList:
    positions = {name: i for i, name in enumerate(classes)}
    return ImageList(root, paths, np.array([positions[name] for name in names], dtype=np.int64), classes)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # file names need not be valid text
