"""Writes grid.json: the losses of three steps of each of many combinations of parts, on tiny models, in float32.

    python tests/golden/grid.py

The combinations are generated. A rule says which parts go together; of those, enough are chosen that each backbone
meets each readout and decoder, and any two other parts meet at least once. Those that are in the file stay, with their
losses: where a part is added, the grid grows.
"""

import json
import sys
from dataclasses import dataclass, replace
from itertools import combinations as pairs_of
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `helpers`, where pytest has not put it there

from golden.regenerate import refuse_moved
from helpers.parts import coarse_images
from helpers.tiny import NARROW
from mimkit.compose import DECODERS, DISTANCES, MASKS, READOUTS, TARGETS, compose
from mimkit.randomness import sample_keys
from mimkit.recipes import Recipe, build
from mimkit.settings import Settings
from mimkit.targets import Features
from mimkit.training.state import State

GRID = Path(__file__).with_name("grid.json")
STEPS, BATCH = 3, 2
IMAGES = 32  # made at once, of which the first are taken

SMALL, STAGES = {"image_size": (64, 64)}, "depths=(1, 1, 2, 1)"
SWIN = (
    f"swin_tiny_patch4_window7_224(embed_dim=16, {STAGES}, num_heads=(1, 2, 2, 4), window_size=2, drop_path_rate=0.0)"
)
VIT = "vit_tiny_patch16_224(embed_dim=24, depth=5, num_heads=3)"
ENCODERS: dict[str, dict[str, Any]] = {  # all have 4 x 4 cells to hide
    "visible ViT": {"encoder": "visible", "backbone": VIT} | SMALL,
    "visible Swin": {"encoder": "visible", "backbone": SWIN, "image_size": (128, 128)},
    "ConvMAE": {"backbone": "convmae_base(dims=(8, 16, 24), depths=(1, 1, 5), heads=3)"} | SMALL,
    "dense ViT": {"encoder": "dense", "backbone": VIT} | SMALL,
    "dense BEiT": {"backbone": "beit_base_patch16_224(embed_dim=24, depth=5, num_heads=3, init_values=0.1)"} | SMALL,
    "dense Swin": {"encoder": "dense", "backbone": SWIN, "image_size": (128, 128)},
    "dense SwinV2": {
        "backbone": f"swinv2_tiny_window8_256(embed_dim=16, {STAGES}, num_heads=(1, 2, 2, 4), window_size=4, "
        "drop_path_rate=0.0)",
        "mask_cell": 16,
    }
    | SMALL,
    "dense ConvNeXt": {"backbone": f"convnext_tiny({STAGES}, dims=(8, 16, 24, 32))", "mask_cell": 16} | SMALL,
    "dense Hiera": {"backbone": "hiera_tiny_224(embed_dim=16, num_heads=1, stages=(1, 1, 2, 1))", "mask_cell": 16}
    | SMALL,
    "dense ResNet": {"backbone": "resnet18(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32))", "mask_cell": 16} | SMALL,
}
VISIBLE = {"visible ViT", "visible Swin", "ConvMAE"}
STAGED = {"visible Swin", "dense Swin", "dense SwinV2", "dense ConvNeXt", "dense Hiera", "dense ResNet"}
VARIANTS = {"lowfreq-pixels-mmselfsup", "hog-18"}  # of targets that are in the grid


class Parts(NamedTuple):
    """One of each."""

    encoder: str
    readout: str
    mask: str
    decoder: str
    target: str = "pixels"
    distance: str = "squared"

    def __str__(self) -> str:
        return ", ".join(self)


