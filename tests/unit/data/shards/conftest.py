"""Shards on a server, and a cache to keep them in."""

from pathlib import Path

import pytest

from helpers.shards import shards
from mimkit.data import Cache
from mimkit.data.shards import urls as remote_module


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return shards(tmp_path / "local")


@pytest.fixture
def served(local: Path) -> Path:
    return local


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10**9)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAITS", "FIRST_WAITS"):
        monkeypatch.setattr(remote_module, name, (0.01, 0.01))
    monkeypatch.setattr("mimkit.data.shards.prefetch.WAITS", (0.01, 0.01))
    monkeypatch.setattr("mimkit.data.shards.prefetch._PAUSE", 0.05)


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bars of `datasets`, and a cache of the test's own."""
    pytest.importorskip("datasets").disable_progress_bars()
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
