"""A list of images, wherever they are stored: as files in folders, in a pack, in shards."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mimkit.data.memory import ImagesInMemory
from mimkit.data.samples import Example, Examples
from mimkit.data.string_array import StringArray
from mimkit.files import Location, below
from mimkit.views import Picture


class Store(Protocol):
    """Images that are no files of their own: encoded ones in files that hold many, which are opened again in another
    process; and those in memory.

    Attributes:
        path: the file or folder, or its URL.
        names: of N images, with `/` between folders.
        labels: int64 [N], positions in `classes`, or None.
        classes: names, in a fixed order, or None.
        splits: uint8 [N], TRAIN or HELD_OUT for each image where the split is given, else None.
        shards: int64 [N], non-decreasing: the file that holds each image where there are several, else None.
    """

    @property
    def path(self) -> Location: ...

    @property
    def names(self) -> StringArray: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def classes(self) -> list[str] | None: ...

    @property
    def splits(self) -> np.ndarray | None: ...

    @property
    def shards(self) -> np.ndarray | None: ...

    def read(self, position: int) -> bytes | Picture:
        """One image, still encoded where it comes from a file.

        Raises:
            BadImage: it cannot be read, or is damaged.
            DataUnreachable: it is remote, and cannot be fetched.
        """

    def prefetch(self, current: Sequence[int], upcoming: Sequence[int]) -> None:
        """Take note of the shards in use and of those that come next, to fetch them in time."""

    def identity(self, positions: np.ndarray) -> bytes:
        """Bytes that change when the images do, as far as that is known without reading them."""


@dataclass(frozen=True, eq=False)
class ImageList(Examples):
    """Images, with their class where they have one. No image is opened to make it.

    Args:
        root: the folder that paths are relative to, or the store's path or URL.
        paths: with `/` between folders; sorted, or in the order of their list file, where they may be absolute. Any
            sequence of strings; stored as `StringArray`.
        labels: int64 [N], positions in `classes`, or None.
        classes: names, or None.
        store: holds the images, if they are not files of their own.
        positions: int64 [N], their positions in the store.
    """

    root: Location
    paths: Sequence[str]
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    store: Store | None = None
    positions: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", StringArray.of(self.paths))

    @classmethod
    def of(cls, store: Store, positions: np.ndarray) -> "ImageList":
        """Images of a store."""
        labels = None if store.labels is None else store.labels[positions]
        return cls(store.path, store.names.take(positions), labels, store.classes, store, positions)

    def __len__(self) -> int:
        return len(self.paths)

    def __reduce__(self) -> tuple[Any, ...]:
        """Of a store only the positions are pickled: the other process opens it again."""
        if self.store is None:
            return ImageList, (self.root, self.paths, self.labels, self.classes)
        return ImageList.of, (self.store, self.positions)

    def path(self, index: int) -> Location:
        """The image's file, or, in a store, its name below the store's."""
        return below(self.root, self.paths[index])

    @property
    def channels(self) -> int | None:
        """Of arrays in memory; None for files, which are read with as many channels as are asked for."""
        return self.store.channels if isinstance(self.store, ImagesInMemory) else None

    def example(self, index: int) -> Example:
        return {"images": self.content(index)}

    def content(self, index: int) -> Path | bytes | Picture:
        """What the image is decoded from: the path of its file, or its bytes in the store; or the image in memory.

        Raises:
            BadImage: the store cannot read it.
        """
        if self.store is None or self.positions is None:
            path = self.path(index)
            return path if isinstance(path, Path) else Path(path)
        return self.store.read(int(self.positions[index]))

    @property
    def shards(self) -> np.ndarray | None:
        """int64 [N]: the shard of each image, or None."""
        if self.store is None or self.store.shards is None:
            return None
        return self.store.shards[self.positions]

    def shards_of(self, indices: np.ndarray) -> np.ndarray | None:
        """int64: the shards of some of the images, or None."""
        if self.store is None or self.store.shards is None or self.positions is None:
            return None
        return self.store.shards[self.positions[indices]]

    def prefetch(self, current: np.ndarray, upcoming: np.ndarray) -> None:
        """Tell the store which shards are in use, and which come next."""
        if self.store is not None:
            self.store.prefetch(current.tolist(), upcoming.tolist())

    def take(self, indices: Sequence[int] | np.ndarray) -> "ImageList":
        """Some of the images, in the order given; the classes stay."""
        indices = np.asarray(indices, dtype=np.int64)
        if self.store is not None and self.positions is not None:
            return ImageList.of(self.store, self.positions[indices])
        labels = None if self.labels is None else self.labels[indices]
        return ImageList(self.root, StringArray.of(self.paths).take(indices), labels, self.classes)

    def fingerprint(self) -> str:
        """SHA-256 over relative paths, labels and class names, in hexadecimal.

        Files are neither read nor stat'ed, so that a million images on a network disk take a second: a file whose
        content changed under the same name goes unnoticed. For a store, the checksums or sizes that it knows are
        included. The root is not: a moved folder keeps its fingerprint.
        """
        labels = b"" if self.labels is None else self.labels.astype("<i8").tobytes()
        sections = [labels, "\0".join(self.classes or []).encode("utf-8", "surrogateescape")]
        if self.store is not None and self.positions is not None:
            sections.append(self.store.identity(self.positions))
        names = hashlib.sha256()
        for number, name in enumerate(StringArray.of(self.paths).encoded()):
            names.update(b"\0" + name if number else name)
        digests = [names.digest(), *(hashlib.sha256(section).digest() for section in sections)]
        return hashlib.sha256(b"".join(digests)).hexdigest()
