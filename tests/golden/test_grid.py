"""Parts go together as grid.py's rule says, and whatever it chose of them trains, with the losses it always had."""

import json
import math
import re
from dataclasses import replace
from itertools import product

import pytest

from golden.grid import DECODERS, ENCODERS, GRID, MASKS, READOUTS, STEPS, Parts, combinations, misfit, recipe, train
from mimkit.recipes import build

TOLERANCE = 1e-5  # relative; other processors round otherwise
LOSSES: dict[str, list[float]] = json.loads(GRID.read_text())
IDLE_AT_FIRST = {  # behind weights that begin at zero: without gradient in the first step
    "fused-attention": r"readout\.(projections\.\d|attention\.(query|key|value))\.(weight|bias)",
    "dense SwinV2": r"encoder\.model\.layers\.\d\.blocks\.\d\.(attn|mlp)\..*",  # norms of residual branches
    "dense ResNet": r"encoder\.model\.layer\d\.0\.(conv1|bn1|conv2)\..*",  # likewise
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_combination_trains(one_thread, name):
    """Each trained parameter has a gradient in each step; and one that is not zero, later if not at first."""
    parts = Parts(*name.split(", "))
    trained = train(parts)
    assert all(map(math.isfinite, trained.losses))
    assert trained.losses == pytest.approx(LOSSES[name], rel=TOLERANCE)
    assert not set().union(*trained.without)
    assert not set.intersection(*trained.zero)
    idle = [pattern for part, pattern in IDLE_AT_FIRST.items() if part in parts]
    assert trained.zero[0] == {p for p in trained.names if any(re.fullmatch(pattern, p) for pattern in idle)}


def test_the_grid_is_the_generated_one():
    chosen = combinations()
    assert [str(parts) for parts in chosen] == list(LOSSES)
    assert len(chosen) >= 80
    assert all(len(losses) == STEPS for losses in LOSSES.values())
    for encoder, readout, decoder in product(ENCODERS, READOUTS, DECODERS):
        fits = misfit(Parts(encoder, readout, "random", decoder)) is None
        assert fits == any((p.encoder, p.readout, p.decoder) == (encoder, readout, decoder) for p in chosen)
    for encoder, mask in product(ENCODERS, MASKS):
        fits = any(misfit(Parts(encoder, "last", mask, decoder)) is None for decoder in DECODERS)
        assert fits == any((p.encoder, p.mask) == (encoder, mask) for p in chosen)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_does_not_go_together_is_refused_and_all_else_is_built(encoder):
    """All readouts, masks and decoders, on an encoder that is made only once for masks that replace tokens or not."""
    made = {}

    def once(composed, mask: str):
        def make(**sizes):
            key = mask == "uniform"
            if key not in made:
                made[key] = composed.encoder(**sizes)
            return made[key]

        return replace(composed, encoder=make)

    refused = 0
    for readout, mask, decoder in product(READOUTS, MASKS, DECODERS):
        parts = Parts(encoder, readout, mask, decoder)
        composed, reason = once(recipe(parts), mask), misfit(parts)
        if reason is None:
            method = build(composed)
            assert len(method.decoders) == len(method.readout.levels), parts
        else:
            refused += 1
            with pytest.raises(ValueError, match=f"^--.*: .*{reason}"):
                build(composed)
    assert refused >= len(MASKS) * len(READOUTS)  # each encoder refuses one decoder
