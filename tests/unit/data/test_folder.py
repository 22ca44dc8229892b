"""Which images a folder or a list file holds, their classes, and which of them are held out."""

import os
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from helpers.files import touch
from mimkit.data import ImageList, find_images, split
from mimkit.data.decode import image_suffixes
from mimkit.data.folder import _choose

# Finding


def test_only_visible_image_files_in_sorted_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.png", "sub/deep/c.jpeg", "é 東京.webp", "notes.txt", "video.mpg", "paper.pdf", "noname")
    touch(tmp_path, ".hidden.jpg", "._a.png", ".git/d.png", "folder.jpg/keep.txt", "folder.jpg/inside.png", "x.eps")
    images = find_images(tmp_path)
    assert images.paths == ["a.png", "b.JPG", "folder.jpg/inside.png", "sub/deep/c.jpeg", "é 東京.webp"]
    assert images.root == tmp_path
    assert images.labels is None
    assert images.classes is None
    assert len(images) == 5
    assert images.path(3) == tmp_path / "sub" / "deep" / "c.jpeg"


def test_folder_of_odd_files(data_root: Path) -> None:
    paths = find_images(data_root / "corrupt").paths
    assert len(paths) == 12
    assert "12_directory.jpg" not in paths


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a.png")
    data = touch(tmp_path / "data", "b.png", "sub/c.png")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "sub" / "up").symlink_to(data)
    (data / "itself").symlink_to(data / "itself")
    (data / "nowhere.png").symlink_to(data / "missing.png")
    (data / "file.png").symlink_to(data / "b.png")
    assert find_images(data).paths == ["b.png", "file.png", "linked/a.png", "sub/c.png"]


