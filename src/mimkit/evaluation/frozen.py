"""Probe and embed a source: accuracy of its frozen encoder's features, and the features as a file."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mimkit.data import ImageList, find_all, split
from mimkit.errors import naming
from mimkit.evaluation import probes
from mimkit.evaluation.features import extract
from mimkit.files import write_bytes
from mimkit.settings import as_size
from mimkit.sources import load_encoder
from mimkit.training.hardware import choose_device, choose_workers
from mimkit.training.machine import Machine


def probe(
    source: str | Path,
    *,
    data: str | Path,
    kind: Literal["all", "knn", "linear"] = "all",
    held_out: float = 0.1,
    image_size: Sequence[int] | None = None,
    device: str = "auto",
    workers: int | None = None,
    recipe: str | None = None,
) -> dict[str, Any]:
    """Accuracies in percent, under "linear" and "knn", with the numbers of images and classes.

    Args:
        source: run folder, exported file, timm:NAME or random:NAME.
        data: folder with class folders, or with train and val folders that have them; or shards with classes.
        kind: which classifier to fit.
        held_out: share to score on, where there are no train and val folders.
        image_size: side, or height and width; None takes the source's own. Positions are resized.
        device: cpu, cuda, ...
        workers: data workers; None chooses by the number of cores.
        recipe: FILE.py:NAME, for sources made with a recipe from a file of the user's own.

    Raises:
        ValueError: the data has no class folders, or no held-out images.
    """
    torch_device, count = choose_machine(device, workers)
    encoder = load_encoder(source, image_size=as_size(image_size), recipe=recipe)
    if not 0 <= held_out < 1:
        raise ValueError(f"--held-out must be at least 0 and below 1, got {held_out}")
    with naming("--data"):
        train, test = split(data, held_out)
    if train.labels is None or test.labels is None:
        raise ValueError(f"--data {data} has no class folders: a probe needs labels")
    if not len(test):
        raise ValueError(f"--held-out {held_out} leaves no image of {data} to score on")
    labelled = []
    skipped = 0
    for images in (train, test):
        features, ids, bad = extract(encoder, images, device=torch_device, workers=count)
        if not len(features):
            raise ValueError(f"none of the {len(images)} images in {images.root} could be read")
        labelled += [features, torch.from_numpy(images.labels)[ids]]
        skipped += len(bad)
    wanted: dict[str, Callable[..., probes.Score]] = {"linear": probes.linear, "knn": probes.knn}
    scores = {name: score(*labelled) for name, score in wanted.items() if kind in (name, "all")}
    any_score = next(iter(scores.values()))
    return {name: score.accuracy for name, score in scores.items()} | {
        "train_images": any_score.train_images,
        "test_images": any_score.test_images,
        "classes": any_score.classes,
        "skipped_images": skipped,
        "source": str(source),
        "data": str(data),
        "readout": "mean of patch tokens after the final norm, nothing hidden",
    }


def embed(
    source: str | Path,
    *,
    data: str | Path,
    out: Path,
    image_size: Sequence[int] | None = None,
    device: str = "auto",
    workers: int | None = None,
    recipe: str | None = None,
) -> str:
    """Write an .npz of features, paths, and labels where there are class folders; returns one line that says so.

    Args:
        source: run folder, exported file, timm:NAME or random:NAME.
        data: as `find_all` takes it.
        out: .npz file to write.
        image_size: side, or height and width; None takes the source's own. Positions are resized.
        device: cpu, cuda, ...
        workers: data workers; None chooses by the number of cores.
        recipe: FILE.py:NAME, for sources made with a recipe from a file of the user's own.

    Raises:
        ValueError: no image can be read.
    """
    torch_device, count = choose_machine(device, workers)
    encoder = load_encoder(source, image_size=as_size(image_size), recipe=recipe)
    with naming("--data"):
        images = find_all(data)
    features, ids, skipped = extract(encoder, images, device=torch_device, workers=count)
    if not len(features):
        raise ValueError(f"--data: none of the {len(images)} images in {data} could be read")
    kept: ImageList = images.take(ids.numpy())
    arrays: dict[str, Any] = {"features": features.numpy(), "paths": np.array(kept.paths)}
    if kept.labels is not None and kept.classes is not None:
        arrays |= {"labels": kept.labels, "classes": np.array(kept.classes)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, buffer.getvalue())
    more = f", {len(skipped)} unreadable images left out, the first: {': '.join(skipped[0])}" if skipped else ""
    return f"{out}: {features.shape[0]} images x {features.shape[1]} features{more}"


def choose_machine(device: str, workers: int | None) -> tuple[torch.device, int]:
    """Torch's device, and the number of data workers.

    Raises:
        ValueError: there is no such device, or the number is negative.
    """
    machine = Machine(device=device, workers=workers)
    return choose_device(machine.device), choose_workers(machine.workers)
