"""Open images for views: JPEG by simplejpeg and torch where simplejpeg is installed, everything else by Pillow.

simplejpeg decodes to the same pixels as Pillow. torch's antialiased filters on uint8 equal Pillow's up to rounding: a
view's mean error is 0.04 grey levels, 0.3 at worst, as Pillow itself is 0.3 from exact arithmetic. Images above `LARGE`
pixels are decoded at a half, quarter or eighth of their resolution, where that leaves the crop twice the pixels that it
needs per side: mean error 0.35, 0.6 at worst.

Views draw the same boxes either way, and the same files count as bad: what simplejpeg refuses, Pillow decides.
"""

import functools
import importlib
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mimkit.data.decode import identify, orientation, read_image, refuse_bombs
from mimkit.data.memory import with_channels
from mimkit.errors import BadImage
from mimkit.views import Box, Picture, PillowPicture, Size, as_picture

Decoder = Literal["auto", "simplejpeg", "pillow"]

LARGE = 2**20
MARGIN = 2

_START = b"\xff\xd8\xff"
_FILTERS = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}

# By EXIF orientation: whether the image is transposed, then whether its rows and its columns are reversed.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def choose_decoder(wanted: Decoder) -> Literal["simplejpeg", "pillow"]:
    """The decoder that `auto` stands for on this machine, for run.json; one given by name must be installed.

    Raises:
        ValueError: simplejpeg is wanted and missing.
    """
    if wanted == "simplejpeg" and _simplejpeg() is None:
        raise ValueError("--decode simplejpeg needs simplejpeg: pip install mimkit[fast], or use --decode pillow")
    return "pillow" if wanted == "pillow" or _simplejpeg() is None else "simplejpeg"


def open_image(
    source: str | Path | bytes | Picture | Image.Image, channels: int = 3, *, decode: Decoder = "auto"
) -> Picture:
    """An image that can be cut, upright, in 8 bits: as from `read_image`, up to rounding, but faster.

    A JPEG may be decoded only by `cut`, which may then raise `BadImage` too.

    Args:
        source: a file of any format that Pillow reads, whatever its suffix, or its content; or an image in memory.
        channels: 3 for colour, 1 for grey; of an image in memory as many as it has.
        decode: pillow gives exactly Pillow's pixels; for auto and simplejpeg see `choose_decoder`.

    Raises:
        BadImage: the file cannot be read as an image.
        ValueError: another number of channels, or a decoder that is not installed.
    """
    if not isinstance(source, (str, Path, bytes)):  # a union would be made for each image
        return with_channels(as_picture(source), channels)
    if channels not in (1, 3) or choose_decoder(decode) == "pillow":
        return PillowPicture(read_image(source, channels))
    data = source if isinstance(source, bytes) else _read_jpeg(source)
    if data is None or not data.startswith(_START):
        return PillowPicture(read_image(source, channels))
    try:
        height, width, colours, _ = _simplejpeg().decode_jpeg_header(data)
        turned = orientation(identify(io.BytesIO(data), "")) if _may_be_turned(data) else 1
    except Exception:  # whatever it is, Pillow's message is better
        return PillowPicture(read_image(source, channels))
    if colours not in ("YCbCr", "RGB", "Gray"):
        return PillowPicture(read_image(source, channels))
    path = "bytes" if isinstance(source, bytes) else source
    refuse_bombs((width, height), path)
    return JpegPicture(data, (width, height), channels, colours != "Gray" or channels == 3, turned, path)


