"""Features of a frozen network, which sees the whole image (EVA, MaskFeat §4.3).

Shapes: B batch, C image channels, H W pixels, h w cells, D the network's width.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.grids import Grid
from mimkit.views import IMAGENET, Normalization


@dataclass(frozen=True)
class Features:
    """What a frozen timm model makes of each cell: its last features before the head, normalised per cell.

    The features of the model's own grid are averaged over the cells asked for, or interpolated where those are finer,
    then brought to zero mean and unit deviation. Its weights are no part of a checkpoint: the name says which they are.

    Args:
        model: timm's name, with its tag of weights if not the default ("vit_small_patch16_224.dino").
        normalization: of the images, which is undone in favour of the model's own.
        pretrained: load timm's weights (downloaded on first use); else random ones, the same each time, for tests.
    """

    model: str
    normalization: Normalization = IMAGENET
    pretrained: bool = True

    def values(self, cell: int, channels: int) -> int:
        return teacher(self.model, channels, self.pretrained, torch.device("cpu")).num_features

    @property
    def picture_note(self) -> str:
        return "Features have no picture."

    @property
    def reference_names(self) -> tuple[str, ...]:
        return ()

    def references(self, images: Tensor) -> list[Tensor]:
        return []

    def picture(self, prediction: Tensor, images: Tensor) -> None:
        return None

    @torch.no_grad()
    def __call__(self, images: Tensor, grids: list[Grid]) -> list[Tensor]:
        network = teacher(self.model, images.shape[1], self.pretrained, images.device)
        config = network.pretrained_cfg
        own = Normalization(tuple(config["mean"]), tuple(config["std"]))
        with torch.autocast(images.device.type, enabled=False):
            pixels = own.apply(self.normalization.undo(images.float()))
            features = network.forward_intermediates(
                pixels, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
            )[0]
            return [on_grid(features, grid) for grid in grids]


def on_grid(features: Tensor, grid: Grid) -> Tensor:
    """Feature maps [B, D, h', w'] for the cells of a grid, each of zero mean and unit deviation: [B, h, w, D]."""
    if tuple(features.shape[2:]) != grid:
        finer = grid[0] > features.shape[2] or grid[1] > features.shape[3]
        features = (
            F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
            if finer
            else F.adaptive_avg_pool2d(features, grid)
        )
    return F.layer_norm(features.permute(0, 2, 3, 1), features.shape[1:2])


@lru_cache(maxsize=4)
def teacher(model: str, channels: int, pretrained: bool, device: torch.device) -> Any:
    """A timm model with frozen weights, made once for each device.

    Raises:
        ValueError: timm has no such model, or it hands out no intermediate features.
    """
    options = {"pretrained": pretrained, "in_chans": channels, "num_classes": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network = timm.create_model(model, **options, dynamic_img_size=True)
        except TypeError:
            network = timm.create_model(model, **options)
        except RuntimeError as error:
            raise ValueError(f"timm cannot make {model!r}: {' '.join(str(error).split())}") from error
    if not hasattr(network, "forward_intermediates"):
        raise ValueError(f"{model} hands out no intermediate features, which a target needs")
    return network.eval().requires_grad_(False).to(device)
