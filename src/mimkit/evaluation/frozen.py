"""Probe and embed a source: accuracy of its frozen encoder's features, and the features as a file."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mimkit.data import Data, ImageList, find_all, in_words, split
from mimkit.errors import naming
from mimkit.evaluation import probes
from mimkit.evaluation.features import extract
from mimkit.files import home, refuse_unwritable, write_bytes
from mimkit.image_encoder import ImageEncoder
from mimkit.recipes import Recipe
from mimkit.sources import load_encoder
from mimkit.training.hardware import choose_device, choose_workers
from mimkit.training.machine import Machine


def probe(
    source: str | Path | ImageEncoder,
    *,
    data: Data,
    kind: Literal["all", "knn", "linear"] = "all",
    held_out: float = 0.1,
    image_size: int | Sequence[int] | None = None,
    device: str = "auto",
    workers: int | None = None,
    recipe: str | Recipe | None = None,
) -> dict[str, Any]:
    """Accuracies in percent, under "linear" and "knn", with the numbers of images and classes.

    Args:
        source: run folder, exported file, timm:NAME or random:NAME; or a loaded encoder.
        data: folder with class folders, or with train and val folders that have them; or shards with classes.
        kind: which classifier to fit.
        held_out: share to score on, where there are no train and val folders.
        image_size: side, or height and width; None takes the source's own. Positions are resized.
        device: cpu, cuda, ...
        workers: data workers; None chooses by the number of cores.
        recipe: FILE.py:NAME or the recipe itself, for sources made with a recipe of the user's own.

    Raises:
        ValueError: the data has no class folders, or no held-out images.
    """
    torch_device, count = choose_machine(device, workers)
    encoder = load_encoder(source, image_size=image_size, recipe=recipe)
    if not 0 <= held_out < 1:
        raise ValueError(f"--held-out must be at least 0 and below 1, got {held_out}")
    with naming("--data"):
        train, test = split(data, held_out)
    if train.labels is None or test.labels is None:
        lacks = "no class folders: a probe needs labels"
        if not isinstance(data, str | Path):
            lacks = "no labels, which a probe needs: give (images, labels), or a data set with `targets`"
        raise ValueError(f"--data {in_words(data)} has {lacks}")
    if not len(test):
        raise ValueError(f"--held-out {held_out} leaves no image of {in_words(data)} to score on")
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
        "source": str(source) if isinstance(source, str | Path) else source.encoder.name,
        "data": in_words(data),
        "readout": "mean of patch tokens after the final norm, nothing hidden",
    }


@dataclass(frozen=True, eq=False)
class Embedding:
    """Features of images, N that could be read.

    Args:
        features: float32 [N, D].
        paths: str [N], relative to the data, with `/` between folders.
        labels: int64 [N], positions in `classes`, or None.
        classes: names, or None where there are no class folders.
        skipped: (path, reason) of each image that could not be read.
    """

    features: np.ndarray
    paths: np.ndarray
    labels: np.ndarray | None
    classes: np.ndarray | None
    skipped: Sequence[tuple[str, str]]


def embed(
    source: str | Path | ImageEncoder,
    *,
    data: Data,
    out: str | Path | None = None,
    image_size: int | Sequence[int] | None = None,
    device: str = "auto",
    workers: int | None = None,
    recipe: str | Recipe | None = None,
) -> Embedding:
    """Features of every image, with its path, and its label where there are class folders.

    Args:
        source: run folder, exported file, timm:NAME or random:NAME; or a loaded encoder.
        data: as `find_all` takes it.
        out: .npz file to write them to, under these names; None writes none. `~` is expanded.
        image_size: side, or height and width; None takes the source's own. Positions are resized.
        device: cpu, cuda, ...
        workers: data workers; None chooses by the number of cores.
        recipe: FILE.py:NAME or the recipe itself, for sources made with a recipe of the user's own.

    Raises:
        ValueError: no image can be read, or `out` cannot be written.
    """
    file = None if out is None else home(out)
    if file is not None:
        refuse_unwritable(file)
    torch_device, count = choose_machine(device, workers)
    encoder = load_encoder(source, image_size=image_size, recipe=recipe)
    with naming("--data"):
        images = find_all(data)
    features, ids, skipped = extract(encoder, images, device=torch_device, workers=count)
    if not len(features):
        raise ValueError(f"--data: none of the {len(images)} images in {in_words(data)} could be read")
    kept: ImageList = images.take(ids.numpy())
    classes = None if kept.labels is None or kept.classes is None else np.array(kept.classes)
    labels = None if classes is None else kept.labels
    found = Embedding(features.numpy(), np.array(kept.paths), labels, classes, skipped)
    if file is not None:
        names = ("features", "paths", "labels", "classes")
        arrays = {name: getattr(found, name) for name in names if getattr(found, name) is not None}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, buffer.getvalue())
    return found


def choose_machine(device: str, workers: int | None) -> tuple[torch.device, int]:
    """Torch's device, and the number of data workers.

    Raises:
        ValueError: there is no such device, or the number is negative.
    """
    machine = Machine(device=device, workers=workers)
    return choose_device(machine.device), choose_workers(machine.workers)
