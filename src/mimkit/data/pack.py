"""The pack: one memory-mapped, checksummed file of small JPEG images, made from a folder of larger ones.

    header   128 bytes: magic, version, number of images, offset and length of the index, fingerprint of the images it
             was made from, SHA-256 of the index, CRC-32 of the header itself
    images   one JPEG after the other
    index    metadata (JSON), then arrays: offset, length, CRC-32, width, height, label, split, name

All numbers are little-endian. The index holds a checksum of every image, so its own covers the whole file.

Shapes: N images, T bytes of text.
"""

import functools
import hashlib
import io
import itertools
import json
import mmap
import os
import struct
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from mimkit.data.decode import read_image
from mimkit.data.images import ImageList
from mimkit.data.string_array import StringArray
from mimkit.data.workers import in_order
from mimkit.errors import BadImage
from mimkit.files import atomic_file

MAGIC, VERSION = b"mimkpack", 1
_HEADER = struct.Struct("<8sIIQQQ32s32s")
_HEADER_BYTES = 128
_JPEG_START = b"\xff\xd8\xff"
_AT_ONCE = 32
_PREAD = hasattr(os, "pread")

# Arrays of the index, in this order. Labels and splits, which the format calls "parts", may be missing.
_ARRAYS = {
    "starts": "<i8", "lengths": "<i8", "checksums": "<u4", "widths": "<i4", "heights": "<i4", "labels": "<i8",
    "parts": "|u1", "name_limits": "<i8", "text": "|u1",
}  # fmt: skip


