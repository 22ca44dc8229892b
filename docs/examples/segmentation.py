"""A task of one's own: linear segmentation of CamVid on a frozen encoder, as a job that stands outside the package.

    python docs/examples/segmentation.py SOURCE --data camvid --out RUN    # the same command again goes on exactly
    mimkit report RUN

SOURCE is whatever `mimkit.load_encoder` takes. The loop, the run folder, the log and the report are the package's; what
they need to know of the task is `Segmentation`.

Shapes: B batch, C image channels, H W pixels, h w cells, K classes.
"""

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import Tensor, nn
from tyro.conf import OmitArgPrefixes, Positional

from mimkit import ImageEncoder, Machine, Run, load_encoder
from mimkit.data import read_image
from mimkit.randomness import random_orders, sample_keys
from mimkit.training import launch
from mimkit.training.distributed import SINGLE, World
from mimkit.training.job import Job
from mimkit.training.loop import Evaluator
from mimkit.training.optim import Train
from mimkit.training.precision import choose_precision
from mimkit.views import CenterCrop

VOID = 255  # pixels of no class, which count in no loss and no score


@dataclass(frozen=True)
class Samples:
    """Images, uint8 [B, C, H, W], and the class of each of their pixels, uint8 [B, H, W]."""

    images: Tensor
    labels: Tensor
    skipped: Sequence[tuple[str, str]] = ()

    @classmethod
    def read(cls, data: Path, split: str, encoder: ImageEncoder) -> "Samples":
        """A whole split; the masks, which have the images' names, are cut as the encoder cuts images."""
        paths, cut = sorted((data / "images" / split).glob("*.jpg")), CenterCrop(Image.Resampling.NEAREST)
        if not paths:
            raise ValueError(f"--data {data} has no images/{split}/*.jpg")
        masks = [read_image(data / "annotations" / split / f"{path.stem}.png", channels=1) for path in paths]
        labels = np.stack([cut(mask, encoder.image_size) for mask in masks])
        return cls(encoder.read(paths), torch.from_numpy(labels))

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What the model is called with."""
        return {"images": self.images.to(device), "labels": self.labels.to(device)}


@dataclass(frozen=True)
class Batches:
    """A process's share of the training batches: a function of the step, so that a resume needs nothing saved."""

    samples: Samples
    size: int
    world: World
    accumulation = 1  # a batch is computed at once

    @property
    def steps_per_epoch(self) -> int:
        return len(self.samples.labels) // self.size

    def from_step(self, step: int) -> Generator[Samples]:
        for number in itertools.count(step):
            epoch, place = divmod(number, self.steps_per_epoch)
            (order,) = random_orders(sample_keys(0, epoch, torch.tensor([-1])), len(self.samples.labels))
            taken = order[place * self.size :][self.world.rank : self.size : self.world.size]
            yield Samples(self.samples.images[taken], self.samples.labels[taken])


class LinearSegmenter(nn.Module):
    """One linear map from features to classes. A frozen encoder is left alone by the loop, and out of checkpoints."""

    def __init__(self, encoder: ImageEncoder, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.encoder.dim, classes)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32 [B, K, H, W]."""
        latent = self.encoder.latent(images)
        cells = self.head(latent.tokens).float().mT.unflatten(2, latent.grid)  # [B, K, h, w]
        return F.interpolate(cells, size=images.shape[2:], mode="bilinear")

    def forward(self, images: Tensor, labels: Tensor) -> SimpleNamespace:
        losses = F.cross_entropy(self.logits(images), labels.long(), ignore_index=VOID, reduction="none")
        return SimpleNamespace(loss=losses.mean())  # over void pixels too, so that equal shares of a batch add up to it


def scores(model: LinearSegmenter, held_out: Samples, classes: int, device: torch.device, step: int) -> dict[str, Any]:
    """A row of the log: mean IoU over the classes that occur, and pixel accuracy, in percent."""
    confusion = torch.zeros(classes, classes, dtype=torch.int64)  # [K, K], true class by predicted class
    for image, labels in zip(held_out.images, held_out.labels.long(), strict=True):
        pairs = labels * classes + model.logits(image[None].to(device)).argmax(1)[0].cpu()
        confusion += pairs[labels != VOID].bincount(minlength=classes**2).view(classes, classes)
    right, either = confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()
    miou, accuracy = (right / either)[either > 0].mean(), right.sum() / confusion.sum()
    return {"kind": "segmentation", "mIoU": 100 * miou.item(), "pixel_accuracy": 100 * accuracy.item()}


class Segmentation(Job):
    """Linear segmentation of a folder's images on the encoder of a source."""

    kind = "segmentation"
    model: LinearSegmenter

    def __init__(self, source: str, data: Path, image_size: tuple[int, int] | None, train: Train) -> None:
        torch.manual_seed(0)  # for random:NAME, whose weights must come out the same each time, and for the head
        encoder = load_encoder(source, image_size=image_size)
        self.source, self.data, self.classes = source, data.resolve(), (data / "classes.txt").read_text().split()
        self.training, self.held_out = (Samples.read(data, split, encoder) for split in ("train", "val"))
        self.model, self.train, self.micro_batch = LinearSegmenter(encoder, len(self.classes)), train, train.batch_size
        self.samples = len(self.training.labels) + len(self.held_out.labels)

    def batches(
        self, workers: int = 0, world: World = SINGLE, *, prefetch: int = 2, pin_memory: bool = False
    ) -> Batches:
        return Batches(self.training, self.train.batch_size, world)

    def evaluators(
        self, run: Run, *, device: torch.device, workers: int, world: World
    ) -> Sequence[tuple[int, Evaluator]]:
        every = -(-self.train.epochs // 5) * self.batches().steps_per_epoch
        return [(every, partial(scores, self.model, self.held_out, len(self.classes), device))]

    def facts(self) -> dict[str, Any]:
        counts = {"train_images": len(self.training.labels), "held_out_images": len(self.held_out.labels)}
        settings = {"source": self.source, "image_size": list(self.model.encoder.image_size)}
        return {"settings": settings, "data": {"path": str(self.data), "classes": self.classes, **counts}}


def main(
    source: Positional[str], machine: OmitArgPrefixes[Machine], *, data: Path, out: Path,
    image_size: tuple[int, int] | None = None, epochs: int = 20, batch_size: int = 8, base_lr: float = 0.01,
) -> None:  # fmt: skip
    """Train, or go on where the same command was stopped."""

    def make(device: torch.device, world: World) -> Segmentation:
        values = {"lr_batch": batch_size, "warmup_epochs": 0, "precision": choose_precision(device)}
        return Segmentation(
            source, data, image_size, Train(epochs=epochs, batch_size=batch_size, base_lr=base_lr, **values)
        )

    finished = launch.start_or_resume(make, out, machine)
    print(f"report: {out / 'report.html'}" if finished else "stopped and saved: the same command goes on")


if __name__ == "__main__":
    tyro.cli(main)