def test_what_is_no_regular_file_is_passed_over(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert find_images(tmp_path).paths == ["a.png"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    try:
        touch(tmp_path, os.fsdecode(b"caf\xe9.png"), "a.png")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    images = find_images(tmp_path)
    assert len(images) == 2
    assert all(images.path(i).is_file() for i in range(2))
    assert len(images.fingerprint()) == 64
    assert sum(map(len, split(tmp_path))) == 2


def test_first_folders_are_classes(tmp_path: Path) -> None:
    touch(tmp_path, "zebra/1.png", "ant/deep/2.png", "ant/1.png")
    images = find_images(tmp_path)
    assert images.paths == ["ant/1.png", "ant/deep/2.png", "zebra/1.png"]
    assert images.classes == ["ant", "zebra"]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1]
    assert images.labels.dtype == np.int64


@pytest.mark.parametrize("names", [("ant/1.png", "ant/2.png"), ("ant/1.png", "bee/1.png", "loose.png")])
def test_no_classes_with_one_folder_or_loose_images(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert find_images(touch(tmp_path, *names)).classes is None


def test_messages_name_the_path_in_one_line(tmp_path: Path) -> None:
    for data, error, words in [
        (tmp_path / "missing", FileNotFoundError, "missing does not exist"),
        (touch(tmp_path / "empty", "a.txt"), ValueError, r"no images in .*empty .*looked for \.jpg"),
        (touch(tmp_path, "a.png") / "a.png", ValueError, r"a\.png is neither a folder nor a list"),
        (touch(tmp_path, "none.txt") / "none.txt", ValueError, r"none\.txt lists no images"),
    ]:
        with pytest.raises(error, match=words) as caught:
            find_images(data)
        assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "locked/b.png")
    (tmp_path / "locked").chmod(0)
    try:
        if os.access(tmp_path / "locked", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(ValueError, match="locked cannot be read"):
            find_images(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)


# List files


def test_list_file_in_its_order(tmp_path: Path) -> None:
    listed = tmp_path / "some.txt"
    listed.write_bytes(b"\xef\xbb\xbfsub/b.png\r\n\r\n/elsewhere/a b.jpg\r\nmissing\r\n")
    images = find_images(listed)
    assert images.paths == ["sub/b.png", "/elsewhere/a b.jpg", "missing"]
    assert images.path(0) == tmp_path / "sub" / "b.png"
    assert images.path(1) == Path("/elsewhere/a b.jpg")
    assert images.labels is None


def test_list_file_with_classes(tmp_path: Path) -> None:
    listed = tmp_path / "some.txt"
    listed.write_text("a.png\tzebra\nb.png\tant\nc.png\tzebra", encoding="utf-8")
    images = find_images(listed)
    assert images.classes == ["ant", "zebra"]
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]

    listed.write_text("a.png\tzebra\nb.png\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"none to b\.png"):
        find_images(listed)
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        find_images(listed)


# Holding out


def members(root: Path, count: int) -> Path:
    return touch(root, *(f"{i:05d}.png" for i in range(count)))


def test_given_folders_are_used_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "train/ant/1.png", "train/bee/1.png", "val/ant/2.png", "val/bee/2.png", "other/3.png")
    train, held_out = split(tmp_path)
    assert (train.root, train.paths) == (tmp_path / "train", ["ant/1.png", "bee/1.png"])
    assert (held_out.root, held_out.paths) == (tmp_path / "val", ["ant/2.png", "bee/2.png"])
    assert train.classes == held_out.classes == ["ant", "bee"]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_names_of_held_out_folders(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "train/1.png", "train/2.png", f"{name}/3.png")
    train, held_out = split(tmp_path)
    assert (train.paths, held_out.paths) == (["1.png", "2.png"], ["3.png"])


def test_empty_held_out_folders_do_not_count(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.png", "train/2.png", "val/notes.txt", "test/3.png")
    assert split(tmp_path)[1].root == tmp_path / "test"
    (tmp_path / "test" / "3.png").unlink()
    train, held_out = split(tmp_path)
    assert train.root == held_out.root == tmp_path
    assert len(train) == len(held_out) == 1


def test_differing_classes_are_united(tmp_path: Path) -> None:
    touch(tmp_path, "train/bee/1.png", "train/ant/1.png", "val/cat/1.png")
    train, held_out = split(tmp_path)
    assert train.classes == held_out.classes == ["ant", "bee", "cat"]
    assert train.labels is not None
    assert held_out.labels is not None
    assert (train.labels.tolist(), held_out.labels.tolist()) == ([0, 1], [2])


def test_imagenette_keeps_its_split(data_root: Path) -> None:
    train, held_out = split(data_root / "imagenette128")
    assert (len(train), len(held_out)) == (9469, 3925)
    assert train.classes == held_out.classes
    assert train.classes is not None
    assert len(train.classes) == 10


def test_the_share_is_about_right_and_nothing_is_lost(tmp_path: Path) -> None:
    members(tmp_path, 2000)
    train, held_out = split(tmp_path, 0.25)
    assert sorted([*train.paths, *held_out.paths]) == find_images(tmp_path).paths
    assert not set(train.paths) & set(held_out.paths)
    assert abs(len(held_out) - 500) < 3 * (2000 * 0.25 * 0.75) ** 0.5
    assert split(tmp_path, 0.25)[1].paths == held_out.paths
    assert set(held_out.paths) < set(split(tmp_path, 0.5)[1].paths)


def test_held_out_images_stay_so_when_others_come_and_the_folder_moves(tmp_path: Path) -> None:
    first = split(members(tmp_path / "a", 300))[1].paths
    more = split(members(tmp_path / "b", 600))[1].paths
    assert [path for path in more if path < "00300"] == first


def test_this_choice_never_changes() -> None:
    """A later version that chose others would train on what a run has held out."""
    images = ImageList(Path("x"), [f"{i}.png" for i in range(100)])
    assert np.flatnonzero(_choose(images, 0.1)).tolist() == [25, 40, 41, 60, 63]


def test_nothing_held_out(tmp_path: Path) -> None:
    touch(tmp_path, "ant/1.png", "bee/1.png")
    train, held_out = split(tmp_path, 0)
    assert (len(train), len(held_out)) == (2, 0)
    assert held_out.classes == train.classes == ["ant", "bee"]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_no_class_loses_its_last_image_and_one_is_held_out(tmp_path: Path, share: float) -> None:
    for count in range(1, 9):
        data = touch(tmp_path / str(count), *(f"{c}/{i}.png" for c in ("ant", "bee", "cat") for i in range(count)))
        touch(data, "bee/more.png")
        train, held_out = split(data, share)
        assert train.labels is not None
        assert set(train.labels.tolist()) == {0, 1, 2}
        assert len(held_out) >= 1
        assert len(train) + len(held_out) == 3 * count + 1


def test_single_images(tmp_path: Path) -> None:
    assert [len(part) for part in split(members(tmp_path / "one", 1), 0.99)] == [1, 0]
    assert [len(part) for part in split(members(tmp_path / "two", 2), 0.001)] == [1, 1]
    assert [len(part) for part in split(touch(tmp_path / "classes", "ant/1.png", "bee/1.png"), 0.001)] == [1, 1]


def test_the_one_held_out_image_comes_from_a_class_that_has_more() -> None:
    for i in range(30):
        images = ImageList(Path("x"), [f"a/{i}", f"b/{i}", f"b/{i}'"], np.array([0, 1, 1]), ["a", "b"])
        chosen = _choose(images, 1e-9)
        assert chosen.sum() == 1
        assert not chosen[0]


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_bad_shares_are_named(tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match=f"held-out share .* got {share}"):
        split(tmp_path, share)


def test_paths_are_sorted_as_whole_strings(tmp_path: Path) -> None:
    """Which differs from sorting folders first where a name goes on with a sign before the slash."""
    names = ["a/z.png", "a-b/x.png", "a.png", "a/b/c.png", "a/b-c.png", "a/b.png", "B/1.png", "a b/1.png", "é/1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(find_images(tmp_path).paths) == sorted(names)


def cost(data: Path, count: int) -> tuple[float, float]:
    """Bytes for each of so many images, once they are split and at the most."""
    tracemalloc.start()
    images = split(data)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, images)) == count
    return kept / count, most / count


def assert_flat(costs: list[tuple[float, float]]) -> None:
    """Of few images and of many: 1.3 million are to take less than 300 MB."""
    (_, most_of_few), (kept, most) = costs
    assert kept < 100
    assert most < 230
    assert most < 1.1 * most_of_few


@pytest.mark.parametrize("labelled", [True, False])
def test_an_index_costs_no_more_per_image_as_it_grows(tmp_path: Path, labelled: bool) -> None:
    costs = []
    for count in (2_000, 40_000):
        paths = (f"train/n{i // 1300:08d}/n{i // 1300:08d}_{i % 1300}.JPEG" for i in range(count))
        lines = (f"{path}\t{path[6:15]}" if labelled else path for path in paths)
        (tmp_path / "list.txt").write_text("\n".join(lines))
        costs.append(cost(tmp_path / "list.txt", count))
    assert_flat(costs)


def test_a_folder_costs_no_more_per_image_as_it_grows(tmp_path: Path) -> None:
    costs = []
    for count in (400, 4_000):
        for folder in (tmp_path / str(count) / f"n{i:08d}" for i in range(count // 200)):
            folder.mkdir(parents=True)
            for i in range(200):
                os.close(os.open(folder / f"{folder.name}_{i}.JPEG", os.O_CREAT))
        image_suffixes()  # what Pillow loads on first use is no part of it
        costs.append(cost(tmp_path / str(count), count))
    assert_flat(costs)


def test_a_folder_of_images_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once more for tar or parquet files: in a million files that takes seconds."""
    for i in range(30):
        (tmp_path / f"{i:02d}").mkdir()
        (tmp_path / f"{i:02d}" / "1.jpg").touch()
    looked_at: Counter[str] = Counter()
    scandir = os.scandir

    def count(path: str) -> object:
        looked_at[Path(path).name] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", count)
    assert sum(map(len, split(tmp_path))) == 30
    del looked_at[tmp_path.name], looked_at["00"]  # up to the first image twice
    assert set(looked_at.values()) == {1}
    assert len(looked_at) == 29
