"""`mimkit pack`, and training, probing and embedding from what it writes; the same from shards."""

import json
import re
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from helpers.runs import fingerprint, settings
from mimkit.cli.main import main
from mimkit.data import find_all
from mimkit.errors import TrainingStopped
from mimkit.pretraining import pretrain, resume
from mimkit.training.machine import Machine
from mimkit.training.run_folder import Run

HERE = Machine(workers=0, checkpoint_minutes=0)


@pytest.fixture(scope="module")
def packed(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "photos.pack"
    assert main(["pack", str(photos), "--out", str(out), "--short-side", "36", "--workers", "0"]) == 0
    return out


@pytest.fixture(scope="module")
def shards(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    files = sorted(photos.rglob("*.png"))
    for number in range(4):
        with tarfile.open(folder / f"photos-{number}.tar", "w") as archive:
            for file in files[10 * number : 10 * number + 10]:
                archive.add(file, file.name)
                label = folder / "label.txt"
                label.write_text(file.parent.name)
                archive.add(label, file.with_suffix(".cls").name)
                label.unlink()
    return folder


class Interrupted(Exception):
    """Stands for a kill: nothing gets the chance to save."""


def run_with_kills(data, out, kills, **changes):
    """Train, interrupted after some numbers of steps, each time without a word, and each time resumed."""
    request = replace(settings(data), epochs=2, probe_every=1, **changes)
    save = Run.save
    left = list(kills)

    def dying(self, step, checkpoint, *world, **options):
        if left and step >= left[0]:
            left.pop(0)
            raise Interrupted
        save(self, step, checkpoint, *world, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", dying)
        for _ in range(len(kills) + 1):
            try:
                if out.exists():
                    assert resume(Run(out), machine=HERE)
                else:
                    assert pretrain("small", request, out, machine=HERE)
            except Interrupted:
                continue
    assert not left
    return fingerprint(out)


@pytest.mark.parametrize(("kind", "repeats"), [("packed", 2), ("shards", 1)])
def test_killed_runs_end_bit_identical(request, kind, repeats, tmp_path):
    data = request.getfixturevalue(kind)
    undisturbed = run_with_kills(data, tmp_path / "a", [], repeats=repeats)
    assert run_with_kills(data, tmp_path / "b", [2, 3, 7], repeats=repeats) == undisturbed
    row = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[0])
    assert row["kind"] == "probe"
    assert row["classes"] == 2


def test_a_pack_of_small_jpegs_trains_as_their_folder_does(data_root, tmp_path):
    """They are kept byte for byte, so that the runs are the same to the bit."""
    folder = tmp_path / "some"
    for part in ("train", "val"):
        for label in ("church", "tench"):
            (folder / part / label).mkdir(parents=True)
            for file in sorted((data_root / "imagenette128" / part / label).iterdir())[:12]:
                (folder / part / label / file.name).write_bytes(file.read_bytes())
    assert main(["pack", str(folder), "--out", str(tmp_path / "some.pack"), "--workers", "0"]) == 0
    runs = [run_with_kills(data, tmp_path / f"run-{data.name}", []) for data in (folder, tmp_path / "some.pack")]
    assert runs[0] == runs[1]


def test_another_pack_does_not_resume_a_run(photos, tmp_path):
    data, out = tmp_path / "photos.pack", tmp_path / "run"
    assert main(["pack", str(photos), "--out", str(data), "--workers", "0"]) == 0
    with pytest.raises(Interrupted):
        run_with_kills_once(data, out)
    arguments = ["pack", str(photos), "--out", str(data), "--workers", "0", "--quality", "50"]
    assert main(arguments) == 2  # it is there
    assert main([*arguments, "--overwrite"]) == 0
    with pytest.raises(ValueError, match="no longer those that"):
        resume(Run(out), machine=HERE)


def run_with_kills_once(data, out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", lambda *_, **__: (_ for _ in ()).throw(Interrupted))
        pretrain("small", settings(data), out, machine=HERE)


def test_probe_and_embed_take_packs_and_shards(packed, shards, photos, tmp_path, capsys):
    source = ["random:test_vit", "--image-size", "32", "--workers", "0"]
    for data in (packed, shards, photos):
        capsys.readouterr()
        assert main(["probe", *source, "--data", str(data), "--kind", "knn", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["classes"] == 2
        assert main(["embed", *source, "--data", str(data), "--out", str(tmp_path / "f.npz")]) == 0
        with np.load(tmp_path / "f.npz") as arrays:
            assert arrays["features"].shape[0] == 40
            assert arrays["paths"].tolist() == list(find_all(data).paths)
            assert sorted(arrays["labels"].tolist()) == [0] * 20 + [1] * 20


def test_a_spoilt_pack_stops_as_a_spoilt_folder_does(packed, tmp_path):
    """A byte wrong in most images: they are counted like unreadable files."""
    images = find_all(packed)
    whole = bytearray(packed.read_bytes())
    for index in range(0, 40, 2):
        whole[whole.index(images.content(index)) + 100] ^= 1
    (tmp_path / "bad.pack").write_bytes(whole)
    with pytest.raises(TrainingStopped, match=r"of 40 images could not be read, .* the last one: .*bad\.pack/class_"):
        pretrain("small", settings(tmp_path / "bad.pack"), tmp_path / "run", machine=HERE)


def test_wrong_requests(packed, photos, tmp_path, capsys):
    torn = tmp_path / "torn.pack"
    torn.write_bytes(packed.read_bytes()[:-5])
    for words, said in [
        (["pack", str(tmp_path / "none"), "--out", str(tmp_path / "a.pack")], "PATH: .*none does not exist"),
        (["pack", str(photos), "--out", str(photos)], "--out .* is a folder"),
        (
            ["pack", str(photos), "--out", str(tmp_path / "a.pack"), "--quality", "0"],
            "--quality must lie in 1 .. 100, got 0",
        ),
        (["pack", str(photos), "--out", str(tmp_path / "a.pack"), "--short-side", "0"], "--short-side .* got 0"),
        (["pretrain", "small", "--data", str(torn), "--out", str(tmp_path / "r")], "--data: .*torn.pack is damaged"),
        (
            [
                "pretrain",
                "small",
                "--data",
                str(packed),
                "--out",
                str(tmp_path / "r"),
                "--batch-size",
                "8",
                "--repeats",
                "3",
            ],
            "--repeats 3 does not divide the 8 images",
        ),
        (
            ["pretrain", "small", "--data", str(packed), "--out", str(tmp_path / "r"), "--repeats", "0"],
            "--repeats .* 0",
        ),
    ]:
        assert main(words) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert re.search(said, line), line
    assert not (tmp_path / "a.pack").exists()
    assert not (tmp_path / "r").exists()


def test_skipped_images_are_named(data_root, tmp_path, capsys):
    assert main(["pack", str(data_root / "corrupt"), "--out", str(tmp_path / "a.pack"), "--short-side", "64"]) == 0
    captured = capsys.readouterr()
    skipped = [line for line in captured.err.splitlines() if line.startswith("skipped ")]
    assert len(skipped) == 5
    assert f"{tmp_path / 'a.pack'}: 7 images" in captured.out
    assert "5 unreadable images left out" in captured.out
