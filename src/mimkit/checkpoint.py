"""Training state on disk: all of it or none, verified when read, no pickle anywhere.

A checkpoint is a folder `step-00001234/` with `weights.safetensors`, `training.safetensors` (optimizer moments and
generator states), `state.json` (everything else) and `SHA256SUMS`, which `sha256sum -c` understands. It is written
under another name and renamed when it is complete and on the disk.
"""

import hashlib
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mimkit.distributed import like
from mimkit.files import flush

KEPT = 2


class Torn(Exception):
    """A checkpoint that is incomplete or whose contents do not match their checksums."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: model weights, training tensors, and the plain values beside them."""

    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Write `folder`/step-N atomically, then remove all but the newest `KEPT`."""
    final = folder / f"step-{step:08d}"
    unfinished = folder / f".unfinished-{step:08d}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _write(unfinished, checkpoint)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{final} cannot be written, earlier checkpoints are kept: {error}") from error
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    flush(folder)
    for old in _steps(folder)[:-KEPT]:
        shutil.rmtree(old)


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None. Changes nothing, so that a run can be read while it trains."""
    for _ in range(2):  # a run that trains may remove the old one while it is read
        for path in reversed(_steps(folder)):
            try:
                return load(path)
            except Torn:
                continue
    return None


def recover(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, for a run about to go on; torn ones are set aside with a warning.

    Returns:
        None where no checkpoint was ever written.

    Raises:
        ValueError: there are checkpoints, and all of them are torn.
    """
    for leftover in folder.glob(".unfinished-*"):
        shutil.rmtree(leftover)
    for path in reversed(_steps(folder)):
        try:
            return load(path)
        except Torn as reason:
            aside = path.with_name(f"torn-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            warnings.warn(
                f"{path} is damaged ({reason}): set aside as {aside.name}, trying the one before", stacklevel=2
            )
    if any(folder.glob("torn-*")):
        raise ValueError(f"no whole checkpoint is left in {folder}; start again with mimkit pretrain --overwrite")
    return None


def load(path: Path) -> Checkpoint:
    """Read one checkpoint folder after verifying every file.

    Raises:
        Torn: a file is missing, or does not match its checksum.
    """
    try:
        lines = [line.split("  ", 1) for line in (path / "SHA256SUMS").read_text().splitlines()]
        sums = {name: expected for expected, name in lines}
        if set(sums) != {"weights.safetensors", "training.safetensors", "state.json"}:
            raise Torn("its list of checksums is incomplete")
        for name, expected in sums.items():
            if _sha256(path / name) != expected:
                raise Torn(f"the checksum of {name} does not match")
    except (FileNotFoundError, ValueError) as error:
        raise Torn(str(error)) from error
    return Checkpoint(
        weights=load_file(path / "weights.safetensors"),
        training=load_file(path / "training.safetensors"),
        state=json.loads((path / "state.json").read_text()),
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """An optimizer's state by parameter name: `optimizer/exp_avg/encoder.vit.cls_token` and so on."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"optimizer/{slot}/{names[parameter]}": value
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            slot, _, name = rest.partition("/")
            # Step counters too: fused AdamW needs them on the device.
            optimizer.state[parameters[name]][slot] = like(value, parameters[name])


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in checkpoint.weights.items()}, folder / "weights.safetensors")
    save_file({k: v.contiguous() for k, v in checkpoint.training.items()}, folder / "training.safetensors")
    (folder / "state.json").write_text(json.dumps(checkpoint.state, indent=1))
    sums = [f"{_sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(sums))
    for path in (*folder.iterdir(), folder):
        flush(path)


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
