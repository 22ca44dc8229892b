"""What cannot be done is refused in one line that names the flag and the value, and nothing is left half-written.

Exit code 2: the request was wrong. 1: the work failed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.cli.main import main
from mimkit.training import checkpoint, run_folder

PRETRAIN = {
    "--data": "{here}/photos",
    "--out": "{here}/run",
    "--image-size": "32",
    "--mask-ratio": "0.75",
    "--batch-size": "8",
    "--epochs": "2",
    "--workers": "0",
    "--precision": "fp32",
}
ENCODER = "random:vit_tiny_patch16_224"
STARTING = ("small: ", "data: ", "training: ", "step ")


@pytest.fixture(scope="module")
def files(tmp_path_factory, make_photos) -> Path:
    """A folder of things to ask for; no test changes it."""
    place = tmp_path_factory.mktemp("wrong")
    make_photos(place / "photos", count=20, classes=2)
    (place / "empty").mkdir()
    (place / "texts").mkdir()
    (place / "texts" / "readme.md").write_text("no image")
    (place / "table.csv").write_text("a,b")
    (place / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return place


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    """A finished run; tests that change it copy it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main(pretrain(files, {"--out": str(run)})) == 0
    return run


@pytest.fixture
def here(files, tmp_path) -> Path:
    """The files again, in a folder of this test's own."""
    shutil.copytree(files, tmp_path / "here")
    return tmp_path / "here"


def pretrain(here: Path, changes: dict[str, str], recipe: str = "small") -> list[str]:
    """A good request for a few seconds' work, with some flags changed or added."""
    words = [word for flag, value in (PRETRAIN | changes).items() for word in (flag, *value.split())]
    return ["pretrain", recipe, *(word.format(here=here) for word in words)]


