"""Checkpoint files are read without running anything in them."""

import argparse
import json
import os
import pathlib
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mimkit.convert.importing.read_file import read_checkpoint

WEIGHTS = {"blocks.0.weight": torch.arange(6.0).view(2, 3), "norm": torch.ones(2)}


class Malicious:
    """Whoever unpickles this runs a command."""

    def __init__(self, command, function=os.system):
        self.command, self.function = command, function

    def __reduce__(self):
        return self.function, (self.command,)


@pytest.fixture
def module(monkeypatch):
    """Makes a module that is there while a file is written, as on the machine that the file came from."""

    def make(name: str, **content) -> types.ModuleType:
        made = types.ModuleType(name)
        for key, value in content.items():
            value.__module__, value.__qualname__ = name, key
            setattr(made, key, value)
        for parent in range(name.count(".")):
            outer = ".".join(name.split(".")[: parent + 1])
            monkeypatch.setitem(sys.modules, outer, types.ModuleType(outer))
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


@pytest.mark.parametrize("zipped", [True, False])
def test_commands_are_refused_and_not_run(tmp_path, zipped):
    proof = tmp_path / "it ran"
    content = {"model": WEIGHTS, "args": Malicious(f"touch '{proof}'")}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"holds posix\.system, which would have to be run"):
        read_checkpoint(tmp_path / "bad.pth")
    assert not proof.exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)  # the file does what it is feared to do
    assert proof.exists()


@pytest.mark.parametrize("function", [eval, exec, compile, __import__, open, getattr])
def test_no_function_runs(tmp_path, function):
    """Not even one that has a stand-in: that does nothing."""
    torch.save({"model": WEIGHTS, "args": Malicious(str(tmp_path / "made"), function)}, tmp_path / "bad.pth")
    if function is getattr:
        assert read_checkpoint(tmp_path / "bad.pth").args == {}
    else:
        with pytest.raises(ValueError, match=f"holds .*{function.__name__}, which would have to be run"):
            read_checkpoint(tmp_path / "bad.pth")
    assert not (tmp_path / "made").exists()


def test_what_is_refused_is_named(tmp_path, module):
    trainer = module("lightning.trainer", Trainer=type("Trainer", (), {})).Trainer
    torch.save({"model": WEIGHTS, "callbacks": trainer()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth holds lightning\.trainer\.Trainer, .* refused"):
        read_checkpoint(tmp_path / "bad.pth")


def test_arguments(tmp_path):
    args = argparse.Namespace(model="mae_vit_base_patch16", mask_ratio=0.75, output=pathlib.PosixPath("/a/b"))
    torch.save({"model": WEIGHTS, "args": args, "epoch": np.float64(3), "lr": np.arange(3.0)}, tmp_path / "mae.pth")
    checkpoint = read_checkpoint(tmp_path / "mae.pth")
    same(checkpoint.weights)
    assert checkpoint.args["model"] == "mae_vit_base_patch16"
    assert checkpoint.args["mask_ratio"] == 0.75


def test_yacs_configuration(tmp_path, module, monkeypatch):
    """Its nodes are dictionaries with attributes of their own; the package is not there when the file is read."""
    node = module("yacs.config", CfgNode=type("CfgNode", (dict,), {})).CfgNode
    config = node(DATA=node(IMG_SIZE=192, MASK_RATIO=0.6), OUTPUT="x")
    config.__dict__["__immutable__"] = True
    torch.save({"model": WEIGHTS, "config": config}, tmp_path / "simmim.pth")
    monkeypatch.delitem(sys.modules, "yacs.config")
    checkpoint = read_checkpoint(tmp_path / "simmim.pth")
    same(checkpoint.weights)
    assert checkpoint.args == {"DATA": {"IMG_SIZE": 192, "MASK_RATIO": 0.6}, "OUTPUT": "x"}


def test_mmengine_message_hub(tmp_path, module, monkeypatch):
    """Its histories hold arrays, and methods of their own class by name."""
    history = module("mmengine.logging.history_buffer", HistoryBuffer=type("HistoryBuffer", (), {})).HistoryBuffer
    history.mean = lambda self: 0
    history.mean.__module__, history.mean.__qualname__ = history.__module__, "HistoryBuffer.mean"
    buffer = history()
    buffer.__dict__ |= {"_log_history": np.arange(4.0), "_statistics_methods": {"mean": history.mean}}
    torch.save({"state_dict": WEIGHTS, "message_hub": {"loss": buffer}, "meta": {"epoch": 1}}, tmp_path / "mm.pth")
    monkeypatch.delitem(sys.modules, "mmengine.logging.history_buffer")
    same(read_checkpoint(tmp_path / "mm.pth").weights)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_taken_off(tmp_path, prefix):
    torch.save({"model": {prefix + name: value for name, value in WEIGHTS.items()}}, tmp_path / "ddp.pth")
    same(read_checkpoint(tmp_path / "ddp.pth").weights)


@pytest.mark.parametrize("key", ["model", "state_dict", "module", None])
def test_where_files_keep_weights(tmp_path, key):
    torch.save({key: WEIGHTS, "epoch": 3} if key else WEIGHTS, tmp_path / "weights.pt")
    same(read_checkpoint(tmp_path / "weights.pt").weights)


def test_huggingface_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_checkpoint(tmp_path)
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        checkpoint = read_checkpoint(path)
        same(checkpoint.weights)
        assert checkpoint.config == {"model_type": "vit"}


def test_huggingface_folder_in_parts(tmp_path):
    """Parts are looked for in the folder itself, whatever the index says."""
    (tmp_path / "config.json").write_text("{}")
    parts = {name: f"../model-{i}.safetensors" for i, name in enumerate(WEIGHTS)}
    for name, part in parts.items():
        save_file({name: WEIGHTS[name]}, tmp_path / part.removeprefix("../"))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    same(read_checkpoint(tmp_path).weights)
    (tmp_path / "model-0.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-0\.safetensors, one of 2 files"):
        read_checkpoint(tmp_path)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"no Hugging Face folder: it has no config\.json"):
        read_checkpoint(tmp_path)
    for name, content in (("a.pth", b"not a pickle"), ("b.pth", b""), ("c.safetensors", b"not safetensors")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is no (checkpoint that torch can read|safetensors file)"):
            read_checkpoint(tmp_path / name)
    torch.save({"model": WEIGHTS}, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:700])
    (tmp_path / "README.md").write_text("# weights_only\n\nNo checkpoint at all.\n")
    for name, member in (("other.zip", "README.md"), ("script.pt", "script/constants.pkl")):  # torch warns of scripts
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, "nothing")
    for name in ("half.pth", "README.md", "other.zip", "script.pt"):
        with pytest.raises(ValueError, match=f"{name} is no checkpoint that torch can read safely: [a-z, ]+$"):
            read_checkpoint(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not weights by name"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"model": {"epoch": 3}}, tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        read_checkpoint(tmp_path / "nothing.pth")


def test_our_own_files_need_no_import(tmp_path):
    save_file(WEIGHTS, tmp_path / "ours.safetensors", {"mimkit.request": "{}"})
    with pytest.raises(ValueError, match="mimkit's own already"):
        read_checkpoint(tmp_path / "ours.safetensors")


def same(weights) -> None:
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], value) for name, value in WEIGHTS.items())