def is_pack(path: Path) -> bool:
    """Whether a file starts like a pack."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class Pack:
    """A pack, opened for reading: a `Store`. Its memory does not grow with the number of images.

    Args:
        path: the file.

    Raises:
        ValueError: it is not a pack, of a later version, truncated, or its index is damaged.
    """

    shards = None

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        index = self._open()
        if hashlib.sha256(index).digest() != self._digest:
            raise ValueError(f"{self.path} is damaged: its index does not have the checksum it was written with")
        self._understand(index)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self._digest)

    def _open(self) -> memoryview:
        """Map the file and return its index, unchecked."""
        self._file = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        size = os.fstat(self._file).st_size
        if size < _HEADER_BYTES:
            raise ValueError(f"{self.path} is damaged: {size} bytes are no pack")
        self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        header = self._map[:_HEADER_BYTES]
        magic, version, _, count, start, length, source, self._digest = _HEADER.unpack_from(header)
        if magic != MAGIC:
            raise ValueError(f"{self.path} was not written by mimkit pack")
        if version != VERSION:
            raise ValueError(f"{self.path} is a pack of version {version}; this version of mimkit reads {VERSION}")
        if struct.unpack_from("<I", header, _HEADER.size)[0] != zlib.crc32(header[: _HEADER.size]):
            raise ValueError(f"{self.path} is damaged: its header does not have the checksum it was written with")
        if start + length != len(self._map):
            raise ValueError(f"{self.path} is damaged: {len(self._map)} bytes long, written as {start + length}")
        self.count, self.source = count, source.hex()
        return memoryview(self._map)[start:]

    def _understand(self, index: memoryview) -> None:
        (length,) = struct.unpack_from("<Q", index)
        self.about: dict[str, Any] = json.loads(bytes(index[8 : 8 + length]))
        place = _aligned(8 + length)
        arrays: dict[str, np.ndarray] = {}
        for name, kind in _ARRAYS.items():
            if name in self.about["counts"]:
                arrays[name] = np.frombuffer(index, kind, self.about["counts"][name], place)
                place = _aligned(place + arrays[name].nbytes)
        limits = arrays["name_limits"]
        self.names = StringArray(arrays["text"], limits[:-1], limits[1:])
        self.classes: list[str] | None = self.about["classes"]
        self.labels, self.splits = arrays.get("labels"), arrays.get("parts")
        self.widths, self.heights = arrays["widths"], arrays["heights"]
        self._starts, self._lengths, self._checksums = arrays["starts"], arrays["lengths"], arrays["checksums"]

    def read(self, position: int) -> bytes:
        """One image as JPEG.

        Raises:
            BadImage: its bytes are not those that were written.
        """
        start, length = int(self._starts[position]), int(self._lengths[position])
        try:
            # Read through the map, pages would count as this process's memory, and a disk error would be a SIGBUS.
            data = os.pread(self._file, length, start) if _PREAD else self._map[start : start + length]
        except OSError as error:
            raise BadImage(self.path / self.names[position], (error.strerror or str(error)).lower()) from error
        if zlib.crc32(data) != self._checksums[position]:
            raise BadImage(
                self.path / self.names[position], "damaged: it does not have the checksum it was packed with"
            )
        return data

    def identity(self, positions: np.ndarray) -> bytes:
        """Checksums of the images."""
        return self._checksums[positions].tobytes()

    def prefetch(self, current: Sequence[int], upcoming: Sequence[int]) -> None:
        """Nothing to do: a pack has no shards."""


def _reopened(path: Path, digest: bytes) -> Pack:
    """The pack in another process, which need not verify its checksum again."""
    pack = Pack.__new__(Pack)
    pack.path = path
    index = pack._open()
    if pack._digest != digest:
        raise ValueError(f"{path} was replaced by another pack while it was in use")
    pack._understand(index)
    return pack


@dataclass(frozen=True)
class Packed:
    """The result of `write_pack`.

    Args:
        images: how many were packed.
        bytes: size of the file.
        skipped: (path, reason) of each that could not be read.
    """

    images: int
    bytes: int
    skipped: list[tuple[str, str]]


def write_pack(
    images: ImageList,
    splits: np.ndarray | None,
    out: Path,
    *,
    short_side: int = 256,
    quality: int = 90,
    workers: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> Packed:
    """Pack images, in their order. The number of workers does not change the file, which is written atomically.

    An image with a longer short side is resized to `short_side` (bicubic, antialiased) and written as JPEG, in grey if
    all its pixels are grey. A JPEG file that is small enough is copied byte for byte.

    Args:
        images: what to pack.
        splits: TRAIN or HELD_OUT for each, uint8 [N], or None.
        out: file to write.
        short_side: in pixels, at most; nothing is enlarged.
        quality: of the JPEG images, 1 to 100.
        workers: processes that read and resize.
        report: called with the number of images done.

    Raises:
        ValueError: a value out of range, or no image can be read.
        OSError: the file cannot be written.
    """
    if short_side < 1:
        raise ValueError(f"--short-side must be at least 1, got {short_side}")
    if not 1 <= quality <= 100:
        raise ValueError(f"--quality must lie in 1 .. 100, got {quality}")
    shrink = functools.partial(_shrink_some, images, short_side, quality)
    sizes = np.zeros((len(images), 2), dtype=np.int32)
    lengths, checksums = np.zeros(len(images), dtype=np.int64), np.zeros(len(images), dtype=np.uint32)
    skipped: list[tuple[str, str]] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        file.write(bytes(_HEADER_BYTES))
        some = in_order(shrink, range(-(-len(images) // _AT_ONCE)), workers)
        try:
            for number, result in enumerate(itertools.chain.from_iterable(some)):
                if isinstance(result, str):
                    skipped.append((str(images.path(number)), result))
                else:
                    data, sizes[number] = result
                    lengths[number], checksums[number] = len(data), zlib.crc32(data)
                    file.write(data)
                if (number + 1) % _AT_ONCE == 0 or number + 1 == len(images):
                    report(number + 1)
        finally:
            some.close()
        good = np.flatnonzero(lengths)
        if not len(good):
            raise ValueError(f"none of the {len(images)} images can be read; the first: {': '.join(skipped[0])}")
        names = StringArray.of(list(StringArray.of(images.paths).take(good)))
        lengths = lengths[good]
        arrays: dict[str, np.ndarray] = {"lengths": lengths, "starts": _HEADER_BYTES + np.cumsum(lengths) - lengths}
        arrays |= {"checksums": checksums[good], "widths": sizes[good, 0], "heights": sizes[good, 1]}
        arrays |= {"name_limits": np.concatenate([[0], names.ends]), "text": names.text}
        arrays |= {} if images.labels is None else {"labels": images.labels[good]}
        arrays |= {} if splits is None else {"parts": splits[good]}
        counts = {name: len(arrays[name]) for name in _ARRAYS if name in arrays}
        about = {"short_side": short_side, "quality": quality, "classes": images.classes, "counts": counts}
        _write_index(file, about, arrays, len(good), images.fingerprint())
        size = file.tell()
    return Packed(len(good), size, skipped)


def _write_index(file: BinaryIO, about: dict[str, Any], arrays: dict[str, np.ndarray], count: int, source: str) -> None:
    """Write the index after the images, then the header at the start; leaves the file position at the end."""
    file.write(bytes(_aligned(file.tell()) - file.tell()))
    start = file.tell()
    text = json.dumps(about).encode()
    pieces = [struct.pack("<Q", len(text)) + text]
    pieces += [arrays[name].astype(kind).tobytes() for name, kind in _ARRAYS.items() if name in arrays]
    index = b"".join(piece + bytes(_aligned(len(piece)) - len(piece)) for piece in pieces)
    file.write(index)
    digests = (bytes.fromhex(source), hashlib.sha256(index).digest())
    header = _HEADER.pack(MAGIC, VERSION, 0, count, start, len(index), *digests)
    file.seek(0)
    file.write(header + struct.pack("<I", zlib.crc32(header)))
    file.seek(0, os.SEEK_END)


def _shrink_some(
    images: ImageList, short_side: int, quality: int, number: int
) -> list[tuple[bytes, tuple[int, int]] | str]:
    """JPEG and (width, height) of each of some images, or why it cannot be packed."""
    some = range(number * _AT_ONCE, min((number + 1) * _AT_ONCE, len(images)))
    return [_shrink(images, index, short_side, quality) for index in some]


def _shrink(images: ImageList, index: int, short_side: int, quality: int) -> tuple[bytes, tuple[int, int]] | str:
    try:
        content = images.content(index)
        if not isinstance(content, Path | bytes):
            raise ValueError("a pack is made from files, not from images in memory")
        data = content if isinstance(content, bytes) else content.read_bytes()
        image = read_image(data)
    except BadImage as error:
        return error.reason
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if min(image.size) <= short_side and data.startswith(_JPEG_START):
        return data, image.size
    pixels = np.asarray(image)
    if (pixels == pixels[:, :, :1]).all():
        image = image.getchannel(0)
    if min(image.size) > short_side:
        width, height = (max(1, round(side * short_side / min(image.size))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", quality=quality)
    except (OSError, ValueError) as error:  # more than 65,535 pixels long
        return f"{image.width} x {image.height} pixels do not go into a JPEG: {error}"
    return buffer.getvalue(), image.size


def _aligned(place: int) -> int:
    """The next multiple of 8."""
    return -(-place // 8) * 8
