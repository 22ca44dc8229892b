"""The index of many images: in order, quick, small."""

import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from mimkit.data import find_images, split
from mimkit.data.decode import image_suffixes


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
