"""The index of many images: in order, quick, small."""

import tracemalloc
from pathlib import Path

import pytest

from mimkit.data import find_images, split


def test_paths_are_sorted_as_whole_strings(tmp_path: Path) -> None:
    """Which differs from sorting folders first where a name goes on with a sign before the slash."""
    names = ["a/z.png", "a-b/x.png", "a.png", "a/b/c.png", "a/b-c.png", "a/b.png", "B/1.png", "a b/1.png", "é/1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(find_images(tmp_path).paths) == sorted(names)


@pytest.mark.parametrize("labelled", [True, False])
def test_an_index_costs_no_more_per_image_as_it_grows(tmp_path: Path, labelled: bool) -> None:
    """Bytes at the most and afterwards; 1.3 million images are to take less than 300 MB."""
    costs = []
    for count in (2_000, 40_000):
        paths = (f"train/n{i // 1300:08d}/n{i // 1300:08d}_{i % 1300}.JPEG" for i in range(count))
        lines = (f"{path}\t{path[6:15]}" if labelled else path for path in paths)
        (tmp_path / "list.txt").write_text("\n".join(lines))
        tracemalloc.start()
        images = split(tmp_path / "list.txt")
        kept, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sum(map(len, images)) == count
        costs.append((kept / count, most / count))
    assert costs[1][0] < 100
    assert costs[1][1] < 230
    assert costs[1][1] < 1.1 * costs[0][1]
