"""Shards: images in tar files are found, read where they lie and dealt in an order; nothing else in them counts."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.samples import centred
from mimkit.data import ImageList, TrainBatches, find_all, find_images, read_image, split
from mimkit.data.order import SHARDS_AT_ONCE
from mimkit.errors import BadImage
from mimkit.evaluation.online import subset

Member = tuple[str, bytes]


def png(value: int, size: tuple[int, int] = (12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value % 256, value // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, members: Iterable[Member], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def shards(root: Path, counts: Iterable[int], stem: str = "some", classes: bool = False) -> Path:
    """Shards of one-coloured pictures, numbered over all; with classes, every third one of class 10."""
    number = 0
    for shard, count in enumerate(counts):
        members: list[Member] = []
        for _ in range(count):
            members += [(f"{number:04d}.png", png(number))]
            members += [(f"{number:04d}.cls", b"10" if number % 3 == 0 else b"9\n")] if classes else []
            number += 1
        tar(root / f"{stem}-{shard:03d}.tar", members)
    return root


def colours(images: ImageList) -> list[int]:
    """The number that each picture was made of."""
    pixels = [read_image(images.content(i)).getpixel((0, 0)) for i in range(len(images))]
    return [red + 256 * green for red, green, _ in pixels]  # type: ignore[misc]


def test_a_folder_a_range_a_file_and_a_list_of_shards(tmp_path: Path) -> None:
    root = shards(tmp_path / "shards", (3, 4, 1))
    names = [*(f"some-000.tar/{i:04d}.png" for i in range(3)), *(f"some-001.tar/{i:04d}.png" for i in range(3, 7))]
    names.append("some-002.tar/0007.png")
    images = find_images(root)
    assert images.paths == names
    assert images.path(7) == root / "some-002.tar" / "0007.png"
    assert colours(images) == list(range(8))
    assert images.labels is None
    assert images.shards is not None
    assert images.shards.tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
    assert find_images(root / "some-{000..002}.tar").fingerprint() == images.fingerprint()
    assert colours(find_images(root / "some-{001..002}.tar")) == [3, 4, 5, 6, 7]
    assert colours(find_images(root / "some-001.tar")) == [3, 4, 5, 6]
    (tmp_path / "list.txt").write_text("shards/some-002.tar\nshards/some-000.tar\n")
    assert colours(find_images(tmp_path / "list.txt")) == [7, 0, 1, 2]
    some = images.take([6, 0])
    assert (list(some.paths), colours(some)) == ([names[6], names[0]], [6, 0])
    assert colours(find_all(root)) == list(range(8))


def test_a_folder_with_image_files_is_a_folder_of_images(tmp_path: Path) -> None:
    root = shards(tmp_path / "mixed", (2,))
    (root / "a.png").write_bytes(png(1))
    assert find_images(root).paths == ["a.png"]


def test_only_regular_images_count(tmp_path: Path) -> None:
    """What points elsewhere is passed over, and a name is only a name."""
    path = tmp_path / "odd.tar"
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(200))
    with tarfile.open(path, "w") as archive:
        for kind, name, target in (
            (tarfile.SYMTYPE, "link.png", str(secret)),
            (tarfile.LNKTYPE, "hard.png", "../secret.png"),
            (tarfile.DIRTYPE, "folder.png", ""),
            (tarfile.FIFOTYPE, "pipe.png", ""),
            (tarfile.CHRTYPE, "device.png", ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        others = [("notes.txt", b"x"), ("0.json", b"{}"), ("sub/.hidden.png", png(3)), ("noend", png(4))]
        for name, data in [*others, ("../../escape.png", png(1)), ("/etc/abs.PNG", png(2)), ("a.rgb.png", png(5))]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    images = find_images(path)
    assert images.paths == ["odd.tar/../../escape.png", "odd.tar//etc/abs.PNG", "odd.tar/a.rgb.png"]
    assert colours(images) == [1, 2, 5]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / ".odd.tar.index.npz"])


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats_with_long_names(tmp_path: Path, format: int) -> None:
    long = (
        "/".join(["n" * 60] * 3) + "/été.png" if format != tarfile.USTAR_FORMAT else "n" * 60 + "/" + "m" * 60 + ".png"
    )
    path = tar(tmp_path / "a.tar", [("first.png", png(1)), (long, png(2)), ("last.png", png(3))], format)
    images = find_images(path)
    assert images.paths[1] == f"a.tar/{long}"
    assert colours(images) == [1, 2, 3]


def test_classes_come_from_cls_members(tmp_path: Path) -> None:
    images = find_images(shards(tmp_path / "all", (3, 3), classes=True))
    assert images.classes == ["9", "10"]
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 0, 1, 0, 0]
    tar(tmp_path / "some.tar", [("a.png", png(1)), ("a.cls", b"1"), ("b.png", png(2))])
    assert find_images(tmp_path / "some.tar").labels is None


def test_the_split_is_by_name_or_by_hash(tmp_path: Path) -> None:
    shards(tmp_path / "named", (3, 2), stem="train")
    shards(tmp_path / "named", (2,), stem="val")
    assert [len(part) for part in split(tmp_path / "named")] == [5, 2]
    shards(tmp_path / "folders" / "train", (4,))
    shards(tmp_path / "folders" / "test", (3,))
    assert [len(part) for part in split(tmp_path / "folders")] == [4, 3]
    train, held_out = split(shards(tmp_path / "plain", (50, 50)), 0.2)
    assert sorted(colours(train) + colours(held_out)) == list(range(100))
    assert 8 < len(held_out) < 35
    assert [len(part) for part in split(shards(tmp_path / "trainer", (5,), stem="trainer"), 0)] == [5, 0]


def test_the_index_is_kept_beside_its_shard_and_built_again_when_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shards(tmp_path, (3, 2), classes=True)
    first = find_images(root)
    opened = []
    really = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args, **more: opened.append(args[0]) or really(*args, **more))
    again = find_images(root)
    assert opened == []
    assert again.fingerprint() == first.fingerprint()
    monkeypatch.undo()
    tar(root / "some-000.tar", [("new.png", png(9))])
    assert colours(find_images(root)) == [9, 3, 4]
    (root / ".some-001.tar.index.npz").write_bytes(b"torn")
    assert colours(find_images(root)) == [9, 3, 4]


def test_a_disk_that_allows_no_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mimkit.data.shards.tar.write_bytes", refuse)
    assert colours(find_images(shards(tmp_path, (2, 2)))) == [0, 1, 2, 3]


def test_wrong_shards_are_named(tmp_path: Path) -> None:
    root = shards(tmp_path / "good", (1, 1))
    with pytest.raises(FileNotFoundError, match=r"some-002\.tar does not exist"):
        find_images(root / "some-{000..002}.tar")
    with pytest.raises(ValueError, match=r"the range 3\.\.1 is empty"):
        find_images(root / "some-{3..1}.tar")
    with pytest.raises(ValueError, match="no images in the 1 shards"):
        find_images(tar(tmp_path / "empty.tar", [("a.txt", b"x")]))
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match=r"bad\.tar cannot be read as an uncompressed tar file"):
        find_images(tmp_path / "bad.tar")
    with pytest.raises(FileNotFoundError, match=r"missing\.tar does not exist"):
        find_images(tmp_path / "missing.tar")


def test_shards_that_vanish_are_bad_images(tmp_path: Path) -> None:
    images = find_images(shards(tmp_path, (2, 2)))
    whole = (tmp_path / "some-000.tar").read_bytes()
    (tmp_path / "some-000.tar").write_bytes(whole[:1000])
    (tmp_path / "some-001.tar").unlink()
    for index, reason in ((1, "its shard was cut short"), (3, "no such file or directory")):
        with pytest.raises(BadImage, match=reason) as caught:
            images.content(index)
        assert caught.value.path == str(images.path(index))


# The order


def batches(images: ImageList, **options) -> TrainBatches:
    return TrainBatches(centred(images, (4, 4)), **({"batch_size": 4} | options))


def test_a_pass_reads_a_few_shards_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimkit.data.order.SHARDS_AT_ONCE", 3)
    images = find_images(shards(tmp_path, (4, 6, 2, 5, 5, 2, 4, 4)))
    assert images.shards is not None
    train = batches(images)
    orders = []
    for epoch in range(3):
        order = torch.cat([train.micro_batch_at(8 * epoch + step).indices for step in range(8)]).numpy()
        assert sorted(order) == list(range(32))
        dealt = images.shards[order]
        windows = list(dict.fromkeys(dealt.tolist()))
        groups = [set(windows[i : i + 3]) for i in range(0, 8, 3)]
        place = {shard: number for number, group in enumerate(groups) for shard in group}
        passed = [place[int(shard)] for shard in dealt]
        assert passed == sorted(passed)
        assert len(set(dealt[:8].tolist())) > 1  # shuffled among them
        orders.append(order.tolist())
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(sorted(set(images.shards[order[:8]].tolist()))) for order in orders}) > 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_batches_are_functions_of_their_number(tmp_path: Path) -> None:
    images = find_images(shards(tmp_path, (4, 6, 2, 5)))
    reference = [batches(images).micro_batch_at(number) for number in range(9)]
    for workers, start in ((0, 5), (2, 0), (1, 6)):
        running = batches(find_images(tmp_path), workers=workers).from_step(start)
        for expected in reference[start:]:
            batch = next(running)
            for name in ("images", "keys", "indices"):
                assert torch.equal(getattr(batch, name), getattr(expected, name))
        running.close()
    values = reference[0].images[:, 0, 0, 0]
    np.testing.assert_array_equal(values, reference[0].indices)


def test_looks_at_the_encoder_read_few_shards(tmp_path: Path) -> None:
    images = find_images(shards(tmp_path, [4] * 40))
    for part in (images, images.take(range(0, 160, 2))):
        some = subset(part, 20)
        assert len(some) == 20
        assert some.shards is not None
        assert len(set(some.shards.tolist())) <= SHARDS_AT_ONCE
        assert len(subset(part, 1000)) == len(part)
    again = subset(images, 20)
    assert again.paths == subset(images, 20).paths
