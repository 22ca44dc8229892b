"""Writes curves.json: the losses of every recipe's first 20 steps on a tiny backbone and made images, in float32.

    python tests/golden/regenerate.py

A change of any number below or in tests/helpers/tiny.py, or of any part of a method, changes the curves: say in the
commit why they may change.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `helpers`, where pytest has not put it there

from helpers.parts import coarse_images
from helpers.tiny import TINY
from mimkit.compose import RECIPES, compose
from mimkit.randomness import sample_keys
from mimkit.recipes import build
from mimkit.settings import Settings
from mimkit.training.loop import State

CURVES = Path(__file__).with_name("curves.json")
STEPS_PER_EPOCH, EPOCHS, BATCH = 4, 5, 8


def curve(name: str) -> list[float]:
    """The losses of a recipe's first steps, with its own parts, made small, and one schedule for all."""
    schedule = {"epochs": EPOCHS, "batch_size": BATCH, "base_lr": 0.032, "warmup_epochs": 1, "precision": "fp32"}
    recipe = compose(name, Settings(data=Path(), **TINY[name], **schedule))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = build(recipe).train()
    state, losses = State(method, recipe.train), []
    pictures = coarse_images(STEPS_PER_EPOCH * BATCH, recipe.image_size[0])
    for step in range(EPOCHS * STEPS_PER_EPOCH):
        epoch, place = divmod(step, STEPS_PER_EPOCH)
        numbers = torch.arange(place * BATCH, (place + 1) * BATCH)
        loss = method(pictures[numbers], keys=sample_keys(0, epoch, numbers)).loss
        loss.backward()
        state.update(loss.detach(), recipe.train.lr(step / STEPS_PER_EPOCH))
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    curves = {name: curve(name) for name in RECIPES}
    CURVES.write_text(json.dumps(curves, indent=1) + "\n")
    for name, losses in curves.items():
        print(f"{name:20}{losses[0]:.6f} to {losses[-1]:.6f}")


if __name__ == "__main__":
    main()
