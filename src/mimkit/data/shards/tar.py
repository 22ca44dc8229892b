"""Shards: tar files of images in WebDataset's layout, read in place and in any order, local or fetched from a URL.

An index of each shard holds the offsets of its images. It is built on first use, by reading the headers once, and kept
beside the shard as `.NAME.index.npz`, or only in memory where nothing may be written. So a batch is a function of its
number, as it is for folders: there is no stream position to save or to replay.

Nothing is unpacked: members are read in place, links and other special members are ignored, and a member's name is
never used as a path.

Shapes: N images in a shard, S shards.
"""

import contextlib
import io
import itertools
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from mimkit.data.decode import image_suffixes
from mimkit.data.splits import HELD_OUT, TRAIN, split_of
from mimkit.data.string_array import StringArray
from mimkit.errors import BadImage
from mimkit.files import Location, below, expand, write_bytes

INDEX_VERSION = 1


class Files(Protocol):
    """Some files, by number."""

    def read(self, number: int, start: int, length: int) -> bytes:
        """Some bytes of a file, fewer at its end.

        Raises:
            OSError: it cannot be read.
        """

    def prefetch(self, current: Sequence[int], upcoming: Sequence[int]) -> None:
        """Take note of the files in use and of those that come next."""


@dataclass(frozen=True)
class LocalFiles:
    """Local files: `Files`."""

    paths: list[Path]

    def read(self, number: int, start: int, length: int) -> bytes:
        with self.paths[number].open("rb") as file:
            file.seek(start)
            return file.read(length)

    def prefetch(self, current: Sequence[int], upcoming: Sequence[int]) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Shards:
    """Images in tar files: a `Store`.

    Args:
        path: what the shards' names are relative to.
        files: the shards, S of them.
        names: of all images: shard, then member.
        shards: int64, non-decreasing: the shard of each image.
        places: int64 [N, 2], offset and length of each image in its shard.
        labels: int64 [N] from the `.cls` members, if every image has one.
        classes: their sorted contents.
        splits: TRAIN or HELD_OUT for each image, where the shards' names say it.
    """

    path: Location
    files: Files
    names: StringArray
    shards: np.ndarray
    places: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None
    splits: np.ndarray | None

    @classmethod
    def of(cls, path: Location, files: Files, shards: Sequence[str], indices: Sequence["Index"]) -> "Shards":
        """The images of shards, by their names and indices.

        Raises:
            ValueError: there are none.
        """
        counts = np.array([len(index.limits) - 1 for index in indices])
        if not counts.sum():
            raise ValueError(f"no images in the {len(shards)} shards of {path}")
        names = StringArray.of(
            f"{shard}/{member}" for shard, index in zip(shards, indices, strict=True) for member in index.members()
        )
        texts = list(itertools.chain.from_iterable(index.classes for index in indices))
        labels, classes = (None, None) if "" in texts else number_classes(texts)
        numbers = np.repeat(np.arange(len(shards)), counts)
        places = np.concatenate([index.places for index in indices])
        return cls(path, files, names, numbers, places, labels, classes, _splits(shards, numbers))

    def read(self, position: int) -> bytes:
        """The bytes of one image.

        Raises:
            BadImage: the shard is gone, or shorter than when it was indexed.
        """
        start, length = self.places[position].tolist()
        try:
            data = self.files.read(int(self.shards[position]), start, length)
        except OSError as error:
            raise BadImage(below(self.path, self.names[position]), (error.strerror or str(error)).lower()) from error
        if len(data) != length:
            raise BadImage(below(self.path, self.names[position]), "its shard was cut short")
        return data

    def identity(self, positions: np.ndarray) -> bytes:
        """Lengths of the images."""
        return self.places[positions, 1].astype("<i8").tobytes()

    def prefetch(self, current: Sequence[int], upcoming: Sequence[int]) -> None:
        """Passed on to the files."""
        self.files.prefetch(current, upcoming)


def find_shards(data: Path, has_images: Callable[[], bool]) -> Shards | None:
    """The shards that a path names, or None if it names none.

    A `.tar` file; several, as in `train-{000..012}.tar`; a folder with `.tar` files in it, or in its sub-folders, and
    no image files; a list file (`.txt`) with nothing but `.tar` files in it. Images are the regular members with a
    suffix of a format that Pillow reads; the `.cls` member of the same name, if all have one, is an image's class.

    Shards or their folders that begin with `train` and with `val`, `valid`, `validation` or `test`, and no others,
    are split accordingly.

    Args:
        data: the path.
        has_images: whether there are image files in it; called only if it is a folder.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard cannot be read as tar, or there are no images in any.
    """
    if data.is_dir() and has_images():  # in most folders quicker than looking for shards in every sub-folder
        return None
    root, files = _shard_files(data)
    if not files:
        return None
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"the shard {file} does not exist")
    short = [file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name for file in files]
    return Shards.of(root, LocalFiles(files), short, [_index(file) for file in files])


