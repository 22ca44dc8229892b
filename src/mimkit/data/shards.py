"""Shards: tar files of images in WebDataset's layout, read in place, in any order.

An index of each shard says where its images begin. It is built on first use, by reading the headers once, and kept
beside the shard as `.NAME.index.npz`, or only in memory where nothing may be written. So a batch is a function of its
number, as it is for folders: there is no position to save, nothing to replay.

Nothing is unpacked: members are read where they lie, links and other special members are passed over, and a member's
name is only ever a name.

Shapes: N images in a shard, S shards.
"""

import contextlib
import io
import itertools
import re
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from mimkit.data.decode import BadImage, image_suffixes
from mimkit.data.images import HELD_OUT, TRAIN
from mimkit.data.names import Names
from mimkit.files import write_bytes

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PART = re.compile(r"(train|valid|validation|val|test)(?=[-_./\d]|$)")
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Shards:
    """Images in tar files: a `Store`.

    Args:
        path: what the shards' names are relative to.
        files: the shards, S of them.
        names: of all images, the shard's first.
        shards: int64, rising: the shard of each image.
        places: int64 [N, 2], first byte and length of each image in its shard.
        labels: int64 [N] from the `.cls` members, if every image has one.
        classes: what they say, sorted.
        parts: TRAIN or HELD_OUT for each, where the shards' names say it.
    """

    path: Path
    files: list[Path]
    names: Names
    shards: np.ndarray
    places: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None
    parts: np.ndarray | None

    def read(self, position: int) -> bytes:
        """One image as it lies in its shard.

        Raises:
            BadImage: the shard is gone, or shorter than it was.
        """
        start, length = self.places[position].tolist()
        try:
            with self.files[self.shards[position]].open("rb") as file:
                file.seek(start)
                data = file.read(length)
        except OSError as error:
            raise BadImage(self.path / self.names[position], (error.strerror or str(error)).lower()) from error
        if len(data) != length:
            raise BadImage(self.path / self.names[position], "its shard was cut short")
        return data

    def identity(self, positions: np.ndarray) -> bytes:
        """Lengths of the images."""
        return self.places[positions, 1].astype("<i8").tobytes()


def find_shards(data: Path, has_images: Callable[[], bool]) -> Shards | None:
    """The shards that a path names, or None if it names none.

    A `.tar` file; several, as in `train-{000..012}.tar`; a folder with `.tar` files in it, or in its sub-folders, and
    no image files; a list file (`.txt`) with nothing but `.tar` files in it. Images are the regular members with a
    suffix of a format that Pillow reads; the `.cls` member of the same name, if all have one, is an image's class.

    Shards or their folders that begin with `train` and with `val`, `valid`, `validation` or `test`, and no others,
    are split so.

    Args:
        data: the path.
        has_images: whether it is a folder with image files; only asked if there are shards.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard cannot be read as tar, or there are no images in any.
    """
    root, files = _shard_files(data)
    if not files or (data.is_dir() and has_images()):
        return None
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"the shard {file} does not exist")
    indices = [_index(file) for file in files]
    counts = np.array([len(index.limits) - 1 for index in indices])
    if not counts.sum():
        raise ValueError(f"no images in the {len(files)} shards of {data}")
    shards = np.repeat(np.arange(len(files)), counts)
    short = [file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name for file in files]
    names = Names.of(
        f"{name}/{member}" for name, index in zip(short, indices, strict=True) for member in index.members()
    )
    places = np.concatenate([index.places for index in indices])
    texts = list(itertools.chain.from_iterable(index.classes for index in indices))
    labels, classes = (None, None) if "" in texts else _labels(texts)
    return Shards(root, files, names, shards, places, labels, classes, _parts(short, shards))


