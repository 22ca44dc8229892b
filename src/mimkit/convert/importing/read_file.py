"""Checkpoint files, read without running anything that is in them.

Pickled files go through torch's restricted reader, which makes tensors and plain values only. What published files
carry beside those (a command line's arguments, a configuration, NumPy numbers) is read into stand-ins without
behaviour; anything else is refused by name.
"""

import json
import re
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS = ("model", "state_dict", "module")  # where files keep them, if not at the top
WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name


@dataclass(frozen=True, eq=False)
class CheckpointFile:
    """The content of a checkpoint file.

    Args:
        weights: by the names in the file, without wrappers' prefixes.
        args: arguments of the run (MAE and code derived from it), or its configuration (SimMIM), by name.
        config: a Hugging Face model's `config.json`.
        processor: its `preprocessor_config.json`.
    """

    weights: dict[str, Tensor]
    args: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)


class Values:
    """A stand-in for an object of plain values, which become its attributes."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class Node:
    """A stand-in for a mapping with attributes: an OrderedDict, which torch's reader can fill."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


def discarded(*_: Any) -> None:
    """A stand-in for a function whose result is not used."""


STAND_INS: list[Any] = [
    (Values, "argparse.Namespace"),
    (Node, "yacs.config.CfgNode"),
    (Values, "numpy.dtype"),
    (Values, "numpy.ndarray"),
    (discarded, "numpy.core.multiarray.scalar"),
    (discarded, "numpy._core.multiarray.scalar"),
    (Values, "numpy.core.multiarray._reconstruct"),
    (Values, "numpy._core.multiarray._reconstruct"),
    (Values, "mmengine.logging.history_buffer.HistoryBuffer"),
    (discarded, "builtins.getattr"),  # of HistoryBuffer's methods
    (Values, "pathlib.PosixPath"),
    (Values, "pathlib._local.PosixPath"),
]


def read_checkpoint(path: Path) -> CheckpointFile:
    """A checkpoint file (.pth, .pt, .bin, .ckpt or .safetensors), or a Hugging Face folder.

    A Hugging Face file (.bin or .safetensors) is read with the `config.json` beside it.

    Raises:
        ValueError: there is no such file, it holds no weights, or it holds something that would have to be run, which
            the message names.
    """
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    config = path.with_name("config.json")
    beside = {"config": read_json(config)} if path.suffix in (".bin", ".safetensors") and config.is_file() else {}
    if path.suffix == ".safetensors":
        return CheckpointFile(unwrapped(read_safetensors(path), path), **beside)
    content = read_pickled(path)
    found = next((content[key] for key in WEIGHTS if isinstance(content.get(key), dict)), content)
    weights = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    args = content.get("args", content.get("config"))
    args = vars(args) if isinstance(args, Values) else args
    return CheckpointFile(unwrapped(weights, path), args=args if isinstance(args, dict) else {}, **beside)


def read_folder(path: Path) -> CheckpointFile:
    """A Hugging Face folder: config.json, and weights in one file or several.

    Raises:
        ValueError: one of them is missing.
    """
    if (path / "run.json").is_file():
        raise ValueError(f"{path} is a run of mimkit's: use it as it is")
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} is no Hugging Face folder: it has no config.json")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map")
        shards = sorted({Path(name).name for name in named.values()}) if isinstance(named, dict) else []
        missing = [shard for shard in shards if not (path / shard).is_file()]
        if missing:
            raise ValueError(f"{path} lacks {missing[0]}, one of {len(shards)} files that {index.name} names")
        weights = {name: value for shard in shards for name, value in read_safetensors(path / shard).items()}
    elif (path / "model.safetensors").is_file():
        weights = read_safetensors(path / "model.safetensors")
    elif (path / "pytorch_model.bin").is_file():
        weights = read_pickled(path / "pytorch_model.bin")
    else:
        raise ValueError(f"{path} has neither model.safetensors nor pytorch_model.bin")
    processor = path / "preprocessor_config.json"
    return CheckpointFile(
        unwrapped(weights, path),
        config=read_json(path / "config.json"),
        processor=read_json(processor) if processor.is_file() else {},
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it is not one, or mimkit wrote it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if "mimkit.request" in (file.metadata() or {}):
                raise ValueError(f"{path} is mimkit's own already: use it as it is")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one: {error}") from error


def read_pickled(path: Path) -> dict[str, Any]:
    """The mapping in a file of `torch.save`.

    Raises:
        ValueError: it is not one, or holds something that would have to be run, which the message names.
    """
    try:
        with torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # torch raises many types for files that it did not write
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise ValueError(f"{path} holds {refused[1]}, which would have to be run to be read: refused") from error
        raise ValueError(f"{path} is no checkpoint that torch can read safely: damaged, or something else") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not weights by name")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    return content if isinstance(content, dict) else {}


def unwrapped(weights: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights without the prefixes of wrappers around the whole model.

    Raises:
        ValueError: there are none.
    """
    weights = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(f"{path} holds no weights")
    for prefix in WRAPPERS * 2:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights
