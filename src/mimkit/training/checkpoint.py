"""Training state on disk: all of it or none, verified when read, no pickle anywhere.

A checkpoint is a folder `step-00001234/` with `weights.safetensors`, `training.safetensors` (optimizer state and
generator states), `state.json` (everything else) and `SHA256SUMS`, which `sha256sum -c` understands. It is written
under another name and renamed when it is complete and on the disk. With several ranks, tensors may lie in `shares/`
instead: safetensors files, each with the shards of one rank.
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
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from mimkit.errors import Torn
from mimkit.files import flush
from mimkit.training.distributed import SINGLE, World, placed_like

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: model weights, training tensors, and the plain values beside them."""

    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, checkpoint: Checkpoint, world: World = SINGLE, *, sharded: bool = False) -> None:
    """Write `folder`/step-N atomically, then remove all but the newest `KEPT`.

    Args:
        folder: of all checkpoints.
        step: N.
        checkpoint: what is written; of what is the same on all ranks, the main process's copy.
        world: the ranks; with `sharded` all must call.
        sharded: tensors are written by the ranks that hold them, to `shares/`, instead of in full by the main process.

    Raises:
        OSError: something cannot be written.
    """
    final = folder / f"step-{step:08d}"
    unfinished = folder / f".unfinished-{step:08d}"
    try:
        world.on_main(lambda: _start(unfinished))
        found = _write_shards(unfinished, checkpoint, world) if sharded else {}
        if world.is_main:
            _write(unfinished, checkpoint, found)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{final} cannot be written, earlier checkpoints are kept: {error}") from error
    if world.is_main:
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        flush(folder)
        for old in _steps(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)  # another process may be reading it; the next save removes it


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None. Changes nothing, so that a run can be read while it trains."""
    for _ in range(2):  # a run in training may remove the old one while it is read
        for path in reversed(_steps(folder)):
            try:
                return load(path)
            except Torn:
                continue
    return None


def recover(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, for a run about to continue; torn ones are set aside with a warning.

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
        for name, expected in sums.items():
            if _sha256(path / name) != expected:
                raise Torn(f"the checksum of {name} does not match")
        state = json.loads((path / "state.json").read_text()) if "state.json" in sums else {}
        shards = state.pop("shares", [])
        if set(sums) != {"training.safetensors", "state.json", *(shards or ["weights.safetensors"])}:
            raise Torn("its list of checksums is incomplete")
        training = load_file(path / "training.safetensors")
        if shards:
            found = _read_shards(path / "shares")
            return Checkpoint(found["weights"], found["training"] | training, state)
        return Checkpoint(load_file(path / "weights.safetensors"), training, state)
    except (FileNotFoundError, ValueError) as error:  # also where a run in training removes it meanwhile
        raise Torn(str(error)) from error


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
            optimizer.state[parameters[name]][slot] = placed_like(value, parameters[name])


def _start(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write(folder: Path, checkpoint: Checkpoint, shards: dict[str, str]) -> None:
    """Write the main process's files. `shards` are the checksums of shards that are written already."""
    training, state = checkpoint.training, checkpoint.state
    if shards:
        training = {name: value for name, value in training.items() if name.startswith("generator/")}
        state = {**state, "shares": sorted(shards)}
    else:
        save_file({k: v.contiguous() for k, v in checkpoint.weights.items()}, folder / "weights.safetensors")
    save_file({k: v.contiguous() for k, v in training.items()}, folder / "training.safetensors")
    (folder / "state.json").write_text(json.dumps(state, indent=1))
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    sums = shards | {path.name: _sha256(path) for path in files}
    (folder / "SHA256SUMS").write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
    for path in (*files, folder / "SHA256SUMS", folder):
        flush(path)


def _write_shards(folder: Path, checkpoint: Checkpoint, world: World) -> dict[str, str]:
    """Write each rank's shards, by torch.distributed.checkpoint; returns the files' checksums by name."""
    tensors = {f"weights/{name}": value for name, value in checkpoint.weights.items()}
    training = {name: value for name, value in checkpoint.training.items() if not name.startswith("generator/")}
    tensors |= {f"training/{name}": value for name, value in training.items()}
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder / "shares"), save_distributed=True))
    except dcp.api.CheckpointException as error:
        raise OSError(str(next(iter(error.failures.values()))[0])) from error
    mine = sorted((folder / "shares").iterdir())[world.rank :: world.size]
    for path in mine:
        flush(path)
    sums = {f"shares/{path.name}": _sha256(path) for path in mine}
    return {name: value for some in world.gather(sums) for name, value in some.items()}


def _read_shards(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The full tensors, by kind and name."""
    reader = HuggingFaceStorageReader(str(folder))
    known = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in known.items()}  # type: ignore
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            dcp.load(tensors, storage_reader=reader, no_dist=True)
        except dcp.api.CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error
    found: dict[str, dict[str, Tensor]] = {"weights": {}, "training": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        found[kind][name] = value
    return found


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
