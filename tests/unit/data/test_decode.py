"""Reading images: every mode and oddity that files come with, and everything that is no image."""

import contextlib
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features
from skimage import data as pictures

from mimkit.data import decode, read_image
from mimkit.errors import BadImage


def pixels_of(path: Path, channels: int = 3) -> np.ndarray:
    return np.asarray(read_image(path, channels)).astype(int)


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    """A picture [H, W, 3] without any symmetry, smooth enough for JPEG."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) % 128 + 30], axis=2).astype(np.uint8)


# The folder of odd and broken files.


@pytest.fixture
def corrupt(data_root: Path) -> Path:
    return data_root / "corrupt"


def looks_like(image: Image.Image, picture: np.ndarray) -> bool:
    reference = np.asarray(Image.fromarray(picture).resize(image.size, Image.Resampling.LANCZOS)).astype(int)
    return bool(np.abs(np.asarray(image).astype(int) - reference).mean() < 5)


def test_cmyk_looks_like_the_coffee_cup_it_is(corrupt: Path) -> None:
    image = read_image(corrupt / "05_cmyk.jpg")
    assert (image.mode, image.size) == ("RGB", (384, 256))
    assert looks_like(image, pictures.coffee())


def test_sixteen_bit_grey_is_scaled_not_clipped(corrupt: Path) -> None:
    with Image.open(corrupt / "06_sixteen_bit.png") as stored:
        values = np.asarray(stored).astype(int)
    assert values.max() == 65535
    assert not (values % 257).any()
    for channels in (1, 3):
        image = read_image(corrupt / "06_sixteen_bit.png", channels)
        np.testing.assert_array_equal(np.asarray(image).reshape(256, 256, -1)[:, :, 0], values // 257)


def test_transparent_palette_shows_the_background_not_its_hidden_magenta(corrupt: Path) -> None:
    image = read_image(corrupt / "07_palette_transparency.png")
    values = np.asarray(image).astype(int)
    assert image.size == (385, 256)
    assert (values[0, 0] == decode.BACKGROUND).all()
    magenta = (values[..., 0] > 200) & (values[..., 1] < 60) & (values[..., 2] > 200)
    assert not magenta.any()
    middle = image.crop((120, 60, 260, 200))
    reference = Image.fromarray(pictures.chelsea()).resize(image.size).crop((120, 60, 260, 200))
    assert np.corrcoef(np.asarray(middle).ravel(), np.asarray(reference).ravel())[0, 1] > 0.9


def test_exif_rotated_astronaut_is_upright(corrupt: Path) -> None:
    image = read_image(corrupt / "08_exif_rotated.jpg")
    assert image.size == (200, 256)
    assert looks_like(image, pictures.astronaut()[:, :400])


def test_animation_gives_its_first_frame(corrupt: Path) -> None:
    with Image.open(corrupt / "09_animated.gif") as animation:
        assert animation.n_frames == 8
        frames = []
        for i in range(2):
            animation.seek(i)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    read = pixels_of(corrupt / "09_animated.gif")
    np.testing.assert_array_equal(read, frames[0])
    assert (read != frames[1]).any()


def test_one_pixel_and_odd_names(corrupt: Path) -> None:
    assert pixels_of(corrupt / "10_one_by_one.png").tolist() == [[[120, 90, 60]]]
    (name,) = [name for name in os.listdir(corrupt) if name.startswith("13")]
    image = read_image(corrupt / name)
    assert image.size == (385, 256)
    assert looks_like(image, pictures.chelsea())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("01_truncated.jpg", "truncated"),
        ("02_zero_byte.jpg", "empty file"),
        ("03_text_renamed.jpg", "not an image"),
        ("04_bad_crc.png", "broken"),
        ("11_decompression_bomb.png", "30000 x 30000 pixels"),
        ("12_directory.jpg", "is a directory"),
        ("missing.jpg", "no such file"),
    ],
)
def test_what_is_no_image_is_named_with_its_reason(corrupt: Path, name: str, reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as caught:
        read_image(corrupt / name)
    assert caught.value.path == str(corrupt / name)
    assert len(caught.value.reason) < 100
    assert "\n" not in str(caught.value)


def test_no_file_stays_open(corrupt: Path) -> None:
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else pytest.skip("needs /proc")
    kept = []
    for path in corrupt.iterdir():
        try:
            kept.append(read_image(path))
        except BadImage as error:
            kept.append(error)
    assert set(os.listdir("/proc/self/fd")) == before


# Files made here, for those who have only the code.


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_exif_orientations_come_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    if suffix == ".webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    stored = gradient()
    upright = {
        1: stored,
        2: np.fliplr(stored),
        3: np.rot90(stored, 2),
        4: np.flipud(stored),
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(stored).save(tmp_path / f"a{suffix}", exif=exif, **options)
    read = pixels_of(tmp_path / f"a{suffix}")
    assert read.shape == upright.shape
    assert np.abs(read - upright).max() <= (3 if suffix == ".jpg" else 0)


def test_broken_exif_counts_as_none(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, of corrupt EXIF data
        Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12")
        assert read_image(tmp_path / "a.jpg").size == (40, 24)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_modes_keep_their_values(tmp_path: Path, suffix: str) -> None:
    grey = gradient()[:, :, 0]
    for mode, expected in {"L": grey, "1": (grey > 127) * 255}.items():
        Image.fromarray(expected.astype(np.uint8)).convert(mode).save(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(pixels_of(tmp_path / f"a{suffix}", 1), expected)
        np.testing.assert_array_equal(pixels_of(tmp_path / f"a{suffix}"), np.stack([expected] * 3, axis=2))


@pytest.mark.parametrize("name", ["little.tif", "big.tif", "grey.png"])
def test_sixteen_bits_of_any_byte_order(tmp_path: Path, name: str) -> None:
    values = np.linspace(0, 65535, 24 * 40).reshape(24, 40).round()
    if name == "big.tif":
        image = Image.frombytes("I;16B", (40, 24), values.astype(">u2").tobytes())
    else:
        image = Image.fromarray(values.astype("<u2"))
    image.save(tmp_path / name)
    np.testing.assert_array_equal(pixels_of(tmp_path / name, 1), np.rint(values / 257))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [[0, 100, 255]]),
        (np.array([[0, 257, 65535]], np.int32), [[0, 1, 255]]),
        (np.array([[-1000, 0, 1000]], np.int32), [[0, 128, 255]]),
        (np.array([[0, 100_000, 1_000_000]], np.int32), [[0, 26, 255]]),
        (np.array([[0, 0.5, 1]], np.float32), [[0, 128, 255]]),
        (np.array([[0, 1.6, 255]], np.float32), [[0, 2, 255]]),
        (np.array([[-2, 0, 2]], np.float32), [[0, 128, 255]]),
        (np.array([[np.nan, np.inf, 1]], np.float32), [[0, 0, 255]]),
        (np.array([[-7, -7, -7]], np.float32), [[0, 0, 0]]),
    ],
)
def test_ranges_of_32_bits(tmp_path: Path, values: np.ndarray, expected: list[list[int]]) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert pixels_of(tmp_path / "a.tif", 1).tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_the_background(tmp_path: Path, mode: str) -> None:
    picture = np.asarray(Image.fromarray(gradient()).convert(mode.removesuffix("A"))).reshape(24, 40, -1).astype(int)
    alpha = np.tile(np.linspace(0, 255, 40).astype(int), (24, 1))[:, :, None]
    Image.fromarray(np.concatenate([picture, alpha], axis=2).astype(np.uint8)).save(tmp_path / "a.png")
    expected = (picture * alpha + np.array(decode.BACKGROUND) * (255 - alpha)) / 255
    assert np.abs(pixels_of(tmp_path / "a.png") - expected).max() <= 1


def test_a_transparent_colour_of_rgb_and_grey(tmp_path: Path) -> None:
    picture = gradient()
    picture[:8] = (10, 20, 30)
    Image.fromarray(picture).save(tmp_path / "rgb.png", transparency=(10, 20, 30))
    read = pixels_of(tmp_path / "rgb.png")
    assert (read[:8] == decode.BACKGROUND).all()
    np.testing.assert_array_equal(read[8:], picture[8:])

    Image.fromarray(np.array([[7, 200]], np.uint8)).save(tmp_path / "grey.png", transparency=7)
    assert pixels_of(tmp_path / "grey.png", 1).tolist() == [[128, 200]]


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    paletted = Image.fromarray(gradient()).quantize(16)
    paletted.save(tmp_path / "plain.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "plain.png"), np.asarray(paletted.convert("RGB")))
    entry = paletted.getpixel((0, 0))
    for name, transparency in {
        "one.png": entry,
        "bytes.png": bytes(0 if i == entry else 255 for i in range(16)),
    }.items():
        paletted.save(tmp_path / name, transparency=transparency)
        read = pixels_of(tmp_path / name)
        hidden = np.asarray(paletted) == entry
        assert (read[hidden] == decode.BACKGROUND).all()
        np.testing.assert_array_equal(read[~hidden], np.asarray(paletted.convert("RGB"))[~hidden])


def test_jpeg_colour_models(tmp_path: Path) -> None:
    picture = Image.fromarray(gradient())
    for mode in ("RGB", "L", "CMYK"):
        picture.convert(mode).save(tmp_path / "a.jpg", quality=100, subsampling=0)
        read = read_image(tmp_path / "a.jpg")
        reference = picture.convert(mode).convert("RGB")
        assert read.mode == "RGB"
        assert np.abs(np.asarray(read).astype(int) - np.asarray(reference)).max() <= 3


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    for name in ("a.jpg", "a.gif", "a"):
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
        np.testing.assert_array_equal(pixels_of(tmp_path / name), gradient())


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".gif", ".bmp", ".webp"])
def test_any_truncation_is_bad_or_whole(tmp_path: Path, suffix: str) -> None:
    if suffix == ".webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    path = tmp_path / f"a{suffix}"
    Image.fromarray(gradient()).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) * 3 // 4, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(BadImage):
            read_image(path)


def test_random_damage_is_bad_or_read(tmp_path: Path) -> None:
    """Whatever a broken file makes Pillow raise, it comes as BadImage."""
    rng = np.random.default_rng(0)
    for suffix in (".jpg", ".png", ".tif", ".gif", ".bmp"):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(gradient()).save(path)
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[rng.integers(len(whole), size=4)] = rng.integers(256, size=4)
            path.write_bytes(damaged.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own, of odd metadata
                with contextlib.suppress(BadImage):
                    assert read_image(path).mode == "RGB"


def bomb(width: int, height: int) -> bytes:
    """A PNG that has only a header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_bombs_are_refused_from_their_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bomb(20000, 20000) + struct.pack(">I", 8) + b"IDAT")
    with pytest.raises(BadImage, match="20000 x 20000 pixels, more than the 178956970 allowed"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".gif", ".bmp"])
