"""What is said of a run before it starts: a few lines for people, and run.json for whoever runs it again."""

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from mimkit.backbones import DenseEncoder
from mimkit.recipes import parts_in_words
from mimkit.training.auto_workers import Tuning
from mimkit.training.distributed import ALONE, World, job
from mimkit.training.hardware import git_commit, machine_in_words

if TYPE_CHECKING:
    from mimkit.plan import Plan


def fingerprint(request: "Plan") -> str:
    """Of the names and labels of all images, training and held out."""
    return f"{request.train.fingerprint()}-{request.held_out.fingerprint()}"


def describe(request: "Plan", world: World = ALONE) -> list[str]:
    """A few lines that say what is about to be trained."""
    values, settings, encoder = request.recipe.train, request.settings, request.method.encoder
    height, width = request.recipe.image_size
    how = "computing on visible tokens only"
    if isinstance(encoder, DenseEncoder):
        how = "mask tokens in place of hidden cells" + (f" ({encoder.why})" if encoder.why else "")
    processes = f" in each of {world.size} processes, {world.parallel}" if world.size > 1 else ""
    labels = f"{len(request.train.classes)} classes" if request.train.classes else "no class folders"
    return [
        f"{request.name}: {encoder.name} at {height} x {width}, {parameters(encoder):,} parameters, {how}",
        f"data: {len(request.train):,} training and {len(request.held_out):,} held-out images, {labels}",
        f"training: {values.epochs} epochs, batch {values.batch_size} ({settings.micro_batch} at once{processes}), "
        f"peak learning rate {values.peak_lr:.3g} = {values.base_lr:g} x {values.batch_size} / {values.lr_batch}, "
        f"{values.precision}{', compiled' if settings.compile else ''}",
    ]


def facts(request: "Plan", tuning: Tuning, device: torch.device, world: World = ALONE) -> dict[str, Any]:
    """What run.json says."""
    method, recipe = request.method, request.recipe
    batches = request.batches(workers=0)
    return {
        "mimkit": version("mimkit"),
        "recipe": request.name,
        "settings": request.settings.to_json(),
        "parts": parts_in_words(recipe)
        | {"downstream": "the encoder with its final norm; readout and decoder serve pre-training only"},
        "training": str(recipe.train),
        "data": {
            "path": str(request.settings.data),
            "train_images": len(request.train),
            "held_out_images": len(request.held_out),
            "classes": request.train.classes,
            "fingerprint": fingerprint(request),
        },
        "steps": recipe.train.epochs * batches.steps_per_epoch,
        "steps_per_epoch": batches.steps_per_epoch,
        "parameters": {
            "encoder": parameters(method.encoder),
            "readout": parameters(method.readout),
            "decoder": parameters(method.decoders),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "timm", "numpy", "pillow")},
        "machine": machine_in_words(device),
        "processes": world.size,
        "tuning": tuning.to_json(),
        "job": job(),
        "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def parameters(module: torch.nn.Module) -> int:
    """How many numbers a module consists of."""
    return sum(p.numel() for p in module.parameters())
