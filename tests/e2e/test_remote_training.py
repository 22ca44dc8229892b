"""Training from shards at a URL: the same as from the shards themselves, whatever the server does meanwhile."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.runs import fingerprint, settings
from helpers.servers import ShardServer
from mimkit.cli.main import main
from mimkit.data import Cache, find_images
from mimkit.errors import TrainingStopped
from mimkit.pretraining import pretrain, resume
from mimkit.settings import Settings
from mimkit.training.machine import Machine
from mimkit.training.run_folder import Run

pytest.importorskip("aiohttp")


@pytest.fixture
def served(tmp_path: Path, make_photos) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    files = sorted(make_photos(tmp_path / "photos", count=40).glob("*.png"))
    for number in range(4):
        with tarfile.open(folder / f"train-{number}.tar", "w") as archive:
            for file in files[10 * number : 10 * number + 10]:
                archive.add(file, file.name)
    return folder


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimkit.data.shards.prefetch.WAITS", (0.01,))
    monkeypatch.setattr("mimkit.data.shards.urls.FIRST_WAITS", (0.01,))
    monkeypatch.setattr("mimkit.data.order.SHARDS_AT_ONCE", 1)


def test_a_server_that_dies_and_comes_back(tmp_path: Path, server: ShardServer, capsys) -> None:
    """The run stops with a line and goes on, on a machine with nothing kept, to the weights of an undisturbed one."""
    machine = Machine(workers=0, checkpoint_minutes=0, cache=tmp_path / "cache", cache_gb=1)
    url = f"{server.url}/train-{{0..3}}.tar"
    assert pretrain("small", replace(settings(server.folder), epochs=3), tmp_path / "here", machine=machine)
    find_images(url, Cache.at(machine.cache))  # looks into each shard
    for path in machine.cache.glob("*.tar"):
        path.unlink()
    server.gets.clear()
    save = Run.save

    def save_and_break(self, step, *rest, **options):
        save(self, step, *rest, **options)
        server.fail = lambda method, path: 503
        for path in machine.cache.glob("*.tar"):
            path.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", save_and_break)
        with pytest.raises(TrainingStopped, match=r"\.tar cannot be fetched: .*503.* go on with: mimkit resume"):
            pretrain("small", replace(settings(url), epochs=3), tmp_path / "far", machine=machine)
    assert main(["resume", str(tmp_path / "far"), "--workers", "0", "--cache", str(tmp_path / "cache")]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"mimkit: {server.url}/train-0.tar cannot be")
    server.fail = lambda method, path: None
    elsewhere = Machine(workers=0, checkpoint_minutes=0, cache=tmp_path / "elsewhere")
    assert resume(Run(tmp_path / "far"), machine=elsewhere)
    assert fingerprint(tmp_path / "far") == fingerprint(tmp_path / "here")
    facts = json.loads((tmp_path / "far" / "run.json").read_text())
    assert facts["settings"]["data"] == facts["data"]["path"] == url
    assert Settings.from_json(facts["settings"]).data == url
    assert url in (tmp_path / "far" / "report.html").read_text()


def test_commands_take_urls(tmp_path: Path, server: ShardServer, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mimkit.data.shards.urls.WAITS", (0.01,))
    url = f"{server.url}/train-{{0..3}}.tar"
    source = "random:vit_tiny_patch16_224(depth=1)"
    out = tmp_path / "features.npz"
    options = ["--image-size", "32", "--workers", "0"]
    assert main(["embed", source, "--data", url, "--out", str(out), *options]) == 0
    assert out.is_file()
    assert main(["pack", url, "--out", str(tmp_path / "a.pack"), "--workers", "0"]) == 0
    assert main(["pack", str(server.folder), "--out", str(tmp_path / "b.pack"), "--workers", "0"]) == 0
    assert (tmp_path / "a.pack").read_bytes() == (tmp_path / "b.pack").read_bytes()
    capsys.readouterr()
    for arguments, code, words in (
        (["probe", source, "--data", url, *options], 2, "has no class folders: a probe needs labels"),
        (["pretrain", "small", "--data", f"{server.url}/no.tar", "--out", "x"], 2, "--data: the shard http"),
        (["pretrain", "small", "--data", url, "--out", "x", "--cache-gb", "0"], 2, "--cache-gb must be above 0, got 0"),
        (["pretrain", "small", "--data", url, "--out", "x", "--cache-gb", "0.00001"], 2, "give --cache-gb"),
        (["embed", source, "--data", "http://127.0.0.1:9/a.tar", "--out", "x"], 1, "cannot be fetched"),
    ):
        assert main(arguments) == code
        assert words in (lines := capsys.readouterr().err.strip().splitlines())[-1]
        assert lines[-1].startswith("mimkit: ")
