"""Evaluators of pre-training: an online probe of the frozen encoder, and reconstructions of fixed images.

They are functions of the step and the weights; they draw no random numbers from training's generators.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimkit.data import ImageList, load_in_order
from mimkit.data.order import SHARDS_AT_ONCE
from mimkit.evaluation import probes
from mimkit.evaluation import reconstruction as pictures
from mimkit.evaluation.features import centred, extract
from mimkit.files import write_bytes, write_text
from mimkit.image_encoder import ImageEncoder
from mimkit.method import Method
from mimkit.randomness import sample_keys, scramble


def subset(images: ImageList, count: int) -> ImageList:
    """At most `count` images, the same ones each time, in random order; of many shards, from as few as an epoch reads
    at a time, since each may have to be fetched."""
    chosen = np.random.default_rng(0).permutation(len(images))
    if images.shards is not None:
        shards, counts = np.unique(images.shards, return_counts=True)
        order = scramble(torch.from_numpy(shards)).argsort().numpy()
        enough = int(np.searchsorted(counts[order].cumsum(), count)) + 1
        few = shards[order[: max(SHARDS_AT_ONCE, enough)]]
        chosen = chosen[np.isin(images.shards[chosen], few)]
    return images.take(chosen[:count])


class OnlineProbe:
    """Probes on features of unmasked images, as `mimkit probe` computes them: accuracies with labels, `health` without.

    Args:
        method: whose encoder is probed.
        train: images to fit the probes on.
        held_out: images to score them on.
        device: where features are computed.
        workers: data workers.
        batch_size: images computed at once.
    """

    def __init__(
        self,
        method: Method,
        train: ImageList,
        held_out: ImageList,
        *,
        device: torch.device | str,
        workers: int = 0,
        batch_size: int = 128,
    ) -> None:
        self.method, self.train, self.held_out, self.device = method, train, held_out, device
        self.workers, self.batch_size = workers, batch_size

    def __call__(self, step: int) -> dict[str, Any]:
        encoder = ImageEncoder.of(self.method)
        test, test_ids, skipped = extract(
            encoder, self.held_out, device=self.device, workers=self.workers, batch_size=self.batch_size
        )
        row: dict[str, Any] = {"kind": "probe", "train_images": len(self.train), "test_images": len(test)}
        row |= {"classes": None, "skipped": skipped}
        if not len(test):
            return row
        row |= {**probes.health(test), "masked_loss": self.masked_loss()}
        if self.train.labels is not None and self.held_out.labels is not None:
            train, train_ids, more = extract(
                encoder, self.train, device=self.device, workers=self.workers, batch_size=self.batch_size
            )
            row["skipped"] = skipped + more
            if not len(train):
                return row
            labels = torch.from_numpy(self.train.labels)[train_ids]
            data = (train, labels, test, torch.from_numpy(self.held_out.labels)[test_ids])
            linear, knn = probes.linear(*data), probes.knn(*data)
            row |= {"linear": linear.accuracy, "knn": knn.accuracy, "classes": linear.classes}
            row |= {"train_images": linear.train_images, "test_images": linear.test_images}
        return row

    def masked_loss(self) -> float:
        """The method's loss on held-out images, always with the same masks."""
        losses = []
        samples = centred(self.held_out, self.method.encoder)
        for batch in load_in_order(samples, workers=self.workers, batch_size=self.batch_size):
            if len(batch.indices):
                keys = sample_keys(0, 0, batch.indices).to(self.device)
                loss = self.method(batch.images.to(self.device), keys=keys, batch_key=torch.zeros_like(keys[:1])).loss
                losses.append((float(loss), len(batch.indices)))
        return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


class OnlineReconstructions:
    """A sheet of pictures of the same images with the same masks, into the run's `reconstructions/`.

    Args:
        method: what reconstructs.
        images: what is reconstructed.
        folder: of the run.
        device: where to compute.
    """

    def __init__(self, method: Method, images: ImageList, folder: Path, *, device: torch.device | str) -> None:
        self.method, self.images, self.folder, self.device = method, images, folder / "reconstructions", device

    def __call__(self, step: int) -> None:
        for batch in load_in_order(centred(self.images, self.method.encoder)):
            if not len(batch.indices):
                continue
            keys = sample_keys(0, 0, batch.indices).to(self.device)
            rows = pictures.reconstruct_batch(self.method, batch.images.to(self.device), keys)
            if rows is None:
                return
            self.folder.mkdir(exist_ok=True)
            legend = {"columns": pictures.columns(self.method), "note": self.method.target.picture_note}
            write_text(self.folder / "legend.json", json.dumps(legend))
            write_bytes(self.folder / f"step-{step:08d}.png", pictures.png(pictures.sheet(rows)))