def misfit(parts: Parts) -> str | None:
    """Why parts do not go together, as `build` says it; None where they do. Targets and distances fit everything."""
    if parts.mask == "uniform" and parts.encoder in ("visible Swin", "ConvMAE"):
        return "no mask token"
    if parts.readout in ("fused", "fused-mlp", "fused-attention", "fused-all") and parts.encoder in STAGED:
        return "Fused needs one grid"
    if parts.decoder == "linear" and parts.encoder in VISIBLE:
        return "a linear decoder cannot predict cells that the encoder leaves out"
    if parts.decoder == "cross" and parts.encoder not in VISIBLE:
        return "a cross decoder asks for cells that the encoder leaves out"
    if parts.readout == "levels" and parts.encoder not in STAGED and parts.decoder != "transformer":
        return f"a {parts.decoder} decoder cannot rescale"  # levels of a plain transformer are finer and coarser
    return None


def combinations() -> list[Parts]:
    """Those that are frozen already, and as many more as it takes for all that go together to meet: greedily, those
    first that bring most new meetings.
    """
    everything = product(
        ENCODERS, READOUTS, MASKS, DECODERS, [name for name in TARGETS if name not in VARIANTS], DISTANCES
    )
    fitting = {parts: meetings(parts) for parts in (Parts(*names) for names in everything) if misfit(parts) is None}
    chosen = [Parts(*name.split(", ")) for name in json.loads(GRID.read_text())]
    missing = set().union(*fitting.values()).difference(*map(meetings, chosen))
    while missing:
        chosen.append(max(fitting, key=lambda parts: len(fitting[parts] & missing)))
        missing -= fitting[chosen[-1]]
    return sorted(chosen, key=lambda parts: list(ENCODERS).index(parts.encoder))


def meetings(parts: Parts) -> set[tuple[str, ...]]:
    """Which parts meet: any two, and encoder, readout and decoder."""
    return {*pairs_of(parts, 2), (parts.encoder, parts.readout, parts.decoder)}


def recipe(parts: Parts) -> Recipe:
    """The parts as the command line would compose them, but for what it has no flag for."""
    settings = ENCODERS[parts.encoder] | {"readout": parts.readout, "mask": parts.mask, "decoder": parts.decoder}
    settings |= {} if parts.decoder == "linear" else NARROW
    settings |= {} if parts.target == "features" else {"target": parts.target}
    train = {"epochs": 1, "batch_size": BATCH, "base_lr": 0.128, "warmup_epochs": 0, "precision": "fp32"}
    composed = compose("mae", Settings(data=Path(), **settings, **train))
    if parts.target == "features":
        composed = replace(composed, target=Features(model="test_vit", pretrained=False))
    return replace(composed, distance=DISTANCES[parts.distance])


@dataclass(frozen=True)
class Trained:
    """Three steps: their losses, and of the trained parameters' names, for each step, those without gradient, and
    those whose gradient is zero.
    """

    names: set[str]
    losses: list[float]
    without: list[set[str]]
    zero: list[set[str]]


def train(parts: Parts) -> Trained:
    """Three steps of AdamW from the same weights each time, on two images each."""
    made = recipe(parts)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = build(made).train()
    learning = {name: p for name, p in method.named_parameters() if p.requires_grad}
    state, trained = State(method, made.train), Trained(set(learning), [], [], [])
    for step in range(STEPS):
        numbers = torch.arange(step * BATCH, (step + 1) * BATCH)
        loss = method(coarse_images(IMAGES, made.image_size[0])[numbers], keys=sample_keys(0, 0, numbers)).loss
        loss.backward()
        trained.losses.append(float(loss.detach()))
        trained.without.append({name for name, p in learning.items() if p.grad is None})
        trained.zero.append({name for name, p in learning.items() if p.grad is not None and not p.grad.any()})
        state.update(loss.detach(), made.train.lr(0))
    return trained


def main() -> None:
    """Add the combinations that the file lacks; those that it has are kept, or it is not written."""
    torch.set_num_threads(1)
    frozen = json.loads(GRID.read_text())
    grid = {str(parts): train(parts).losses for parts in combinations()}
    refuse_moved(frozen, grid)
    GRID.write_text(json.dumps(grid | frozen, indent=1) + "\n")
    print(f"{len(grid)} combinations, {len(grid.keys() - frozen.keys())} of them new")


if __name__ == "__main__":
    main()
