"""Plans of small runs of MAE, made and not begun."""

from pathlib import Path

import torch

from mimkit.plan import Plan, plan
from mimkit.settings import Settings

CPU = torch.device("cpu")


def settings(photos: Path, **changes) -> Settings:
    small = {"backbone": "test_vit", "image_size": (32,), "mask_ratio": 0.75, "batch_size": 12, "epochs": 2}
    narrow = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "precision": "fp32"}
    return Settings(**{"data": photos, "log_every": 1, "skipped_share": 0.2} | small | narrow | changes)


def planned(photos: Path, **changes) -> Plan:
    return plan("mae", settings(photos, **changes), device=CPU)
