"""Plans of small runs of MAE, made and not begun."""

from pathlib import Path

import torch

from mimkit.compose import compose
from mimkit.plan import Pretraining, plan_pretraining
from mimkit.settings import Settings
from mimkit.training.distributed import World

CPU = torch.device("cpu")


def settings(photos: Path, **changes) -> Settings:
    small = {"backbone": "test_vit", "image_size": (32,), "mask_ratio": 0.75, "batch_size": 12, "epochs": 2}
    narrow = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "precision": "fp32"}
    return Settings(**{"data": photos, "log_every": 1, "skipped_share": 0.2} | small | narrow | changes)


def plan(recipe: str, request: Settings, *, device: torch.device = CPU, processes: int = 1) -> Pretraining:
    """The job that the first of so many processes would begin."""
    world = World(0, processes)
    return plan_pretraining(recipe, compose(recipe, request), request, device=device, world=world)


def planned(photos: Path, **changes) -> Pretraining:
    return plan("mae", settings(photos, **changes))
