"""Two processes do what one does: the same sums for every recipe, the same faults, in any way they share the work."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mimkit
from helpers import pair
from helpers.plans import plan
from helpers.processes import run_together, torchrun
from helpers.runs import as_flags
from helpers.tiny import TINY
from mimkit.cli.main import main
from mimkit.errors import Torn
from mimkit.settings import Settings
from mimkit.training.checkpoint import load, load_newest, recover

# Two are broken, which all processes must replace by the same images, and count once.
PHOTOS = {"count": 17, "classes": 2, "size": 80, "broken": range(3, 5)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos) -> Path:
    """All runs of two processes, one of which goes on with what one process began."""
    folder = tmp_path_factory.mktemp("pair")
    with pair.asked_to_stop(after=1):
        assert not pair.train("clipped and averaged", photos, folder / "handed on")
    run_together(folder, 2, pair.__file__, str(folder), str(photos))
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory, photos) -> Path:
    """Where runs of one process lie, which takes the whole batch at once."""
    return tmp_path_factory.mktemp("alone")


def of_one(case: str, photos: Path, alone: Path) -> Path:
    if not (alone / case).exists():
        assert pair.train(case, photos, alone / case, micro_batch=12, compile=False)
    return alone / case


def found(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"found-{rank}.json").read_text())


def everything(run: Path) -> dict[str, Tensor]:
    """Of its last checkpoint."""
    saved = load_newest(run / "checkpoints")
    assert saved is not None
    return {f"weights/{name}": value for name, value in saved.weights.items()} | saved.training


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same_bits(run: Path, other: Path) -> None:
    """Weights, averages, moments, generators and log."""
    ours, theirs = everything(run), everything(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (run / "log.jsonl").read_bytes() == (other / "log.jsonl").read_bytes()


def assert_same_sums(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Gradients, by Adam's moments, to rounding; weights where the gradient is more than that, as its sign counts."""
    gradients = {name: value for name, value in theirs.items() if name.startswith("optimizer/exp_avg/")}
    largest = max(float(value.abs().max()) for value in gradients.values())
    for name, value in theirs.items():
        error = (ours[name] - value).abs()
        if name.startswith("optimizer/exp_avg"):
            power = 2 if "exp_avg_sq" in name else 1
            assert float(error.max()) <= 1e-5 * float(value.abs().max()) + 1e-7 * largest**power, name
        elif not name.startswith("generator/"):
            gradient = gradients.get(f"optimizer/exp_avg/{name.partition('/')[2]}", torch.zeros(()))
            sure = gradient.abs() > 1e-4 * largest
            assert float((error * sure).max()) <= 1e-6, name
            assert float(error.max()) <= 1e-2, name


