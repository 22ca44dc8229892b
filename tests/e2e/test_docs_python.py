"""docs/python.md is true: its blocks run one after the other, as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimkit import Run

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `photos`: two classes of twelve pictures, 96 pixels a side."""
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        tiles = rng.integers(64, 192, size=(6, 6, 3)).repeat(16, axis=0).repeat(16, axis=1) + 40 * (number % 2)
        Image.fromarray(tiles.astype(np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_the_page_runs(here: Path) -> None:
    namespace: dict[str, object] = {"__name__": "page"}
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) > 6
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    runs = sorted(path.name for path in (here / "runs").iterdir())
    assert runs == ["bands", "brighter", "inverted", "jittered", "logged", "long", "mine"]
    for name in runs:
        assert Run(here / "runs" / name).rows("end")
    assert [*(here / "board").iterdir()]
    assert (here / "bands.onnx").is_file()
    assert [*(here / "pictures").iterdir()]


def test_five_bands_take_fifteen_lines() -> None:
    """To train on a data set of one's own, probe it and export it."""
    (block,) = (block for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if "5 bands" in block)
    assert len([line for line in block.splitlines() if line.strip()]) + 1 <= 15  # and `import mimkit`
