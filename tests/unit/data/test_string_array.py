"""Many strings in one array: a sequence like any other, which processes share."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from mimkit.data.images import ImageList
from mimkit.data.string_array import StringArray

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def memory_of_its_own() -> float:
    """MiB that this process shares with none."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def touch_all(images: ImageList, replies: multiprocessing.SimpleQueue) -> None:
    before = memory_of_its_own()
    for index in np.random.default_rng(0).integers(len(images), size=20000):
        assert images.path(int(index)).name
    replies.put(memory_of_its_own() - before)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="looks into /proc")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_share_the_names() -> None:
    """A list of strings would be copied, page by page: reading a string writes its reference count."""
    context = multiprocessing.get_context("fork")
    replies, grown = context.SimpleQueue(), []
    for count in (1000, 300_000):
        images = ImageList(Path("x"), [f"class_{i % 1000:04d}/picture_{i:08d}.jpg" for i in range(count)])
        process = context.Process(target=touch_all, args=(images, replies))
        process.start()
        grown.append(replies.get())
        process.join()
    assert grown[1] - grown[0] < 3  # MiB; the strings would be 25


def test_names_are_a_sequence_of_any_bytes() -> None:
    texts = ["", "a", "été/東京", os.fsdecode(b"\xff\xfe"), "a"]
    names = StringArray.of(texts)
    assert (list(names), len(names), names[-1], names[1:3]) == (texts, 5, "a", texts[1:3])
    assert names == texts
    assert names != texts[:4]
    assert names != "aaaaa"
    assert (names.index("a"), names.count("a"), "b" in names) == (1, 2, False)
    assert list(names.take(np.array([3, 0, 3]))) == [texts[3], "", texts[3]]
    assert list(StringArray.of([])) == []
    with pytest.raises(IndexError):
        names[5]
