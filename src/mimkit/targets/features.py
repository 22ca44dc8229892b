"""Features of a frozen network, which sees the whole image (EVA, MaskFeat §4.3).

Shapes: B batch, C image channels, H W pixels, h w cells, D the network's width.
"""

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.grids import Grid
from mimkit.targets.target import Target
from mimkit.views import IMAGENET, Normalization


@dataclass(frozen=True)
class Features(Target):
    """A frozen timm model's last features before the head, normalised per cell.

    The features of the model's own grid are averaged over the cells asked for, or interpolated where those are finer,
    then normalised to zero mean and unit std. Its weights are not in checkpoints: the name identifies them.

    Args:
        model: timm's name, with its tag of weights if not the default ("vit_small_patch16_224.dino").
        normalization: of the images, which is undone in favour of the model's own.
        pretrained: load timm's weights (downloaded on first use); else random ones, the same each time, for tests.
    """

    model: str
    normalization: Normalization = IMAGENET
    pretrained: bool = True

    def values(self, cell: int, channels: int) -> int:
        return teacher(self.model, channels, self.pretrained, torch.device("cpu")).dim

    @torch.no_grad()
    def __call__(self, images: Tensor, grids: list[Grid]) -> list[Tensor]:
        frozen = teacher(self.model, images.shape[1], self.pretrained, images.device)
        with torch.autocast(images.device.type, enabled=False):
            features = frozen.features(frozen.normalization.apply(self.normalization.undo(images.float())))
            return [on_grid(features, grid) for grid in grids]


@dataclass(frozen=True, eq=False)
class Teacher:
    """A timm model with frozen weights.

    Args:
        network: the model.
        name: timm's, for messages.
        normalization: of the images it takes.
        norm: whether it has a final norm for its features.
        dim: their width.
    """

    network: Any
    name: str
    normalization: Normalization
    norm: bool
    dim: int

    def features(self, images: Tensor) -> Tensor:
        """Images, normalised as it wants them, to its last feature map [B, D, h', w'].

        Raises:
            ValueError: it does not take images of this size.
        """
        try:
            return last_features(self.network, images, self.norm)
        except AssertionError as error:
            height, width = images.shape[-2:]
            raise ValueError(f"{self.name} cannot take {height} x {width} pixels: {error}") from error


def last_features(network: Any, images: Tensor, norm: bool) -> Tensor:
    """The last feature map [B, D, h', w'] of a timm model."""
    return network.forward_intermediates(images, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True)[0]


def on_grid(features: Tensor, grid: Grid) -> Tensor:
    """Feature maps [B, D, h', w'] for the cells of a grid, each of zero mean and unit std: [B, h, w, D]."""
    if tuple(features.shape[2:]) != grid:
        finer = grid[0] > features.shape[2] or grid[1] > features.shape[3]
        features = (
            F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
            if finer
            else F.adaptive_avg_pool2d(features, grid)
        )
    return F.layer_norm(features.permute(0, 2, 3, 1), features.shape[1:2])


@lru_cache(maxsize=4)
def teacher(model: str, channels: int, pretrained: bool, device: torch.device) -> Teacher:
    """The timm model, made once for each device.

    Raises:
        ValueError: timm has no such model, or it hands out no intermediate features.
    """
    options = {"pretrained": pretrained, "in_chans": channels, "num_classes": 0}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # not torch.manual_seed: other devices' states are not forked
        try:
            network = timm.create_model(model, **options, dynamic_img_size=True)
        except TypeError:
            network = timm.create_model(model, **options)
        except RuntimeError as error:
            raise ValueError(f"timm cannot make {model!r}: {' '.join(str(error).split())}") from error
    if not hasattr(network, "forward_intermediates"):
        raise ValueError(f"{model} hands out no intermediate features, which a target needs")
    network.eval().requires_grad_(False)
    config = network.pretrained_cfg
    mean, std = (config[key] if channels == 3 else (sum(config[key]) / 3,) * channels for key in ("mean", "std"))
    shadow = copy.deepcopy(network).to("meta")  # for shapes only
    images = torch.empty(1, channels, *config["input_size"][1:], device="meta")
    try:
        norm, dim = True, last_features(shadow, images, norm=True).shape[1]
    except AssertionError:  # Hiera's norm is in its head
        norm, dim = False, last_features(shadow, images, norm=False).shape[1]
    return Teacher(network.to(device), model, Normalization(tuple(mean), tuple(std)), norm, dim)
