from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import dense_families
from helpers.regression import (
    VALUES,
    Regression,
    same,
    weights,
)
from helpers.tiny import TINY
from mimkit.compose import compose
from mimkit.masks import Mask
from mimkit.recipes import build
from mimkit.recipes.efficiency import tune
from mimkit.settings import Settings
from mimkit.training.precision import (
    Precision,
    autocast,
    choose_precision,
    for_training,
    in_float32,
    refuse_batch_norms,
    tensors_of,
)
from mimkit.training.state import State

CPU = torch.device("cpu")
PURE = replace(VALUES, precision="bf16-pure")
STEEP = ("localmim-swin", "localmim-swin-large")  # their losses fall to a quarter in these three steps


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")]
)
def test_cpus_that_multiply_bf16_use_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision(CPU) == expected
    assert choose_precision(torch.device("cuda")) == "bf16"


def test_autocast_computes_in_the_precision_and_caches_nothing():
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    for precision, number in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(torch.device("cpu"), precision):
            assert layer(x).dtype == number
            assert not torch.is_autocast_cache_enabled()


def three_steps(name: str, precision: Precision) -> tuple[State, list[float], set[torch.dtype]]:
    """A tiny recipe's state after three steps on random images, its losses, and the formats of its gradients."""
    recipe = compose(name, Settings(data=Path(), **TINY[name]))
    torch.manual_seed(0)
    method = build(recipe)
    tune(method, CPU, precision)
    for_training(method, CPU, precision)
    state = State(method, replace(recipe.train, precision=precision))
    drawn, losses, formats = torch.Generator().manual_seed(0), [], set()
    for step in range(3):
        shape = (4, recipe.channels, *recipe.image_size)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=drawn)
        torch.manual_seed(step)  # of stochastic depth
        with autocast(CPU, precision):
            loss = method(pixels, keys=torch.arange(4) + 10 * step).loss
        loss.backward()
        formats |= {p.grad.dtype for p in method.parameters() if p.grad is not None}
        state.update(loss.detach(), 1e-3)
        assert loss.dtype == torch.float32
        losses.append(float(loss.detach()))
    return state, losses, formats


@pytest.mark.parametrize("name", TINY)
def test_all_of_a_recipe_is_bfloat16_and_its_losses_are_close(name):
    state, losses, gradients = three_steps(name, "bf16-pure")
    tensors = [*tensors_of(state.model)]
    assert {t.dtype for t in tensors if t.is_floating_point()} == gradients == {torch.bfloat16}
    assert state.optimizer.state.keys() == set(state.trained.values())
    for slots in state.optimizer.state.values():
        assert {slots[slot].dtype for slot in ("remainder", "exp_avg", "exp_avg_sq")} == {torch.bfloat16}
    _, expected, _ = three_steps(name, "fp32")
    assert losses == pytest.approx(expected, rel=0.05 if name in STEEP else 0.01)
    assert losses != expected


@pytest.mark.parametrize("key", ["resnet18", "xcit", "convnextv2", "swinv2", "beit"])
def test_batch_norms_stay_float32(key):
    """Their statistics, which no step of 1/1000 would move in bfloat16, and their weights, which are stepped too."""
    encoder = for_training(dense_families.create(key), CPU, "bf16-pure")
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert bool(norms) == (key in ("resnet18", "xcit"))
    inside = {tensor for norm in norms for tensor in tensors_of(norm)}
    for tensor in tensors_of(encoder):
        if tensor.is_floating_point():
            assert tensor.dtype == (torch.float32 if tensor in inside else torch.bfloat16)
    state = State(encoder, PURE)
    before = weights(encoder)
    hidden = torch.zeros(2, 2, 4, dtype=torch.bool)
    hidden[:, 0, :2] = True
    images = torch.randn(2, 3, *dense_families.SIZE, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = encoder.norm(encoder(images, Mask(hidden))[-1].tokens).float().square().mean()
    loss.backward()
    moved = [p.grad is not None and bool((p.grad != 0).any()) for p in encoder.parameters()]
    state.update(loss.detach(), 1e-2)
    for parameter, old, there in zip(encoder.parameters(), before, moved, strict=True):
        assert torch.equal(parameter, old) <= (not there)
    if norms:
        with pytest.raises(ValueError, match=rf"{len(norms)} batch norms in float32, which 2 processes .*--precision"):
            refuse_batch_norms(encoder, 2)
    else:
        refuse_batch_norms(encoder, 2)


def test_whoever_looks_sees_float32():
    """The same numbers in float32, averages as they are; training goes on with the very tensors that it had."""
    model = for_training(Regression(), CPU, "bf16-pure")
    state = State(model, replace(PURE, ema_decay=0.5))
    assert {average.dtype for average in state.averages.values()} == {torch.float32}
    addresses, own = [p.data_ptr() for p in model.parameters()], weights(model)
    for average in state.averages.values():
        average += 1e-4  # too little for bfloat16
    with state.eval_weights(model):
        for shown, mine in zip(weights(model), own, strict=True):
            assert torch.equal(shown, mine.float() + 1e-4)
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert same(weights(model), own)
    with pytest.raises(KeyError), in_float32(model):
        raise KeyError
    assert same(weights(model), own)
