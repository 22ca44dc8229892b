"""Every recipe's first 20 losses stay what they were, on one thread: a refactoring may not move them."""

import json

import pytest

from golden.regenerate import CURVES, EPOCHS, STEPS_PER_EPOCH, curve
from mimkit.compose import RECIPES

TOLERANCE = 1e-5  # relative; other processors round otherwise


@pytest.fixture(scope="module")
def curves() -> dict[str, list[float]]:
    return json.loads(CURVES.read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_losses_are_what_they_were(curves, one_thread, name):
    assert curve(name) == pytest.approx(curves[name], rel=TOLERANCE)


def test_the_curves_are_of_recipes_that_learn(curves):
    assert list(curves) == list(RECIPES)
    for name, losses in curves.items():
        assert len(losses) == EPOCHS * STEPS_PER_EPOCH
        first, last = (sum(part) / STEPS_PER_EPOCH for part in (losses[:STEPS_PER_EPOCH], losses[-STEPS_PER_EPOCH:]))
        assert last < 0.97 * first, name


def test_recipes_differ(curves):
    assert len({tuple(losses) for losses in curves.values()}) == len(curves)