class JpegPicture:
    """A JPEG that `cut` decodes, at no higher resolution than it needs; the last decoding is kept for the next cut.

    Args:
        data: the file's content.
        stored: (width, height) in the file.
        channels: 3 or 1.
        coloured: whether it must be decoded in colour.
        turned: EXIF orientation; an invalid one counts as 1.
        path: for messages.
    """

    def __init__(
        self, data: bytes, stored: tuple[int, int], channels: int, coloured: bool, turned: int, path: str | Path
    ) -> None:
        self.data, self.stored, self.channels, self.coloured, self.path = data, stored, channels, coloured, path
        self.transposed, self.rows_reversed, self.columns_reversed = _TURNS.get(turned, _TURNS[1])
        self.size = stored[::-1] if self.transposed else stored
        self._decoded: tuple[int, np.ndarray] | None = None
        self._judged: Picture | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        width, height = self.size
        return np.array(self.cut((0, 0, width, height), (height, width), Image.Resampling.BICUBIC), dtype=dtype)

    def cut(self, box: Box, size: Size, interpolation: Image.Resampling) -> np.ndarray:
        """As `Picture.cut`.

        Raises:
            BadImage: the file is broken.
        """
        stored_size = size[::-1] if self.transposed else size
        stored_box = self._as_stored(box)
        pixels = None if self._judged else self._cut_stored(stored_box, stored_size, interpolation)
        if pixels is None:
            return self._judge().cut(box, size, interpolation)
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]

    def _as_stored(self, box: Box) -> Box:
        left, top, right, bottom = box
        if self.columns_reversed:
            left, right = self.size[0] - right, self.size[0] - left
        if self.rows_reversed:
            top, bottom = self.size[1] - bottom, self.size[1] - top
        return (top, left, bottom, right) if self.transposed else (left, top, right, bottom)

    def _cut_stored(self, box: Box, size: Size, interpolation: Image.Resampling) -> np.ndarray | None:
        left, top, right, bottom = box
        filter_name = _FILTERS.get(interpolation)
        spare = min((right - left) / size[1], (bottom - top) / size[0]) / MARGIN
        large = self.stored[0] * self.stored[1] > LARGE and filter_name is not None
        factor = max(factor for factor in (1, 2, 4, 8) if factor == 1 or (large and factor <= spare))
        pixels = self._decode(factor)
        if pixels is None:
            return None
        if factor > 1 or filter_name is None:
            x, y = left // factor, top // factor
            region = pixels[y : -(-bottom // factor), x : -(-right // factor)]
            edges = (left / factor - x, top / factor - y, right / factor - x, bottom / factor - y)
            return np.asarray(Image.fromarray(region).resize(size[::-1], interpolation, box=edges))
        return _resize(pixels[top:bottom, left:right], size, filter_name)

    def _decode(self, factor: int) -> np.ndarray | None:
        """uint8 [H, W, 3] or [H, W], each side divided by the factor and rounded up; None if simplejpeg refuses."""
        if self._decoded is None or self._decoded[0] != factor:
            width, height = (-(-side // factor) for side in self.stored)
            least = {"min_width": width, "min_height": height, "min_factor": factor} if factor > 1 else {}
            try:
                pixels = _simplejpeg().decode_jpeg(self.data, "RGB" if self.coloured else "GRAY", **least)
            except ValueError:
                return None
            if pixels.shape[:2] != (height, width):
                return None
            if self.channels == 1:  # the luma stored in a colour file is not Pillow's grey of its RGB
                pixels = np.array(Image.fromarray(pixels).convert("L")) if self.coloured else pixels[:, :, 0]
            self._decoded = factor, pixels
        return self._decoded[1]

    def _judge(self) -> Picture:
        if self._judged is None:
            try:
                self._judged = PillowPicture(read_image(self.data, self.channels))
            except BadImage as error:
                raise BadImage(self.path, error.reason) from error
        return self._judged


def _resize(pixels: np.ndarray, size: Size, filter_name: str) -> np.ndarray:
    """uint8 [H, W, 3] or [H, W] to a size; torch's kernel for this layout is several times as fast as Pillow."""
    if pixels.shape[:2] == size:
        return pixels
    grey = pixels.ndim == 2
    images = torch.from_numpy(pixels[:, :, None] if grey else pixels).permute(2, 0, 1)[None]
    images = images.contiguous(memory_format=torch.channels_last)  # torch does not notice it for a single image
    resized = F.interpolate(images, size, mode=filter_name, antialias=True)[0].permute(1, 2, 0).numpy()
    return resized[:, :, 0] if grey else resized


def _read_jpeg(path: str | Path) -> bytes | None:
    """The content of a file that starts like JPEG; None for any other, and where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return _START + file.readall() if file.read(len(_START)) == _START else None
    except OSError:
        return None


def _may_be_turned(data: bytes) -> bool:
    """Whether a JPEG has an APP1 segment, which holds EXIF and XMP, or anything odd among its segments."""
    place = 2
    while data[place] == 0xFF and data[place + 1] != 0xE1:
        if data[place + 1] == 0xDA:  # the pixels
            return False
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return True


@functools.cache
def _simplejpeg() -> Any:
    """The module, or None."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None
