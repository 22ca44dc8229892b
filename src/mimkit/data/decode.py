"""One image file to a Pillow image of 8-bit pixels, or `BadImage` with the reason."""

import functools
import io
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image

from mimkit.errors import BadImage

Made = TypeVar("Made")

# Twice the size at which Pillow warns: photographs of 108 megapixels pass (0.7 GB at most), decompression bombs do not.
MAX_PIXELS = 178_956_970

# Behind transparent pixels: mid-grey, so that both dark and white drawings stand out.
BACKGROUND = (128, 128, 128)

# Formats that Pillow identifies but cannot decode, and EPS, for which it would run Ghostscript.
_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path | bytes, channels: int = 3) -> Image.Image:
    """The first frame of an image file, upright, in 8 bits.

    Transparent pixels show `BACKGROUND`. 16-bit grey is scaled from its full range. 32-bit integers and floats have no
    agreed range: see `_eight_bits`.

    Args:
        path: a file of any format that Pillow reads, whatever its suffix, or its content.
        channels: 3 for mode RGB, 1 for mode L.

    Raises:
        BadImage: the file cannot be read as an image.
        ValueError: another number of channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"images are read with 1 or 3 channels, got {channels}")
    return _decoded(path, lambda image: in_mode(image, "RGB" if channels == 3 else "L"))


def read_values(path: str | Path) -> np.ndarray:
    """The values stored in an image file, as they are: class ids, indices into a palette, depths.

    Returns:
        [H, W], or [H, W, C] of a colour image, in the file's own depth; not turned as EXIF may say.

    Raises:
        BadImage: the file cannot be read as an image.
    """
    return _decoded(path, np.asarray)


def _decoded(path: str | Path | bytes, finish: Callable[[Image.Image], Made]) -> Made:
    """What `finish` makes of a file's first frame, or of that of its content; any error in it is a `BadImage`."""
    opened = io.BytesIO(path) if isinstance(path, bytes) else None
    path = "bytes" if isinstance(path, bytes) else path
    try:
        with opened or open(path, "rb") as file:
            image = identify(file, path)
            refuse_bombs(image.size, path)
            _load(image)
            return finish(image)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise BadImage(path, _reason(error)) from error


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the formats that `read_image` reads, each with its dot."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in _readable_formats())


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Pillow's names, the common formats first; those without a signature to check last."""
    Image.init()
    names = [name for name in Image.ID if name not in _NOT_PICTURES]
    return tuple(sorted(names, key=lambda name: (name not in ("JPEG", "PNG"), Image.OPEN[name][1] is None)))


def identify(file: BinaryIO, path: str | Path) -> Image.Image:
    """The image with its header read. `Image.open` does the same, but warns about sizes that are allowed here."""
    start = file.read(16)
    if not start:
        raise BadImage(path, "empty file")
    for name in _readable_formats():
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(start)
        if accepted and not isinstance(accepted, str):  # a string: why this build of Pillow cannot read it
            file.seek(0)
            try:
                return factory(file, os.fspath(path))
            except (SyntaxError, IndexError, TypeError, struct.error):  # not this format
                continue
    raise BadImage(path, "not an image, or broken at its start")


def refuse_bombs(size: tuple[int, int], path: str | Path) -> None:
    """Raise `BadImage` for a (width, height) of more than `MAX_PIXELS` pixels, or of none."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise BadImage(path, f"{width} x {height} pixels, more than the {MAX_PIXELS} allowed")
    if width < 1 or height < 1:
        raise BadImage(path, f"{width} x {height} pixels")


def _load(image: Image.Image) -> None:
    if image.width * image.height * 2 <= MAX_PIXELS:
        image.load()
        return
    with warnings.catch_warnings():  # some decoders check the size again
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image.load()


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """A decoded Pillow image of any kind, upright, in mode RGB or L; see `read_image`."""
    turned = orientation(image)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.has_transparency_data:
        image = _on_background(image.convert("RGBA"))
    if image.mode != mode:
        image = image.convert(mode)
    return image.transpose(_UPRIGHT[turned]) if turned in _UPRIGHT else image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where EXIF data are missing or broken."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels may be fine all the same
        return 1


def is_turned(source: Any) -> bool:
    """Whether EXIF data turn or mirror an image when it is opened: a file, a file's content, a Pillow image.

    Raises:
        BadImage: a file cannot be read.
    """
    if isinstance(source, Image.Image):
        return orientation(source) in _UPRIGHT
    if not isinstance(source, str | Path | bytes):
        return False
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        return orientation(identify(file, "")) in _UPRIGHT


def _on_background(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(image, mask=image)
    return canvas


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values [H, W] of 16 or 32 bits to uint8.

    - 16-bit integers: 0..65535 to 0..255, rounded, never stretched, so that all images of a set are scaled alike.
    - 32-bit integers: within 0..255 as they are, within 0..65535 as 16-bit ones.
    - floats: within 0..1 times 255, within 0..255 as they are; non-finite values count as 0.
    - all others: their own range is scaled to 0..255.
    """
    if values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    ranges = (1, 255) if values.dtype.kind == "f" else (255, 65535)
    values = np.nan_to_num(values.astype(np.float64), nan=0, posinf=0, neginf=0)
    low, high = values.min(), values.max()
    if low >= 0 and high <= ranges[1]:
        low, high = 0, ranges[0] if high <= ranges[0] else ranges[1]
    return np.rint((values - low) / ((high - low) or 1) * 255).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).partition("\n")[0][:200] or type(error).__name__