def test_large_images_are_read_without_a_warning(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of which Pillow only warns, and those that it refuses, in small."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(decode, "MAX_PIXELS", 2000)
    Image.fromarray(gradient(40, 40)).save(tmp_path / f"large{suffix}")
    Image.fromarray(gradient(40, 51)).save(tmp_path / f"bomb{suffix}")
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_image(tmp_path / f"large{suffix}").size == (40, 40)
        with pytest.raises(BadImage, match="51 x 40 pixels, more than the 2000 allowed"):
            read_image(tmp_path / f"bomb{suffix}")
    assert caught == []
    assert warnings.filters == filters


def test_pillow_is_left_as_it_was(tmp_path: Path) -> None:
    limit, truncated = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.fromarray(gradient()).save(tmp_path / "a.jpg")
    read_image(tmp_path / "a.jpg")
    assert limit == Image.MAX_IMAGE_PIXELS
    assert truncated == ImageFile.LOAD_TRUNCATED_IMAGES


def test_postscript_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(BadImage, match="not an image"):
        read_image(tmp_path / "a.jpg")
    assert ".eps" not in decode.image_suffixes()


@pytest.mark.parametrize("channels", [0, 2, 4, 13])
def test_other_channel_counts_are_refused(tmp_path: Path, channels: int) -> None:
    with pytest.raises(ValueError, match=f"1 or 3 channels, got {channels}"):
        read_image(tmp_path / "a.png", channels)


def test_threads_read_alike(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for i, path in enumerate(paths):
        Image.fromarray(gradient(20 + i, 30)).save(path)
    results: list[list[np.ndarray]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda r=r: r.extend(pixels_of(p) for p in paths)) for r in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert len(result) == len(paths)
        for i, values in enumerate(result):
            np.testing.assert_array_equal(values, gradient(20 + i, 30))
