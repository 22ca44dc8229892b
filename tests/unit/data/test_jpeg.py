"""Images opened by the fast decoder: Pillow's pixels but for rounding, the same boxes, the same files refused."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

from mimkit.data import decode, read_image
from mimkit.data import jpeg as fast
from mimkit.data.jpeg import JpegPicture, choose_decoder, open_image
from mimkit.errors import BadImage
from mimkit.views import Box, CenterCrop, PillowPicture, RandomResizedCrop, SimpleResizedCrop, Size, View

simplejpeg = pytest.importorskip("simplejpeg", reason="the fast decoder needs simplejpeg: pip install mimkit[fast]")

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
VIEWS = [RandomResizedCrop(), RandomResizedCrop(interpolation=BILINEAR), SimpleResizedCrop(), CenterCrop()]


def jpeg(picture: np.ndarray | Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned_by(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def opened(data: bytes, channels: int = 3) -> JpegPicture:
    picture = open_image(data, channels)
    assert isinstance(picture, JpegPicture)
    return picture


def error(some: np.ndarray, others: np.ndarray) -> float:
    """Mean absolute difference in grey levels."""
    assert some.shape == others.shape
    assert some.dtype == others.dtype == np.uint8
    return float(np.abs(some.astype(int) - others).mean())


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    """As JPEG: colour and grey, wide and square, with and without EXIF, once progressive."""
    coffee, cat, astronaut = pictures.coffee(), pictures.chelsea(), pictures.astronaut()
    return [
        jpeg(coffee, quality=85),
        jpeg(cat, quality=95, subsampling=0, progressive=True),
        jpeg(astronaut[:, :400], exif=turned_by(6)),
        jpeg(pictures.camera()),
    ]


# The pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}, {"mode": "L"}])
def test_undecorated_pixels_are_pillows(options: dict, channels: int) -> None:
    image = Image.fromarray(pictures.chelsea()[:131, :97])
    options = dict(options)
    data = jpeg(image.convert(options.pop("mode", "RGB")), **options)
    expected = read_image(data, channels)
    pixels = opened(data, channels).cut((0, 0, 97, 131), (131, 97), BICUBIC)
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pixels_are_pillows(orientation: int) -> None:
    data = jpeg(pictures.chelsea()[:60, :90], exif=turned_by(orientation))
    picture, expected = opened(data), np.asarray(read_image(data))
    assert picture.size == expected.shape[1::-1]
    left, top, right, bottom = box = (7, 11, 48, 52)
    np.testing.assert_array_equal(picture.cut(box, (41, 41), BICUBIC), expected[top:bottom, left:right])
    resized = PillowPicture(Image.fromarray(expected)).cut(box, (30, 20), BICUBIC)
    assert error(picture.cut(box, (30, 20), BICUBIC), resized) < 0.5


def test_orientation_may_lie_in_xmp() -> None:
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    data = jpeg(pictures.chelsea()[:60, :90], xmp=xmp)
    assert read_image(data).size == opened(data).size == (60, 90)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", VIEWS)
def test_views_differ_from_pillows_by_rounding(jpegs: list[bytes], view: View, channels: int) -> None:
    errors = []
    for data in jpegs:
        picture, reference = opened(data, channels), read_image(data, channels)
        for seed, size in enumerate([(224, 224), (64, 64), (160, 224), (300, 280), (17, 9)]):
            views = [view(image, size, np.random.default_rng(seed)) for image in (picture, reference)]
            errors.append(error(*views))
    assert max(errors) < 0.5
    assert np.mean(errors) < 0.1


@pytest.mark.parametrize("folder", ["coco128", "imagenette128/val"])
def test_views_of_real_photographs_differ_by_rounding(data_root: Path, folder: str) -> None:
    paths = sorted((data_root / folder).rglob("*.jpg"))
    errors = []
    for number, path in enumerate(paths[:: len(paths) // 40]):
        view = VIEWS[number % len(VIEWS)]
        views = [
            view(image, (224, 224), np.random.default_rng(number)) for image in (open_image(path), read_image(path))
        ]
        errors.append(error(*views))
    assert max(errors) < 0.5
    assert np.mean(errors) < 0.1


def test_strips_and_single_pixels() -> None:
    for width, height in [(1, 1), (2, 1), (1, 300), (3000, 1), (1, 20000)]:
        values = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
        data = jpeg(values, subsampling=0)
        for view in VIEWS:
            views = [view(image, (32, 24), np.random.default_rng(0)) for image in (opened(data), read_image(data))]
            assert error(*views) < 0.5


def test_other_filters_are_pillows_own(jpegs: list[bytes]) -> None:
    for interpolation in (Image.Resampling.LANCZOS, Image.Resampling.BOX, Image.Resampling.NEAREST):
        for channels in (1, 3):
            view = RandomResizedCrop(interpolation=interpolation, scale=(1.0, 1.0), ratio=(1.0, 1.0))
            data = jpeg(pictures.astronaut()[:200, :200])
            views = [
                view(im, (50, 60), np.random.default_rng(0))
                for im in (opened(data, channels), read_image(data, channels))
            ]
            np.testing.assert_array_equal(*views)


# Large originals


@pytest.fixture(scope="module")
def original() -> bytes:
    """A photograph of three megapixels."""
    return jpeg(Image.fromarray(pictures.astronaut()).resize((1999, 1501), Image.Resampling.LANCZOS), quality=90)


@pytest.mark.parametrize(
    ("box", "size", "factor"),
    [
        ((0, 0, 1999, 1501), (90, 90), 8),
        ((0, 0, 1999, 1501), (94, 94), 4),
        ((101, 53, 1001, 953), (224, 224), 2),
        ((101, 53, 1001, 953), (112, 112), 4),
        ((101, 53, 1001, 953), (112, 230), 1),
        ((101, 53, 301, 253), (224, 224), 1),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_large_originals_are_decoded_no_finer_than_needed(
    original: bytes, box: Box, size: Size, factor: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = spy_on_decoding(monkeypatch)
    pixels = opened(original, channels).cut(box, size, BICUBIC)
    assert shapes == [(-(-1501 // factor), -(-1999 // factor))]
    assert error(pixels, PillowPicture(read_image(original, channels)).cut(box, size, BICUBIC)) < (
        1 if factor > 1 else 0.5
    )


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_large_originals_may_be_turned(orientation: int) -> None:
    image = Image.fromarray(pictures.astronaut()).resize((1303, 1001), Image.Resampling.LANCZOS)
    data = jpeg(image, exif=turned_by(orientation))
    view = RandomResizedCrop(scale=(0.8, 1.0))
    for seed in range(4):
        picture = opened(data)
        views = [view(im, (96, 128), np.random.default_rng(seed)) for im in (picture, read_image(data))]
        assert picture._decoded is not None
        assert picture._decoded[0] > 1
        assert error(*views) < 1


def spy_on_decoding(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(height, width) of what simplejpeg decodes from now on."""
    shapes: list[tuple[int, int]] = []
    decode_jpeg = simplejpeg.decode_jpeg

    def spy(*arguments, **options) -> np.ndarray:
        pixels = decode_jpeg(*arguments, **options)
        shapes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    return shapes