def tree(folder: Path) -> dict[str, bytes | None]:
    """All below a folder, with its contents."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def refusal(arguments: list[str], capsys, code: int = 2) -> str:
    """The one line in which a command says no."""
    capsys.readouterr()
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mimkit: ")
    assert printed.err.endswith("\n")
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


def names(words: str, line: str) -> bool:
    """Whether each of the words stands in the line, and not inside a longer one."""
    found = [re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", line) for word in words.split()]
    assert all(found), f"{words!r} is not all in {line!r}"
    return True


def failure(arguments: list[str], capsys) -> str:
    """The one line in which a command gives up work it had begun, after the lines that said how it went."""
    capsys.readouterr()
    assert main(arguments) == 1
    *before, line, end = capsys.readouterr().err.split("\n")
    assert end == ""
    assert line.startswith("mimkit: ")
    assert before
    assert all(words.startswith(STARTING) for words in before), before
    return line


WRONG_PRETRAINING = {
    "data that is not there": ({"--data": "{here}/nothing"}, "--data {here}/nothing"),
    "data without files": ({"--data": "{here}/empty"}, "--data {here}/empty"),
    "data without images": ({"--data": "{here}/texts"}, "--data {here}/texts .jpg"),
    "data that is no list": ({"--data": "{here}/table.csv"}, "--data {here}/table.csv"),
    "mask ratio above 1": ({"--mask-ratio": "1.2"}, "--mask-ratio 1.2"),
    "mask ratio 0": ({"--mask-ratio": "0"}, "--mask-ratio 0"),
    "mask ratio below 0": ({"--mask-ratio": "-1"}, "--mask-ratio -1"),
    "mask ratio that is no number": ({"--mask-ratio": "nan"}, "--mask-ratio nan"),
    "nothing visible": ({"--mask-ratio": "0.9"}, "--mask-ratio 0.9 4"),
    "mask cell that divides nothing": ({"--mask-cell": "24"}, "--mask-cell 24 32"),
    "mask cell below the patch": ({"--mask-cell": "8"}, "--mask-cell 8 multiples 16"),
    "patch that does not divide": ({"--image-size": "100"}, "--image-size 16 100"),
    "patch that does not divide one side": ({"--image-size": "32 40"}, "--image-size 16 32 40"),
    "no image size": ({"--image-size": "0"}, "--image-size 0"),
    "three image sizes": ({"--image-size": "32 32 32"}, "--image-size 32, 32]"),
    "unknown view": ({"--view": "crop"}, "--view crop simple-resized-crop"),
    "unknown target": ({"--target": "lowfreq"}, "--target lowfreq lowfreq-pixels"),
    "unknown readout": ({"--readout": "first"}, "--readout first fused"),
    "unknown mask": ({"--mask": "blocks"}, "--mask blocks random"),
    "unknown decoder": ({"--decoder": "mlp"}, "--decoder mlp transformer"),
    "misspelt backbone": ({"--backbone": "vit_tiny_patch16_24"}, "--backbone vit_tiny_patch16_24 vit_tiny_patch16_224"),
    "backbone in an unknown form": (
        {"--backbone": "vit_tiny_patch16_224(6)"},
        "--backbone vit_tiny_patch16_224(6) KEY",
    ),
    "convolutional backbone of visible tokens": (
        {"--backbone": "resnet18", "--encoder": "visible"},
        "--backbone resnet18 ResNet ViT --encoder dense",
    ),
    "hierarchical backbone with levels in one": (
        {"--backbone": "swin_tiny_patch4_window7_224", "--image-size": "224"},
        "--readout Fused swin_tiny_patch4_window7_224 fused-hierarchical",
    ),
    "unknown encoder": ({"--encoder": "sparse"}, "--encoder sparse visible dense"),
    "no class token": ({"--class-tokens": "0"}, "--class-tokens 0"),
    "nothing predicted": ({"--predict-share": "0"}, "--predict-share 0"),
    "taps of one": ({"--readout": "last", "--taps": "0 11"}, "--taps Last"),
    "tap that is not there": ({"--taps": "0 12"}, "--readout 12 vit_tiny_patch16_224"),
    "linear decoder of visible tokens": (
        {"--decoder": "linear"},
        "--decoder transformer --encoder dense",
    ),
    "features of no teacher": ({"--target": "features"}, "--target features --teacher"),
    "teacher of no features": ({"--teacher": "vit_tiny_patch16_224"}, "--target features --teacher"),
    "odd offsets": ({"--target": "hog", "--hog-offsets": "0.1 0.2 0.3"}, "--hog-offsets 3"),
    "mean alone": ({"--mean": "0.5 0.5 0.5"}, "--mean --std"),
    "no epochs": ({"--epochs": "0"}, "--epochs 0"),
    "epochs in words": ({"--epochs": "ten"}, "--epochs ten"),
    "batch above the data": ({"--batch-size": "400"}, "--batch-size 400 17"),
    "no batch": ({"--batch-size": "0"}, "--batch-size 0"),
    "micro-batch that does not divide": ({"--micro-batch": "3"}, "--micro-batch 3 8"),
    "decoder width and heads": (
        {"--decoder-width": "52", "--decoder-heads": "3"},
        "--decoder-width --decoder-heads 52 3",
    ),
    "decoder width and positions": ({"--decoder-width": "51", "--decoder-heads": "3"}, "--decoder-width 51 4"),
    "no decoder heads": ({"--decoder-heads": "0"}, "--decoder-heads 0"),
    "learning rate below 0": ({"--base-lr": "-0.001"}, "--base-lr -0.001"),
    "learning rate that is no number": ({"--base-lr": "nan"}, "--base-lr nan"),
    "warm-up longer than the run": ({"--warmup-epochs": "2"}, "--warmup-epochs --epochs 2"),
    "last learning rate above the peak": ({"--min-lr": "1", "--base-lr": "0.032"}, "--min-lr 1 --base-lr 0.032"),
    "weight decay below 0": ({"--weight-decay": "-0.1"}, "--weight-decay -0.1"),
    "no gradient norm": ({"--clip-grad": "0"}, "--clip-grad 0"),
    "unknown precision": ({"--precision": "fp16"}, "--precision fp16 bf16"),
    "two channels": ({"--channels": "2"}, "--channels 2"),
    "all held out": ({"--held-out": "1"}, "--held-out 1"),
    "seed below 0": ({"--seed": "-1"}, "--seed -1"),
    "no log": ({"--log-every": "0"}, "--log-every 0"),
    "workers below 0": ({"--workers": "-1"}, "--workers -1"),
    "unknown device": ({"--device": "gpuu"}, "--device gpuu"),
    "device without numbers": ({"--device": "meta"}, "--device meta"),
    "unknown flag": ({"--epoch": "1"}, "--epoch 1 --epochs"),
    "output below a file": ({"--out": "{here}/table.csv/run"}, "--out {here}/table.csv/run"),
    "output that is a file": ({"--out": "{here}/table.csv"}, "--out {here}/table.csv file"),
    "output among the data": ({"--out": "{here}/photos/class_0/run"}, "--out {here}/photos/class_0/run --data"),
    "output that is no run": ({"--out": "{here}/photos"}, "--out {here}/photos not empty"),
}


@pytest.mark.parametrize(("changes", "words"), WRONG_PRETRAINING.values(), ids=WRONG_PRETRAINING)
def test_pretraining_that_cannot_be(here, capsys, changes, words):
    before = tree(here)
    line = refusal(pretrain(here, changes), capsys)
    assert names(words.format(here=here), line)
    assert tree(here) == before


FROM_FILES = {
    "file that is not there": ("yours.py:recipe", "{here}/yours.py:recipe file"),
    "file without the function": ("mine.py:other", "{here}/mine.py:other other"),
    "function of another kind": ("mine.py:number", "{here}/mine.py:number int mimkit.recipes.Recipe"),
    "file that is no Python": ("broken.py:recipe", "{here}/broken.py:recipe broken.py, line 2: SyntaxError: invalid"),
    "function that fails": ("mine.py:failing", "{here}/mine.py:failing mine.py, line 5, ZeroDivisionError: zero"),
}


@pytest.mark.parametrize(("recipe", "words"), FROM_FILES.values(), ids=FROM_FILES)
def test_recipes_from_files_that_cannot_be(here, capsys, recipe, words):
    (here / "mine.py").write_text("def number():\n    return 3\n\ndef failing():\n    return 1 / 0\n")
    (here / "broken.py").write_text("value = 1\nvalue = = 2\n")
    line = refusal(pretrain(here, {}, recipe=f"{here}/{recipe}"), capsys)
    assert names(words.format(here=here), line)
    assert not (here / "run").exists()


def test_unknown_recipe_lists_the_known_ones(here, capsys):
    line = refusal(pretrain(here, {}, recipe="maee"), capsys)
    assert re.search(r"recipe 'maee' .*\bmae, pixmim, mff, pixmim-mff, .*\bsmall\b", line)
    assert not (here / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_where_there_is_none(here, capsys):
    assert "--device cuda " in refusal(pretrain(here, {"--device": "cuda"}), capsys)
    assert not (here / "run").exists()


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_terminal_of_any_encoding_gets_one_line(here, encoding):
    command = [sys.executable, "-m", "mimkit", *pretrain(here, {"--epoch": "3"})]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "60"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "mimkit: Unrecognized options: --epoch, 3; did you mean --epochs or --warmup-epochs?\n"


def test_overwriting_what_is_no_run(here, capsys):
    before = tree(here)
    line = refusal([*pretrain(here, {"--out": "{here}/photos"}), "--overwrite"], capsys)
    assert f"--out {here}/photos" in line
    assert tree(here) == before


def test_a_run_is_not_overwritten_unasked(here, finished, capsys):
    before = tree(finished)
    line = refusal(pretrain(here, {"--out": str(finished)}), capsys)
    assert f"--out {finished}" in line
    assert "--overwrite" in line
    assert "mimkit resume" in line
    assert tree(finished) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody may write")
@pytest.mark.parametrize("command", ["pretrain", "embed"])
def test_output_where_nothing_can_be_made(here, capsys, command):
    requests = {
        "pretrain": pretrain(here, {"--out": "/proc/mimkit"}),
        "embed": ["embed", ENCODER, "--image-size", "32", "--data", str(here / "photos"), "--out", "/proc/mimkit"],
    }
    assert "/proc/mimkit" in refusal(requests[command], capsys)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_output_in_a_locked_folder(here, capsys):
    (here / "empty").chmod(0o500)
    assert f"--out {here}/empty/run" in refusal(pretrain(here, {"--out": "{here}/empty/run"}), capsys)


WRONG_COMMANDS = {
    "no command": ([], "pretrain resume probe"),
    "unknown command": (["train"], "train pretrain"),
    "no output": (["pretrain", "small", "--data", "{here}/photos"], "--out"),
    "no data": (["pretrain", "small", "--out", "{here}/run"], "--data"),
    "resuming what is no run": (["resume", "{here}/photos"], "{here}/photos run.json"),
    "resuming what is not there": (["resume", "{here}/nothing"], "{here}/nothing"),
    "resuming a run with a torn run.json": (["resume", "{here}/torn"], "{here}/torn/run.json"),
    "resuming a run of another version": (["resume", "{here}/newer"], "teacher_momentum"),
    "resuming a run of another recipe": (
        ["resume", "{here}/other"],
        "{here}/other HogOfOld",
    ),
    "resuming a run of other values": (["resume", "{here}/slower"], "{here}/slower 0.123"),
    "features of a run of another recipe": (
        ["export", "{here}/other_weights", "--format", "timm", "--out", "{here}/out.safetensors"],
        "{here}/other_weights encoder_of_old",
    ),
    "a size for a run": (
        ["probe", "{finished}", "--data", "{here}/photos", "--image-size", "60"],
        "--image-size 60 cell",
    ),
    "probe without classes": (
        ["probe", ENCODER, "--image-size", "32", "--data", "{here}/photos/class_0"],
        "--data {here}/photos/class_0 class folders",
    ),
    "probe of what is not there": (["probe", "{here}/nothing", "--data", "{here}/photos"], "{here}/nothing"),
    "probe of what is no weights": (["probe", "{here}/table.csv", "--data", "{here}/photos"], "{here}/table.csv"),
    "probe of an unknown name": (["probe", "random:vit_tin", "--data", "{here}/photos"], "vit_tin"),
    "probe with unknown classifier": (["probe", ENCODER, "--data", "{here}/photos", "--kind", "svm"], "--kind svm knn"),
    "probe with all held out": (["probe", ENCODER, "--data", "{here}/photos", "--held-out", "2"], "--held-out 2"),
    "probe with nothing held out": (
        ["probe", ENCODER, "--image-size", "32", "--data", "{here}/photos", "--held-out", "0"],
        "--held-out 0 {here}/photos",
    ),
    "probe of nothing": (["probe", ENCODER, "--data", "{here}/nothing"], "--data {here}/nothing"),
    "embedding into a folder": (
        ["embed", ENCODER, "--data", "{here}/photos", "--out", "{here}/empty"],
        "--out {here}/empty folder",
    ),
    "embedding below a file": (
        ["embed", ENCODER, "--data", "{here}/photos", "--out", "{here}/table.csv/features.npz"],
        "--out {here}/table.csv/features.npz",
    ),
    "export of an empty run": (
        ["export", "{here}/fresh", "--format", "timm", "--out", "{here}/out.safetensors"],
        "{here}/fresh checkpoint",
    ),
    "export of what is no run": (
        ["export", "{here}/photos", "--format", "safetensors", "--out", "{here}/out.safetensors"],
        "{here}/photos run.json",
    ),
    "unknown export": (
        ["export", "{here}/fresh", "--format", "keras", "--out", "{here}/out"],
        "--format keras timm onnx",
    ),
    "report on nothing": (["report", "--out", "{here}/report.html"], "RUNS"),
    "report on what is no run": (["report", "{here}/photos", "--out", "{here}/report.html"], "{here}/photos run.json"),
    "reconstruction without a method": (
        ["reconstruct", ENCODER, "{here}/photos/class_0/0000.png", "--out", "{here}/pictures"],
        ENCODER,
    ),
}


OF_OLD = {"target": "HogOfOld", "encoder": "encoder_of_old"}


@pytest.mark.parametrize(("request_", "words"), WRONG_COMMANDS.values(), ids=WRONG_COMMANDS)
def test_commands_that_cannot_be(here, finished, capsys, request_, words):
    facts = json.loads((finished / "run.json").read_text())
    newer = facts | {"settings": facts["settings"] | {"teacher_momentum": 0.996}}
    old = {name: {"name": called, "values": {}} for name, called in OF_OLD.items()}
    other, weights = (facts | {"parts": facts["parts"] | {part: old[part]}} for part in ("target", "encoder"))
    trained = facts["training"]["values"] | {"base_lr": 0.123}
    slower = facts | {"training": {"name": "Train", "values": trained}}
    texts = {name: json.dumps(value) for name, value in {"fresh": facts, "newer": newer, "other": other}.items()}
    texts |= {"torn": json.dumps(facts)[:100], "slower": json.dumps(slower)}
    shutil.copytree(finished, here / "other_weights")
    (here / "other_weights" / "run.json").write_text(json.dumps(weights))
    for name, text in texts.items():
        (here / name).mkdir()
        (here / name / "run.json").write_text(text)
    before = tree(here)
    workers = ["--workers", "0"] if request_[:1] in (["probe"], ["embed"], ["resume"]) else []
    line = refusal([word.format(here=here, finished=finished) for word in request_] + workers, capsys)
    assert names(words.format(here=here, finished=finished), line)
    assert tree(here) == before


@pytest.mark.parametrize(
    ("images", "more", "words"),
    [
        ([], [], "IMAGES"),
        (["{here}/broken.png"], [], "IMAGES {here}/broken.png"),
        (["{here}/photos/class_0/0000.png", "{here}/nothing.png"], [], "IMAGES {here}/nothing.png"),
        (["{here}/photos/class_0/0000.png"], ["--mask-ratio", "1.5"], "--mask-ratio 1.5"),
        (["{here}/photos/class_0/0000.png"], ["--mask-ratio", "0.9"], "--mask-ratio 0.9 4"),
    ],
)
def test_reconstructions_that_cannot_be(here, finished, capsys, images, more, words):
    request_ = ["reconstruct", str(finished), *images, "--out", "{here}/pictures", *more]
    line = refusal([word.format(here=here) for word in request_], capsys)
    assert names(words.format(here=here), line)
    assert not (here / "pictures").exists()


@contextmanager
def little_space(size: int):
    """No file may grow beyond `size` bytes: the kernel refuses the rest of a write, as it does on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fail_at_call(monkeypatch, module, name: str, number: int, size) -> None:
    """Let a function of a module run out of space from its call of that number on; `size` sees its arguments."""
    function, calls = getattr(module, name), [0]

    def limited(*arguments):
        calls[0] += 1
        if calls[0] < number:
            return function(*arguments)
        with little_space(size(*arguments)):
            return function(*arguments)

    monkeypatch.setattr(module, name, limited)