def _shard_files(data: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files in order; no files if the path names no shards."""
    if data.is_dir():
        return data, sorted(path for path in [*data.glob("*.tar"), *data.glob("*/*.tar")] if path.name[0] != ".")
    if data.suffix == ".txt" and data.is_file():
        lines = data.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        tars = [line for line in lines if line.endswith(".tar")]
        return data.parent, [data.parent / line for line in tars] if len(tars) == len(lines) else []
    if data.suffix != ".tar":
        return data.parent, []
    if data.is_file():
        return data.parent, [data]
    root = next(folder for folder in data.parents if "{" not in str(folder))
    files = [Path(one) for one in expand(str(data))]
    return root, files if files != [data] else []


def number_classes(texts: list[str]) -> tuple[np.ndarray, list[str]] | tuple[None, None]:
    """The position of each text in their sorted list, numbers sorted by value; (None, None) if all are the same."""
    numeric = all(text.isdecimal() for text in texts)
    classes = sorted(set(texts), key=lambda text: (int(text) if numeric else 0, text))
    positions = {text: number for number, text in enumerate(classes)}
    return (
        (np.array([positions[text] for text in texts], dtype=np.int64), classes) if len(classes) > 1 else (None, None)
    )


def _splits(names: Sequence[str], shards: np.ndarray) -> np.ndarray | None:
    found = [split_of(name) for name in names]
    splits = np.array([0 if one is None else TRAIN if one == "train" else HELD_OUT for one in found], dtype=np.uint8)
    return splits[shards] if set(splits.tolist()) == {TRAIN, HELD_OUT} else None


@dataclass(frozen=True, eq=False)
class Index:
    """Where the images of one shard are.

    Args:
        text: uint8, the members' names.
        limits: int64 [N + 1], the offset of each name in it, and the end of the last.
        places: int64 [N, 2], offset and length of each image in the shard.
        classes: N texts, "" where there is none.
    """

    text: np.ndarray
    limits: np.ndarray
    places: np.ndarray
    classes: list[str]

    def members(self) -> StringArray:
        return StringArray(self.text, self.limits[:-1], self.limits[1:])


def _index(shard: Path) -> Index:
    """The shard's index: the file beside it, if the shard has not changed since, else built."""
    status = shard.stat()
    stamp = np.array([INDEX_VERSION, status.st_size, status.st_mtime_ns], dtype=np.int64)
    beside = shard.with_name(f".{shard.name}.index.npz")
    with contextlib.suppress(OSError):
        kept = unpack_index(beside.read_bytes())
        if kept is not None and np.array_equal(kept[0], stamp):
            return kept[1]
    index = build_index(shard, str(shard))
    with contextlib.suppress(OSError):  # on a read-only disk it is built each time
        write_bytes(beside, pack_index(index, stamp))
    return index


def pack_index(index: Index, stamp: np.ndarray) -> bytes:
    """The content of an index file; the stamp is int64 [3]: version, the shard's size and time of modification."""
    buffer = io.BytesIO()
    classes = np.array(index.classes, dtype=np.str_)
    np.savez(buffer, stamp=stamp, text=index.text, limits=index.limits, places=index.places, classes=classes)
    return buffer.getvalue()


def unpack_index(data: bytes) -> tuple[np.ndarray, Index] | None:
    """Stamp and index from the content of an index file, which is not trusted; None if it is not a valid one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > len(data):  # a valid one is not compressed
                return None
        with np.load(io.BytesIO(data), allow_pickle=False) as kept:
            stamp, text, limits, places = (kept[name] for name in ("stamp", "text", "limits", "places"))
            if kept["classes"].dtype.kind != "U":
                return None
            index = Index(text, limits, places, [*map(sys.intern, kept["classes"].tolist())])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not (stamp.dtype == limits.dtype == places.dtype == np.int64 and text.dtype == np.uint8 and stamp.shape == (3,)):
        return None
    count = len(index.classes)
    fits = limits.shape == (count + 1,) and places.shape == (count, 2) and text.ndim == 1 and stamp[0] == INDEX_VERSION
    if not fits or limits[0] != 0 or limits[-1] > len(text) or (np.diff(limits) < 0).any():
        return None
    inside = (places >= 0).all() and (places[:, 0] <= stamp[1] - places[:, 1]).all()
    return (stamp, index) if inside else None


def build_index(shard: Path | FileIO, name: str) -> Index:
    """The index of a shard, from its headers.

    Args:
        shard: the file; it is closed in the end.
        name: for messages.

    Raises:
        ValueError: it cannot be read as tar.
    """
    names, places = [], []
    classes: dict[str, str] = {}
    try:
        with (
            shard.open("rb") if isinstance(shard, Path) else shard as file,
            tarfile.open(fileobj=file, mode="r:") as archive,
        ):
            for member in archive:
                stem, suffix = _sample(member.name)
                if not member.isreg() or member.issparse() or PurePosixPath(member.name).name.startswith("."):
                    continue
                if suffix == "cls" and member.size < 256:
                    text = archive.extractfile(member)
                    assert text is not None
                    classes[stem] = text.read().decode("utf-8", "replace").strip()
                elif "." + suffix.rpartition(".")[2] in image_suffixes():
                    names.append(member.name)
                    places.append((member.offset_data, member.size))
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{name} cannot be read as an uncompressed tar file: {error}") from error
    packed = StringArray.of(names)
    limits = np.concatenate([[0], packed.ends]).astype(np.int64)
    kept = [classes.get(_sample(name)[0], "") for name in names]
    return Index(packed.text, limits, np.array(places, dtype=np.int64).reshape(-1, 2), kept)


def _sample(member: str) -> tuple[str, str]:
    """A member's sample name and suffix: WebDataset splits at the first dot of the file name."""
    folder, slash, name = member.rpartition("/")
    stem, _, suffix = name.partition(".")
    return folder + slash + stem, suffix.lower()