def assert_same_rows(run: Path, other: Path, rel: float = 1e-5) -> None:
    """Losses and rates to rounding; which images could not be read, and when, to the letter."""
    logs = [[row for row in rows(some) if row["kind"] != "probe"] for some in (run, other)]
    assert any(row["kind"] == "skipped" for row in logs[0])
    for row, same in zip(*logs, strict=True):
        assert row.keys() == same.keys()
        words = {name for name, value in row.items() if isinstance(value, str)}
        assert [row[name] for name in words] == [same[name] for name in words]
        given, expected = ({name: value for name, value in one.items() if name not in words} for one in (row, same))
        assert given == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize(
    ("processes", "wrong", "said"),
    [
        (5, {}, "5 processes cannot share --batch-size 12"),
        (2, {"micro_batch": 4}, "--micro-batch 4 does not divide the 6 images of each of 2 processes"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(photos, processes, wrong, said):
    settings = Settings(data=photos, **TINY["mae"] | pair.BATCH | wrong)
    with pytest.raises(ValueError, match=said):
        plan("mae", settings, device=torch.device("cpu"), processes=processes)


@pytest.mark.parametrize(
    ("kind", "case"), [("ddp", case) for case in pair.CASES] + [("fsdp", case) for case in pair.SHARDED]
)
def test_two_processes_train_as_one(kind, case, photos, folder, alone):
    one, two = of_one(case, photos, alone), folder / kind / case
    ours, theirs = everything(two), everything(one)
    assert ours.keys() - theirs.keys() == {"generator/cpu/1"}
    assert_same_sums(ours, theirs)
    assert_same_rows(two, one)


@pytest.mark.parametrize("kind", pair.KINDS)
def test_evaluators_can_share_their_work(kind, folder):
    """All processes look, with the weights of the main one's checkpoint; a frozen encoder is in none."""
    logged = rows(folder / f"together-{kind}")
    looks, alone = ([row for row in logged if row["kind"] == kind] for kind in ("look", "main"))
    assert [row["step"] for row in looks] == [row["step"] for row in alone] == [0, 4, 8, 12]
    assert all(row["ranks"] == [0, 1] and row["same"] for row in looks)
    assert {row["path"] for row in logged if row["kind"] == "skipped"} == {"0.jpg", "1.jpg"}
    saved = load_newest(folder / f"together-{kind}" / "checkpoints")
    assert saved.weights.keys() == {"head.weight", "head.bias"}
    assert saved.weights["head.weight"].tolist() == alone[-1]["head"] != alone[0]["head"]


@pytest.mark.parametrize("kind", pair.KINDS)
def test_stopped_and_resumed_they_end_the_same(kind, folder):
    """To the last bit, from shares, with averages of the weights; the second process was asked to stop, twice."""
    assert_same_bits(folder / f"interrupted-{kind}", folder / kind / "clipped and averaged")
    assert any(name.startswith("trained/") for name in everything(folder / f"interrupted-{kind}"))


@pytest.mark.parametrize("rank", [0, 1])
def test_parts_but_the_last_are_not_exchanged(rank, folder):
    """Two parts more; with shares, what is put together for a part's forward and backward pass is all there is."""
    talks = found(folder, rank)["exchanges"]
    assert talks["ddp 1"] == talks["ddp 3"] > 0
    at_once = 6 + 1 + 1  # the encoder's blocks, the decoder's, and the rest
    assert 0 < talks["fsdp 3"] - talks["fsdp 1"] <= 2 * 2 * at_once


def test_a_lost_process_is_replaced(folder, photos, tmp_path):
    """torchrun starts all again when one is killed, and they go on from the last checkpoint to the same bits."""
    recipe, tiny = pair.CASES["clipped and averaged"]
    command = ["pretrain", recipe, "--data", str(photos), "--out", str(tmp_path / "run"), *as_flags(pair.BATCH | tiny)]
    kill = f"1:2:{int(signal.SIGKILL)}"
    said = torchrun(tmp_path, *command, "--workers", "1", "--checkpoint-minutes", "0", restarts=1, interrupt=kill)
    assert said.count(f"done: {tmp_path / 'run'}") == 1  # by the first of them, after the second start
    assert "failed (exitcode: -9)" in said
    assert_same_bits(tmp_path / "run", folder / "ddp" / "clipped and averaged")


SAID = {  # by the first process, and by the second, in which it happens
    "disk": ("step-00000002 cannot be written, earlier checkpoints are kept: [Errno 28] No space left on device",) * 2,
    "memory": (
        "mimkit: another process of this run died in step 2; the last checkpoint is kept",
        "mimkit: out of memory in step 2, with --micro-batch 3; the last checkpoint is kept",
    ),
}


def test_a_callback_that_fails_stops_all_processes_after_a_step_that_is_saved(folder):
    first, other = (found(folder, rank)["callback"] for rank in range(2))
    assert "failed: KeyError in pair.py:" in first
    assert ", step 1 of 2 saved; go on with: " in first
    assert other is False
    assert pair.newest(folder / "callback") == 1


@pytest.mark.parametrize("fault", pair.FAULTS)
def test_a_fault_in_one_process_ends_all_with_a_line(fault, folder):
    for rank in range(2):
        code, line = found(folder, rank)["faults"][fault]
        assert code == 1
        assert SAID[fault][rank] in line
        assert f"go on with: mimkit resume {folder / fault}" in line
    assert not list((folder / fault / "checkpoints").glob(".unfinished*"))


def test_after_a_full_disk_it_ends_the_same(folder):
    """Stopped after the first of two steps, and resumed by two processes."""
    assert_same_bits(folder / "disk", folder / "undisturbed")


def test_one_process_goes_on_from_shares(folder):
    run = folder / "memory"
    assert (run / "checkpoints" / "step-00000001" / "shares").is_dir()
    assert main(["resume", str(run), "--workers", "0"]) == 0
    assert (run / "checkpoints" / "step-00000002" / "weights.safetensors").is_file()
    ours, theirs = everything(run), everything(folder / "undisturbed")
    assert theirs.keys() - ours.keys() == {"generator/cpu/1"}
    for name in ours:
        if name.startswith("optimizer/exp_avg/"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6 * float(theirs[name].abs().max()))
    assert_same_rows(run, folder / "undisturbed", rel=1e-4)


def test_shares_are_read_by_all_that_reads_runs(folder, photos, tmp_path, capsys):
    run = folder / "undisturbed"
    newest = run / "checkpoints" / "step-00000002"
    assert len(list((newest / "shares").iterdir())) == 2
    saved = load(newest)
    encoder = mimkit.load_encoder(run).encoder.state_dict()
    assert all(torch.equal(value, saved.weights[f"encoder.{name}"]) for name, value in encoder.items())
    assert main(["probe", str(run), "--data", str(photos), "--kind", "knn", "--json", "--workers", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 2
    assert main(["export", str(run), "--format", "timm", "--out", str(tmp_path / "encoder.safetensors")]) == 0
    exported = load_file(tmp_path / "encoder.safetensors")
    assert torch.equal(exported["blocks.0.attn.qkv.weight"], saved.weights["encoder.vit.blocks.0.attn.qkv.weight"])


def test_a_torn_share_is_noticed(folder, tmp_path):
    shutil.copytree(folder / "undisturbed" / "checkpoints", tmp_path / "checkpoints")
    share = max((tmp_path / "checkpoints" / "step-00000002" / "shares").iterdir())
    with share.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(Torn, match=rf"checksum of shares/{share.name} does not match"):
        load(share.parents[1])
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert recover(tmp_path / "checkpoints").state["step"] == 1


def test_other_numbers_of_processes_go_on(folder, photos, alone, tmp_path):
    """One process made the first step, two with shares the second, and three the last."""
    shutil.copytree(folder / "handed on", tmp_path / "run")
    (checkpoint, *_) = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    assert checkpoint.name == "step-00000002"
    assert (checkpoint / "shares").is_dir()
    words = ["resume", str(tmp_path / "run"), "--workers", "0"]
    said = run_together(tmp_path, 3, "-m", "mimkit", *words)
    assert "in each of 3 processes, ddp" in said[0]
    assert not any("held-out images" in some for some in said[1:])  # one of them speaks
    one = of_one("clipped and averaged", photos, alone)
    ours, theirs = everything(tmp_path / "run"), everything(one)
    assert ours.keys() - theirs.keys() == {"generator/cpu/1", "generator/cpu/2"}
    assert_same_sums(ours, theirs)
    assert_same_rows(tmp_path / "run", one)