@pytest.mark.parametrize("beside", [False, True])
def test_no_space_for_a_new_run(here, capsys, monkeypatch, beside):
    out = here / "runs" / "mine"
    if beside:
        out.parent.mkdir()
    fail_at_call(monkeypatch, run_folder, "write_text", 1, lambda path, text: 100)
    before = tree(here)
    assert f"--out {out}" in refusal(pretrain(here, {"--out": str(out)}), capsys, code=1)
    assert tree(here) == before


@pytest.fixture(scope="module")
def undisturbed(files, tmp_path_factory) -> dict[str, bytes | None]:
    """What a run leaves that never ran out of space."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main([*pretrain(files, {"--out": str(run), "--log-every": "1"}), "--checkpoint-minutes", "0"]) == 0
    return lasting(run)


def lasting(run: Path) -> dict[str, bytes | None]:
    """What of a run does not depend on when it ran."""
    parts = ("log.jsonl", "checkpoints", "reconstructions")
    return {name: content for name, content in tree(run).items() if name.startswith(parts)}


@pytest.mark.parametrize(
    ("module", "name", "number", "size", "culprit"),
    [
        (checkpoint, "save_file", 5, lambda tensors, path: 10_000, "step-00000003"),  # weights of the third checkpoint
        (checkpoint, "save_file", 6, lambda tensors, path: 10_000, "step-00000003"),  # optimizer of the third
        (run_folder, "_append", 6, lambda path, row: path.stat().st_size + 20, "log.jsonl"),  # in the middle of a line
    ],
    ids=["weights", "optimizer", "log"],
)
def test_no_space_in_mid_run(files, undisturbed, tmp_path, capsys, monkeypatch, module, name, number, size, culprit):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_at_call(patch, module, name, number, size)
        request_ = [*pretrain(files, {"--out": str(out), "--log-every": "1"}), "--checkpoint-minutes", "0"]
        line = failure(request_, capsys)
    assert re.search(rf"{re.escape(str(out))}\S*{re.escape(culprit)}", line)
    assert "too large" in line  # the kernel's word for it
    kept = sorted((out / "checkpoints").iterdir())
    assert all(re.fullmatch(r"step-\d{8}", path.name) for path in kept)
    newest = checkpoint.load(kept[-1])
    assert newest.state["step"] == len(kept) > 0
    assert main(["resume", str(out), "--workers", "0", "--checkpoint-minutes", "0"]) == 0
    assert lasting(out) == undisturbed
    for name in ("log.jsonl", "speed.jsonl"):
        for text in (out / name).read_text().splitlines():
            assert isinstance(json.loads(text), dict)


def test_no_space_for_features(here, capsys, monkeypatch):
    from mimkit.evaluation import frozen

    fail_at_call(monkeypatch, frozen, "write_bytes", 1, lambda path, data: 1000)
    request_ = ["embed", ENCODER, "--image-size", "32", "--data", f"{here}/photos", "--out", f"{here}/features.npz"]
    before = tree(here)
    assert f"{here}/features.npz" in refusal([*request_, "--workers", "0"], capsys, code=1)
    assert tree(here) == before


def test_too_many_unreadable_images(tmp_path, make_photos, capsys):
    photos = make_photos(tmp_path / "photos", count=20)
    for path in sorted(photos.iterdir())[:12]:
        path.write_bytes(b"no image")
    request_ = pretrain(tmp_path, {"--skipped-share": "0.3", "--held-out": "0"})
    capsys.readouterr()
    assert main(request_) == 1
    *before, line, _ = capsys.readouterr().err.split("\n")
    assert re.fullmatch(r"mimkit: \d+ of 20 images could not be read, .*--skipped-share 0\.3 .*\.png", line)
    assert sum(words.startswith("skipped ") for words in before) >= 7


def test_all_images_unreadable(tmp_path, make_photos, capsys):
    photos = make_photos(tmp_path / "photos", count=20)
    for path in photos.iterdir():
        path.write_bytes(b"no image")
    assert main(pretrain(tmp_path, {"--skipped-share": "0.99", "--held-out": "0"})) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mimkit: ")
    assert "cannot be read" in line


def test_a_picture_of_one_pixel_is_no_mistake(here, tmp_path):
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(here / "photos" / "class_0" / "tiny.png")
    assert main(pretrain(here, {"--epochs": "1"})) == 0
