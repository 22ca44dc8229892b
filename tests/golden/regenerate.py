"""Writes curves.json: the losses of every recipe's first 20 steps on a tiny backbone and made images, in float32.

    python tests/golden/regenerate.py

A recipe that is added gets a curve; the others are kept. Where a number below, one in tests/helpers/tiny.py or a part
of a method has changed curves, nothing is written: to move one on purpose, take it out of the file first, and say in
the commit why it may move.
"""

import json
import math
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `helpers`, where pytest has not put it there

from helpers.parts import coarse_images
from helpers.tiny import TINY
from mimkit.compose import RECIPES, compose
from mimkit.randomness import sample_keys
from mimkit.recipes import build
from mimkit.settings import Settings
from mimkit.training.state import State

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


def refuse_moved(frozen: dict[str, list[float]], made: dict[str, list[float]]) -> None:
    """End the program where losses that are frozen come out otherwise."""
    near = partial(math.isclose, rel_tol=1e-5)
    moved = [name for name in frozen if name in made and not all(map(near, made[name], frozen[name]))]
    if moved:
        sys.exit(f"{len(moved)} have other losses than they had, {moved[0]} first: nothing is written")


def main() -> None:
    """Add the curves of recipes that the file lacks; those that it has are kept, or it is not written."""
    torch.set_num_threads(1)
    frozen, curves = json.loads(CURVES.read_text()), {name: curve(name) for name in RECIPES}
    refuse_moved(frozen, curves)
    CURVES.write_text(json.dumps({name: frozen.get(name, losses) for name, losses in curves.items()}, indent=1) + "\n")
    for name, losses in curves.items():
        print(f"{name:20}{losses[0]:.6f} to {losses[-1]:.6f}{'' if name in frozen else ', new'}")


if __name__ == "__main__":
    main()