def _shard_files(data: Path) -> tuple[Path, list[Path]]:
    """What names are relative to, and the files in order; none if the path names no shards."""
    if data.is_dir():
        return data, sorted(path for path in [*data.glob("*.tar"), *data.glob("*/*.tar")] if path.name[0] != ".")
    if data.suffix == ".txt" and data.is_file():
        lines = data.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        tars = [line for line in lines if line.endswith(".tar")]
        return data.parent, [data.parent / line for line in tars] if len(tars) == len(lines) else []
    if data.suffix != ".tar":
        return data.parent, []
    match = _RANGE.search(data.name)
    if match is None:
        return data.parent, [data] if data.is_file() else []
    first, last = match.groups()
    if int(last) < int(first):
        raise ValueError(f"{data}: {first} to {last} are no shards")
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return data.parent, [data.with_name(data.name.replace(match[0], number, 1)) for number in numbers]


def _labels(texts: list[str]) -> tuple[np.ndarray, list[str]] | tuple[None, None]:
    """Positions of each text in their sorted list, numbers by size; nothing where there is only one."""
    numeric = all(text.isdecimal() for text in texts)
    classes = sorted(set(texts), key=lambda text: (int(text) if numeric else 0, text))
    positions = {text: number for number, text in enumerate(classes)}
    return (
        (np.array([positions[text] for text in texts], dtype=np.int64), classes) if len(classes) > 1 else (None, None)
    )


def _parts(names: list[str], shards: np.ndarray) -> np.ndarray | None:
    matches = [_PART.match(name) for name in names]
    kinds = np.array([0 if m is None else TRAIN if m[1] == "train" else HELD_OUT for m in matches], dtype=np.uint8)
    return kinds[shards] if set(kinds.tolist()) == {TRAIN, HELD_OUT} else None


@dataclass(frozen=True, eq=False)
class _Index:
    """Where the images of one shard lie.

    Args:
        text: uint8, the members' names.
        limits: int64 [N + 1], where each name begins, and the last ends.
        places: int64 [N, 2], first byte and length.
        classes: N texts, "" where there is none.
    """

    text: np.ndarray
    limits: np.ndarray
    places: np.ndarray
    classes: list[str]

    def members(self) -> Names:
        return Names(self.text, self.limits[:-1], self.limits[1:])


def _index(shard: Path) -> _Index:
    """The shard's index, read from beside it if it is still the same shard, else built."""
    status = shard.stat()
    stamp = np.array([_VERSION, status.st_size, status.st_mtime_ns], dtype=np.int64)
    beside = shard.with_name(f".{shard.name}.index.npz")
    try:
        with np.load(beside, allow_pickle=False) as kept:
            if np.array_equal(kept["stamp"], stamp):
                return _Index(kept["text"], kept["limits"], kept["places"], kept["classes"].tolist())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none there, or not a whole one
    index = _build_index(shard)
    buffer = io.BytesIO()
    classes = np.array(index.classes, dtype=np.str_)
    np.savez(buffer, stamp=stamp, text=index.text, limits=index.limits, places=index.places, classes=classes)
    with contextlib.suppress(OSError):  # on a read-only disk it is built again next time
        write_bytes(beside, buffer.getvalue())
    return index


def _build_index(shard: Path) -> _Index:
    names, places = [], []
    classes: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                stem, suffix = _sample(member.name)
                if not member.isreg() or member.issparse() or PurePosixPath(member.name).name.startswith("."):
                    continue
                if suffix == "cls" and member.size < 256:
                    file = archive.extractfile(member)
                    assert file is not None
                    classes[stem] = file.read().decode("utf-8", "replace").strip()
                elif "." + suffix.rpartition(".")[2] in image_suffixes():
                    names.append(member.name)
                    places.append((member.offset_data, member.size))
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} cannot be read as an uncompressed tar file: {error}") from error
    packed = Names.of(names)
    limits = np.concatenate([[0], packed.ends]).astype(np.int64)
    kept = [classes.get(_sample(name)[0], "") for name in names]
    return _Index(packed.text, limits, np.array(places, dtype=np.int64).reshape(-1, 2), kept)


def _sample(member: str) -> tuple[str, str]:
    """What the members of one sample share, and the rest: WebDataset cuts at the first dot of the file's name."""
    folder, slash, name = member.rpartition("/")
    stem, _, suffix = name.partition(".")
    return folder + slash + stem, suffix.lower()
