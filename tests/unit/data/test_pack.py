"""A pack: what goes in comes out, the split of the folder is kept, damage is noticed, it costs little memory."""

import io
import multiprocessing
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.samples import centred
from mimkit.data import Pack, find_all, find_images, load_in_order, read_image, split, write_pack
from mimkit.data.folder import all_with_splits
from mimkit.data.images import ImageList
from mimkit.data.pack import Packed
from mimkit.errors import BadImage

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def picture(path: Path, size: tuple[int, int], mode: str = "RGB", seed: int = 0, **options) -> Path:
    """A smooth picture of (width, height); the format follows the suffix."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(256, size=(5, 5, 4), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).convert(mode).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


def pack(data: Path, out: Path, **options) -> Packed:
    return write_pack(*all_with_splits(data), out, **options)


@pytest.fixture
def assorted(tmp_path: Path) -> Path:
    """Two classes, each with a train and a val folder; sizes, formats and modes of all kinds; one broken file."""
    folder = tmp_path / "photos"
    for part in ("train", "val"):
        for label in ("ant", "bee"):
            for i in range(3):
                place = folder / part / label
                picture(place / f"{i}.png", (40 + 20 * i, 90 - 20 * i), seed=i)
                picture(place / f"{i}.jpg", (30 + i, 20), seed=i, quality=80)
    picture(folder / "train" / "bee" / "grey.png", (70, 50), "L")
    picture(folder / "train" / "bee" / "clear.png", (20, 50), "RGBA")
    (folder / "train" / "ant" / "broken.jpg").write_bytes(b"broken")
    return folder


def test_images_come_out_as_they_went_in(assorted: Path, tmp_path: Path) -> None:
    done = pack(assorted, tmp_path / "a.pack", short_side=32, quality=95)
    whole, packed = find_all(assorted), find_all(tmp_path / "a.pack")
    broken = whole.paths.index("train/ant/broken.jpg")
    assert done.skipped == [(str(whole.path(broken)), "not an image, or broken at its start")]
    assert done.images == len(packed) == len(whole) - 1
    assert done.bytes == (tmp_path / "a.pack").stat().st_size
    assert list(packed.paths) == [path for path in whole.paths if path != "train/ant/broken.jpg"]
    store = packed.store
    assert isinstance(store, Pack)
    for index, name in enumerate(packed.paths):
        original, data = whole.path(whole.paths.index(name)), packed.content(index)
        assert isinstance(data, bytes)
        image = Image.open(io.BytesIO(data))
        assert image.format == "JPEG"
        assert image.size == (store.widths[index], store.heights[index])
        expected = read_image(original)
        scale = min(1.0, 32 / min(expected.size))
        assert image.size == tuple(round(side * scale) for side in expected.size)
        assert image.mode == ("L" if "grey" in name else "RGB")
        if name.endswith("jpg"):
            assert data == original.read_bytes()
        small = expected.resize(image.size, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(small, float) - np.asarray(read_image(data), float)).mean() < 4


def test_it_is_split_like_its_folder(assorted: Path, tmp_path: Path) -> None:
    pack(assorted, tmp_path / "a.pack")
    for ours, theirs, part in zip(split(tmp_path / "a.pack"), split(assorted), ("train", "val"), strict=True):
        names = [f"{part}/{path}" for path in theirs.paths]
        kept = [i for i, name in enumerate(names) if "broken" not in name]
        assert list(ours.paths) == [names[i] for i in kept]
        assert ours.classes == theirs.classes == ["ant", "bee"]
        assert ours.labels is not None
        assert theirs.labels is not None
        np.testing.assert_array_equal(ours.labels, theirs.labels[kept])
    (assorted / "train" / "ant" / "broken.jpg").unlink()
    pack(assorted / "train", tmp_path / "b.pack")  # where a hash of the name decides
    for share in (0.0, 0.2, 0.5):
        for ours, theirs in zip(split(tmp_path / "b.pack", share), split(assorted / "train", share), strict=True):
            assert list(ours.paths) == list(theirs.paths)
            assert ours.labels is not None
            assert ours.labels.tolist() == theirs.labels.tolist()  # type: ignore[union-attr]


def test_list_files_keep_their_labels_and_are_not_split_by_folders(assorted: Path, tmp_path: Path) -> None:
    listed = assorted / "some.txt"
    listed.write_text("train/ant/1.png\tx\nval/bee/1.png\ty\nval/ant/2.png\tx\n")
    pack(listed, tmp_path / "a.pack")
    images = find_images(tmp_path / "a.pack")
    assert images.labels is not None
    assert (images.labels.tolist(), images.classes) == ([0, 1, 0], ["x", "y"])
    assert [list(part.paths) for part in split(tmp_path / "a.pack")] == [list(part.paths) for part in split(listed)]
    repacked = tmp_path / "b.pack"
    pack(tmp_path / "a.pack", repacked)
    assert find_images(repacked).fingerprint() == images.fingerprint()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(assorted: Path, tmp_path: Path, workers: int) -> None:
    told: list[int] = []
    one = pack(assorted, tmp_path / "one.pack", short_side=24)
    many = pack(assorted, tmp_path / "many.pack", short_side=24, workers=workers, report=told.append)
    assert (tmp_path / "one.pack").read_bytes() == (tmp_path / "many.pack").read_bytes()
    assert one == many
    assert told[-1] == one.images + 1
    assert multiprocessing.active_children() == []


def test_fingerprints_tell_contents_apart_and_places_not(assorted: Path, tmp_path: Path) -> None:
    prints = []
    for number, options in enumerate([{}, {}, {"short_side": 16}, {"quality": 70}]):
        (tmp_path / str(number)).mkdir()
        pack(assorted, tmp_path / str(number) / "a.pack", **options)
        prints.append(find_images(tmp_path / str(number) / "a.pack").fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert Pack(tmp_path / "0" / "a.pack").source == find_all(assorted).fingerprint()


def test_an_image_that_was_damaged_is_skipped_and_named(assorted: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pack"
    pack(assorted, path)
    images = find_images(path)
    data = images.content(3)
    assert isinstance(data, bytes)
    whole = bytearray(path.read_bytes())
    whole[whole.index(data) + len(data) // 2] ^= 4
    path.write_bytes(whole)
    damaged = find_images(path)
    with pytest.raises(BadImage, match=r"a\.pack/train/.*checksum"):
        damaged.content(3)
    batches = list(load_in_order(centred(damaged, (8, 8)), batch_size=5))
    assert sum(len(batch) for batch in batches) == len(images) - 1
    ((name, reason),) = (skip for batch in batches for skip in batch.skipped)
    assert name == str(images.path(3))
    assert "checksum" in reason


def test_damage_to_all_else_is_refused(assorted: Path, tmp_path: Path) -> None:
    pack(assorted, tmp_path / "good.pack", short_side=16)
    good = (tmp_path / "good.pack").read_bytes()
    _, _, _, _, start, length, *_ = struct.unpack_from("<8sIIQQQ32s32s", good)
    assert start + length == len(good)
    bad = tmp_path / "bad.pack"
    for place in [8, 13, 20, 26, 36, 45, 80, 104, *range(start, len(good), 997), len(good) - 1]:
        spoiled = bytearray(good)
        spoiled[place] ^= 16
        bad.write_bytes(spoiled)
        with pytest.raises(ValueError, match=r"bad\.pack is (damaged|a pack of version)"):
            find_images(bad)
    for size in (9, 127, 128, start, len(good) - 1):
        bad.write_bytes(good[:size])
        with pytest.raises(ValueError, match=r"bad\.pack is damaged"):
            find_images(bad)
    bad.write_bytes(good + b"x")
    with pytest.raises(ValueError, match=f"{len(good) + 1} bytes long, written as {len(good)}"):
        find_images(bad)


def test_errors_leave_nothing_behind(assorted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out" / "a.pack"
    for options in ({"short_side": 0}, {"quality": 0}, {"quality": 101}):
        with pytest.raises(ValueError, match=f"got {next(iter(options.values()))}"):
            pack(assorted, out, **options)
    listed = tmp_path / "missing.txt"
    listed.write_text("a.png\nb.png")
    with pytest.raises(ValueError, match=r"none of the 2 images .*a\.png: no such file or directory"):
        pack(listed, out)
    out.write_bytes(b"old")

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*out/a\.pack"):
        pack(assorted, out, report=fail)
    assert [path.name for path in out.parent.iterdir()] == ["a.pack"]
    assert out.read_bytes() == b"old"


def test_too_long_for_a_jpeg(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "long.png", (70000, 1))
    picture(tmp_path / "photos" / "short.png", (40, 30))
    done = pack(tmp_path / "photos", tmp_path / "a.pack")
    assert done.images == 1
    assert "70000 x 1 pixels do not go into a JPEG" in done.skipped[0][1]


def answer(images: ImageList, replies: multiprocessing.SimpleQueue) -> None:
    replies.put((images.content(5), images.paths[5], len(images)))


def test_other_processes_open_it_again(assorted: Path, tmp_path: Path) -> None:
    pack(assorted, tmp_path / "a.pack")
    images = find_images(tmp_path / "a.pack").take([7, 1, 2, 3, 4, 9])
    context = multiprocessing.get_context("spawn")
    replies = context.SimpleQueue()
    process = context.Process(target=answer, args=(images, replies))
    process.start()
    process.join()
    assert replies.get() == (images.content(5), images.paths[5], 6)


def test_a_pack_replaced_under_a_run_is_noticed(assorted: Path, tmp_path: Path) -> None:
    pack(assorted, tmp_path / "a.pack")
    reopen, arguments = find_images(tmp_path / "a.pack").store.__reduce__()  # type: ignore[union-attr]
    assert reopen(*arguments).names == find_images(tmp_path / "a.pack").paths
    pack(assorted, tmp_path / "a.pack", short_side=8)
    with pytest.raises(ValueError, match="was replaced by another pack"):
        reopen(*arguments)
