"""A task of one's own: linear segmentation of CamVid on a frozen encoder, as a job that stands outside the package.

python docs/examples/segmentation.py SOURCE --data camvid --out RUN    # the same command again goes on exactly
"""

from pathlib import Path
from types import SimpleNamespace

import torch
import tyro
from sklearn.metrics import accuracy_score, jaccard_score
from torch import nn
from torch.nn.functional import cross_entropy, interpolate
from tyro.conf import OmitArgPrefixes, Positional

from mimkit import ImageEncoder, Machine, load_encoder
from mimkit.data import Annotated, PixelMapFiles, Samples, TrainBatches, find_images, load_in_order
from mimkit.training import SINGLE, Job, Train, start_or_resume
from mimkit.views import CenterCrop, RandomResizedCrop, View

VOID = 255  # pixels of no class, which count in no loss and no score


class LinearSegmenter(nn.Module):
    """One linear map from features to classes. The loop leaves the frozen encoder alone, and out of checkpoints."""

    def __init__(self, encoder: ImageEncoder, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.encoder.dim, classes)

    def forward(self, images, labels, **_):  # uint8 [B, C, H, W] and [B, H, W]
        latent = self.encoder.latent(images)
        cells = self.head(latent.tokens).float().mT.unflatten(2, latent.grid)
        logits = interpolate(cells, size=images.shape[2:], mode="bilinear")
        # The mean is over void pixels too, so that the losses of equal shares of a batch add up to the batch's.
        loss = cross_entropy(logits, labels.long(), ignore_index=VOID, reduction="none").mean()
        return SimpleNamespace(loss=loss, found=logits.argmax(1))


def samples(data: Path, split: str, view: View, size: tuple[int, int]) -> Samples:
    """Images with the class of each of their pixels; the masks have the images' names."""
    images, masks = find_images(data / "images" / split), data / "annotations" / split
    labels = PixelMapFiles(masks / Path(path).with_suffix(".png") for path in images.paths)
    return Samples(Annotated(images, labels=labels), view=view, size=size)


class Segmentation(Job):
    """Linear segmentation of a folder's images on the encoder of a source."""

    kind = "segmentation"

    def __init__(self, source: str, data: Path, train: Train) -> None:
        torch.manual_seed(0)  # of the head, and of random:NAME
        encoder, classes = load_encoder(source), (data / "classes.txt").read_text().split()
        self.training = samples(data, "train", RandomResizedCrop(), encoder.image_size)
        self.held_out = samples(data, "val", CenterCrop(), encoder.image_size)
        self.model, self.train, self.micro_batch = LinearSegmenter(encoder, len(classes)), train, train.batch_size
        self.samples = len(self.training) + len(self.held_out)
        kept = [one.examples.fingerprint() for one in (self.training, self.held_out)]
        self.settings = {"source": source, "size": encoder.image_size, "classes": classes, "fingerprints": kept}

    def batches(self, workers=0, world=SINGLE, **reading):
        size, ranks = self.train.batch_size, {"rank": world.rank, "world": world.size}
        return TrainBatches(self.training, batch_size=size, workers=workers, **ranks, **reading)

    def evaluators(self, run, *, device, workers, world):
        return [(-(-self.train.epochs // 5) * self.batches().steps_per_epoch, lambda step: self.scores(device))]

    def scores(self, device):
        truth, found = [], []
        for batch in load_in_order(self.held_out, batch_size=8):
            truth.append(batch.tensors["labels"].flatten())
            found.append(self.model(**batch.inputs(device)).found.flatten().cpu())
        known = torch.cat(truth) != VOID
        pair = torch.cat(truth)[known], torch.cat(found)[known]
        miou, accuracy = jaccard_score(*pair, average="macro"), accuracy_score(*pair)
        return {"kind": "segmentation", "mIoU": 100 * float(miou), "pixel_accuracy": 100 * float(accuracy)}

    def facts(self):
        return {"settings": self.settings}


def main(source: Positional[str], values: OmitArgPrefixes[Machine], *, data: Path, out: Path, epochs: int = 20) -> None:
    """Train, or go on where the same command was stopped."""
    train = Train(epochs=epochs, batch_size=8, base_lr=0.01, lr_batch=8, warmup_epochs=0)
    start_or_resume(lambda device, world: Segmentation(source, data, train), out, values)


if __name__ == "__main__":
    tyro.cli(main)
