"""Writes curves.json: the losses of every recipe's first 20 steps on a tiny ViT and made images, in float32.

    python tests/golden/regenerate.py

A change of any number below, or of any part of a method, changes the curves: say in the commit why they may change.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from mimkit.compose import compose, recipes
from mimkit.randomness import sample_keys
from mimkit.recipes import build
from mimkit.settings import Settings
from mimkit.train import State

CURVES = Path(__file__).with_name("curves.json")
STEPS_PER_EPOCH, EPOCHS, BATCH = 4, 5, 8


def curve(name: str) -> list[float]:
    """The losses of a recipe's first steps, with its own parts, made small, and one schedule for all."""
    settings = Settings(
        data=Path(),
        backbone="test_vit",
        image_size=(64, 64),
        mask_ratio=0.75,
        decoder_width=32,
        decoder_depth=1,
        decoder_heads=2,
        epochs=EPOCHS,
        batch_size=BATCH,
        base_lr=0.032,
        warmup_epochs=1,
        precision="fp32",
    )
    recipe = compose(name, settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = build(recipe).train()
    state, losses = State(method, recipe.train), []
    for step in range(EPOCHS * STEPS_PER_EPOCH):
        epoch, place = divmod(step, STEPS_PER_EPOCH)
        numbers = torch.arange(place * BATCH, (place + 1) * BATCH)
        loss = method(images()[numbers], keys=sample_keys(0, epoch, numbers)).loss
        loss.backward()
        state.update(loss.detach(), recipe.train.lr(step / STEPS_PER_EPOCH))
        losses.append(float(loss.detach()))
    return losses


def images() -> Tensor:
    """uint8 [32, 3, 64, 64]: coloured blocks of 8 pixels with fine noise, whole numbers only."""
    generator = torch.Generator().manual_seed(0)
    count = STEPS_PER_EPOCH * BATCH
    blocks = torch.randint(200, (count, 3, 8, 8), generator=generator)
    noise = torch.randint(56, (count, 3, 64, 64), generator=generator)
    return (blocks.repeat_interleave(8, 2).repeat_interleave(8, 3) + noise).to(torch.uint8)


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    curves = {name: curve(name) for name in recipes()}
    CURVES.write_text(json.dumps(curves, indent=1) + "\n")
    for name, losses in curves.items():
        print(f"{name:12}{losses[0]:.6f} to {losses[-1]:.6f}")


if __name__ == "__main__":
    main()