def test_several_cuts_need_one_decoding(jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = spy_on_decoding(monkeypatch)
    picture = opened(jpegs[0])
    cuts = [RandomResizedCrop()(picture, (64, 64), np.random.default_rng(seed)) for seed in range(3)]
    assert shapes == [(400, 600)]
    again = [RandomResizedCrop()(opened(jpegs[0]), (64, 64), np.random.default_rng(seed)) for seed in range(3)]
    np.testing.assert_array_equal(cuts, again)


# Boxes


class Recorder:
    """A picture that only notes what would be cut."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.cuts: list[tuple[Box, Size]] = []

    def cut(self, box: Box, size: Size, interpolation: Image.Resampling) -> np.ndarray:
        self.cuts.append((box, size))
        return np.tile(np.arange(size[1]), (size[0], 1)).astype(np.uint8)


def test_every_decoder_gives_the_same_boxes_and_flips(jpegs: list[bytes]) -> None:
    for data in [*jpegs, jpeg(pictures.chelsea()[:50, :70], exif=turned_by(8))]:
        recorders = [Recorder(open_image(data, decode=decoder).size) for decoder in ("auto", "simplejpeg", "pillow")]
        for view in VIEWS:
            for seed in range(5):
                drawn = [view(recorder, (32, 32), np.random.default_rng(seed)) for recorder in recorders]
                assert all((drawn[0] == other).all() for other in drawn)
        assert recorders[0].cuts == recorders[1].cuts == recorders[2].cuts


# What simplejpeg does not read


def test_the_rest_is_pillows_bit_for_bit(tmp_path: Path) -> None:
    image = Image.fromarray(pictures.chelsea()[:100, :120])
    files = {"a.png": image, "b.jpg": image.convert("CMYK"), "c.png": image.convert("RGBA"), "d.gif": image.quantize(8)}
    for name, stored in files.items():
        stored.save(tmp_path / name)
        for source in (tmp_path / name, (tmp_path / name).read_bytes()):
            picture = open_image(source)
            assert isinstance(picture, PillowPicture)
            np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(read_image(tmp_path / name)))


def test_pillow_can_be_asked_for(jpegs: list[bytes]) -> None:
    for data in jpegs:
        views = [
            RandomResizedCrop()(image, (64, 64), np.random.default_rng(0))
            for image in (open_image(data, decode="pillow"), read_image(data))
        ]
        np.testing.assert_array_equal(*views)


def test_without_simplejpeg(jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_decoder("auto") == choose_decoder("simplejpeg") == "simplejpeg"
    assert choose_decoder("pillow") == "pillow"
    monkeypatch.setattr(fast, "_simplejpeg", lambda: None)
    assert choose_decoder("auto") == choose_decoder("pillow") == "pillow"
    assert isinstance(open_image(jpegs[0]), PillowPicture)
    with pytest.raises(ValueError, match=r"--decode simplejpeg needs simplejpeg: pip install mimkit\[fast\]"):
        open_image(jpegs[0], decode="simplejpeg")


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channel_counts_are_refused(jpegs: list[bytes], channels: int) -> None:
    with pytest.raises(ValueError, match=f"1 or 3 channels, got {channels}"):
        open_image(jpegs[0], channels)


# Bad files


def outcome(source: Path | bytes, decoder: fast.Decoder, channels: int = 3) -> np.ndarray | tuple[str, str]:
    """A view, or what is wrong."""
    try:
        return RandomResizedCrop()(open_image(source, channels, decode=decoder), (32, 32), np.random.default_rng(0))
    except BadImage as error:
        return error.path, error.reason


def test_bad_files_are_bad_either_way(data_root: Path) -> None:
    bad = set()
    for path in [*sorted((data_root / "corrupt").iterdir()), data_root / "corrupt" / "missing.jpg"]:
        results = [outcome(path, decoder) for decoder in ("auto", "pillow")]
        if isinstance(results[1], tuple):
            assert results[0] == results[1]
            assert results[0][0] == str(path)
            bad.add(path.name[:2])
        else:
            assert error(*results) < 0.5
    assert bad == {"01", "02", "03", "04", "11", "12", "mi"}


def test_any_truncation_is_bad(jpegs: list[bytes], tmp_path: Path) -> None:
    for number, data in enumerate(jpegs):
        for length in [*range(0, 700, 83), *np.linspace(700, len(data) - 3, 9).astype(int)]:
            (tmp_path / "a.jpg").write_bytes(data[:length])
            auto, pillow = (outcome(tmp_path / "a.jpg", decoder) for decoder in ("auto", "pillow"))
            assert isinstance(pillow, tuple), (number, length)
            assert auto == pillow


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_is_bad_or_read_as_pillow_does(jpegs: list[bytes]) -> None:
    rng = np.random.default_rng(0)
    bad = 0
    for number in range(200):
        whole = np.frombuffer(jpegs[number % len(jpegs)], dtype=np.uint8)
        whole = whole if number % 3 else np.delete(whole, rng.integers(len(whole), size=1))
        damaged = whole.copy()
        end = len(whole) if number % 2 else 700
        damaged[rng.integers(end, size=2)] = rng.integers(256, size=2)
        auto, pillow = (outcome(damaged.tobytes(), decoder, 1 + 2 * (number % 2)) for decoder in ("auto", "pillow"))
        if isinstance(pillow, tuple):
            bad += 1
            assert auto == pillow
        else:
            assert isinstance(auto, np.ndarray)
            assert error(auto, pillow) < 0.5
    assert 20 < bad < 180


def test_bombs_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 2000)
    shapes = spy_on_decoding(monkeypatch)
    Image.new("RGB", (51, 40)).save(tmp_path / "bomb.jpg")
    for decoder in ("auto", "pillow"):
        with pytest.raises(BadImage, match=r"bomb\.jpg: 51 x 40 pixels, more than the 2000 allowed"):
            open_image(tmp_path / "bomb.jpg", decode=decoder)
    assert shapes == []


def test_threads_cut_alike(jpegs: list[bytes]) -> None:
    view = RandomResizedCrop()
    expected = [view(opened(data), (48, 48), np.random.default_rng(0)) for data in jpegs]
    results: list[list[np.ndarray]] = [[] for _ in range(4)]

    def work(result: list[np.ndarray]) -> None:
        result.extend(view(opened(data), (48, 48), np.random.default_rng(0)) for data in jpegs)

    threads = [threading.Thread(target=work, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert len(result) == len(jpegs)
        for pixels, reference in zip(result, expected, strict=True):
            np.testing.assert_array_equal(pixels, reference)
