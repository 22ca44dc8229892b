"""Checkpoints: round trips to the last bit, whole or not there, nothing that could run code."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from mimkit.errors import Torn
from mimkit.training import checkpoint
from mimkit.training.checkpoint import (
    Checkpoint,
    load,
    load_newest,
    optimizer_tensors,
    recover,
    restore_optimizer,
    save,
)


def state(seed: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "matrix": torch.randn(3, 5, generator=generator),
        "view": torch.randn(4, 6, generator=generator).T,  # not contiguous
        "half": torch.randn(7, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(float("nan")),
    }
    training = {"generator/cpu": generator.get_state(), "optimizer/step/matrix": torch.tensor(3.0)}
    return Checkpoint(weights, training, {"skipped": ["été 東京.jpg"], "window": [[0.1, 1e-300]], "step": seed})


def same(one: Checkpoint, other: Checkpoint) -> bool:
    pairs = [(one.weights, other.weights), (one.training, other.training)]
    return one.state == other.state and all(
        a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and bits(a[k]) == bits(b[k]) for k in a) for a, b in pairs
    )


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_round_trip_to_the_last_bit(tmp_path):
    save(tmp_path, 12, state())
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000012"]
    assert same(load(tmp_path / "step-00000012"), state())
    assert same(recover(tmp_path), state())


def test_checksums_are_what_sha256sum_reads(tmp_path):
    save(tmp_path, 1, state())
    folder = tmp_path / "step-00000001"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert {line[66:] for line in lines} == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    for line in lines:
        assert line[64:66] == "  "
        assert hashlib.sha256((folder / line[66:]).read_bytes()).hexdigest() == line[:64]
    try:
        assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder).returncode == 0
    except FileNotFoundError:
        pytest.skip("no sha256sum here")


def test_the_newest_two_are_kept(tmp_path):
    for step in (5, 10, 100, 1000):
        save(tmp_path, step, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-00001000"]
    assert recover(tmp_path).state["step"] == 1000


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 5, state(1))
    save(tmp_path, 5, state(2))
    assert same(recover(tmp_path), state(2))


@pytest.mark.parametrize("read", [recover, load_newest])
def test_nothing_there(tmp_path, read):
    assert read(tmp_path) is None
    assert read(tmp_path / "nowhere") is None


def test_what_a_killed_process_left_is_cleared(tmp_path):
    save(tmp_path, 5, state(5))
    unfinished = tmp_path / ".unfinished-00000006"
    unfinished.mkdir()
    (unfinished / "weights.safetensors").write_bytes(b"half")
    assert recover(tmp_path).state["step"] == 5
    assert not unfinished.exists()


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "cut weights": lambda folder: (folder / "weights.safetensors").write_bytes(b""),
    "a bit of the weights": lambda folder: change_byte(folder / "weights.safetensors"),
    "a bit of the moments": lambda folder: change_byte(folder / "training.safetensors"),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "other state": lambda folder: (folder / "state.json").write_text(json.dumps({"step": 7})),
    "no checksums": lambda folder: (folder / "SHA256SUMS").unlink(),
    "empty checksums": lambda folder: (folder / "SHA256SUMS").write_text(""),
    "nonsense for checksums": lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff\n\n"),
    "one checksum missing": lambda folder: (folder / "SHA256SUMS").write_text(
        "".join((folder / "SHA256SUMS").read_text().splitlines(keepends=True)[:2])
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_seen_and_the_one_before_taken(tmp_path, damage):
    for step in (5, 6):
        save(tmp_path, step, state(step))
    damage(tmp_path / "step-00000006")
    with pytest.raises(Torn):
        load(tmp_path / "step-00000006")
    assert same(load_newest(tmp_path), state(5))  # a reader, which leaves all as it is
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]
    with pytest.warns(UserWarning, match="step-00000006 is damaged"):
        assert same(recover(tmp_path), state(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "torn-step-00000006"]
    assert same(recover(tmp_path), state(5))  # without a further word
    save(tmp_path, 6, state(6))
    assert same(recover(tmp_path), state(6))


def test_all_damaged(tmp_path):
    save(tmp_path, 5, state())
    (tmp_path / "step-00000005" / "state.json").unlink()
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="no whole checkpoint is left"):
        recover(tmp_path)
    with pytest.raises(ValueError, match="no whole checkpoint is left"):  # nor does the next try begin anew
        recover(tmp_path)


def test_reading_changes_nothing(tmp_path):
    for step in (5, 6):
        save(tmp_path, step, state(step))
    (tmp_path / "step-00000006" / "state.json").unlink()
    (tmp_path / ".unfinished-00000007").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert same(load_newest(tmp_path), state(5))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("call", [1, 2])
def test_a_failed_write_keeps_what_there_was(tmp_path, monkeypatch, call):
    for step in (5, 6):
        save(tmp_path, step, state(step))
    calls, write = [], checkpoint.save_file

    def fail(tensors, path):
        calls.append(path)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match=r"step-00000007 cannot be written.*No space left"):
        save(tmp_path, 7, state(7))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]
    assert same(recover(tmp_path), state(6))


@pytest.mark.parametrize("gone", ["training.safetensors", "weights.safetensors"])
def test_one_that_is_removed_while_it_is_read_is_passed_over(tmp_path, monkeypatch, gone):
    """Between its checksums and its tensors: the process that trains keeps the newest two only."""
    save(tmp_path, 5, state(5))
    read = checkpoint.load_file

    def late(path: Path) -> dict[str, torch.Tensor]:
        if path.name == gone and path.exists():
            save(tmp_path, 6, state(6))
            save(tmp_path, 7, state(7))
            monkeypatch.setattr(checkpoint, "load_file", read)
        return read(path)

    monkeypatch.setattr(checkpoint, "load_file", late)
    assert same(load_newest(tmp_path), state(7))


def test_one_that_cannot_be_removed_does_not_stop_the_run(tmp_path, monkeypatch):
    """A file that some other machine has open comes back under another name on NFS."""
    for step in (5, 6):
        save(tmp_path, step, state(step))
    remove = os.rmdir
    monkeypatch.setattr(os, "rmdir", lambda path, **at: None if "005" in str(path) else remove(path, **at))
    save(tmp_path, 7, state(7))
    assert sorted(path.name for path in tmp_path.iterdir())[1:] == ["step-00000006", "step-00000007"]
    monkeypatch.undo()
    assert same(recover(tmp_path), state(7))
    save(tmp_path, 8, state(8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000007", "step-00000008"]


def test_optimizer_returns_to_the_same_parameters():
    """By name, not by order: a second optimizer with its parameters in other groups goes on alike."""
    first, second = (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)) for _ in range(2))
    groups = [{"params": [*first.parameters()]}], [{"params": [p]} for p in reversed([*second.parameters()])]
    optimizers = [torch.optim.AdamW(group, lr=0.1) for group in groups]
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step(first, optimizers[0])
    tensors = {name: value.clone() for name, value in optimizer_tensors(optimizers[0], first).items()}
    assert {name.split("/")[1] for name in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    second.load_state_dict(first.state_dict())
    restore_optimizer(optimizers[1], second, {**tensors, "generator/cpu": torch.zeros(1)})
    for model, optimizer in zip((first, second), optimizers, strict=True):
        step(model, optimizer)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
