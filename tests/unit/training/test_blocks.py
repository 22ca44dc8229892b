"""What is done to blocks, for every recipe: compiled as one graph each and once, computed again to the same bits."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import parts
from helpers.graphs import Graphs
from helpers.tiny import TINY
from mimkit.compose import compose
from mimkit.method import Method
from mimkit.recipes import Recipe
from mimkit.recipes import build as build_method
from mimkit.recipes.efficiency import tune
from mimkit.settings import Settings
from mimkit.training import blocks
from mimkit.training.blocks import Compiled, blocks_of, prepare_blocks, require_compiler, uncompiled
from mimkit.training.precision import autocast

# torch.compile looks at gradients of inputs, and hides the warning by how it is shown, which comes after it was raised.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
CPU = torch.device("cpu")
BATCH = 2
KINDS = ("mae", "crossmae", "simmim", "simmim-vit", "greenmim", "convmae")  # of blocks
CASES = [*((name, "bf16") for name in TINY), *((name, "fp32") for name in KINDS)]


GRAPHS = Graphs()  # one for all tests, as recipes share theirs


@pytest.fixture
def graphs(monkeypatch) -> Graphs:
    monkeypatch.setattr(blocks, "BACKEND", GRAPHS)
    monkeypatch.setattr(GRAPHS, "run", 0)
    monkeypatch.setattr(GRAPHS, "compiled", 0)
    return GRAPHS


def trained(name: str, precision: str = "fp32", **options: bool) -> tuple[Recipe, Method]:
    """A tiny version of the recipe, as training prepares it."""
    recipe = compose(name, Settings(data=Path(), **TINY[name]))
    torch.manual_seed(0)
    method = build_method(recipe).train()
    tune(method, CPU, precision)
    prepare_blocks(method, **options)
    return recipe, method


def step(recipe: Recipe, method: Method, number: int, precision: str = "fp32") -> list[Tensor]:
    """The loss and all gradients of a batch with new images and masks; weights move as in plain gradient descent."""
    images = parts.images(BATCH, recipe.image_size, recipe.channels, seed=number)
    keys = torch.arange(BATCH) + number * BATCH
    method.zero_grad(set_to_none=True)
    torch.manual_seed(number)
    with autocast(CPU, precision):
        loss = method(images, keys=keys).loss
    loss.backward()
    weights = [p for p in method.parameters() if p.grad is not None]
    with torch.no_grad():
        torch._foreach_sub_(weights, [0.01 * p.grad for p in weights])
    return [loss.detach(), *(p.grad for p in weights)]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_each_block_is_one_graph_compiled_in_the_first_step(name, precision, graphs):
    recipe, method = trained(name, precision, compiled=True)
    parts = blocks_of(method)
    assert all(isinstance(block.forward, Compiled) for block in parts)
    step(recipe, method, 0, precision)
    assert graphs.run == len(parts)
    assert graphs.compiled <= len(parts)
    compiled = graphs.compiled
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in (1, 2):
            step(recipe, method, number, precision)
            assert graphs.run == (number + 1) * len(parts)
            look(recipe, method)
            assert graphs.run == (number + 1) * len(parts)
        prepare_blocks(method, recomputed=True)
        graphs.run = 0
        step(recipe, method, 3, precision)
        assert graphs.run == 2 * len(parts)
    assert graphs.compiled == compiled


def look(recipe: Recipe, method: Method) -> None:
    """As evaluators do: other numbers of images, no gradients, with a mask and without."""
    method.eval()
    with torch.no_grad(), uncompiled():
        method(parts.images(BATCH + 1, recipe.image_size, recipe.channels))
        method.encoder(parts.images(1, recipe.image_size, recipe.channels))
    method.train()


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_blocks_computed_again_give_the_same_bits(name, precision):
    recipe, plain = trained(name, precision)
    _, method = trained(name, precision, recomputed=True)
    assert list(method.state_dict()) == list(plain.state_dict())
    for number in range(2):
        for one, other in zip(
            step(recipe, plain, number, precision), step(recipe, method, number, precision), strict=True
        ):
            assert torch.equal(one, other)
    assert saved_by_blocks(method, recipe) < 0.5 * saved_by_blocks(plain, recipe)


def saved_by_blocks(method: Method, recipe: Recipe) -> int:
    """Bytes that the blocks of a method keep for the backward pass, beside weights and inputs."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*method.parameters(), *method.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def watched(forward: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return forward(*inputs, **options)

    for block in blocks_of(method):
        block.forward = partial(watched, block.forward)
    loss = method(parts.images(BATCH, recipe.image_size, recipe.channels)).loss
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(("name", "precision"), [("mae", "bf16"), ("greenmim", "fp32")])
def test_what_was_compiled_is_computed_again(name, precision, monkeypatch):
    """By the same graphs, so to the same bits."""
    monkeypatch.setattr(blocks, "BACKEND", "aot_eager")  # its graphs have a backward pass of their own
    recipe, compiled = trained(name, precision, compiled=True)
    _, both = trained(name, precision, compiled=True, recomputed=True)
    expected, found = (step(recipe, method, 0, precision) for method in (compiled, both))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


class Normed(nn.Module):
    """A block with batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.second(self.norm(self.first(x)).relu()))


@pytest.mark.parametrize("compiled", [False, True])
def test_statistics_and_random_numbers_are_as_without(compiled, monkeypatch):
    """Batch norms count each batch once, and dropout drops the same when computed again."""
    monkeypatch.setattr(blocks, "BACKEND", "aot_eager")
    torch.manual_seed(0)
    plain = nn.Sequential(Normed(), Normed())
    again = copy.deepcopy(plain)
    prepare_blocks(plain, compiled=compiled)
    prepare_blocks(again, compiled=compiled, recomputed=True)
    results = []
    for model in (plain, again):
        torch.manual_seed(1)
        for _ in range(2):
            model(parts.images(6, (1, 1), 4)[:, :, 0, 0]).square().sum().backward()
        results.append([*model.buffers(), *(p.grad for p in model.parameters()), torch.rand(1)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_copy_is_not_compiled_and_has_its_own_weights(graphs):
    recipe, method = trained("mae", compiled=True, recomputed=True)
    other = copy.deepcopy(method)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    step(recipe, other, 0)
    assert graphs.run == 0
    step(recipe, method, 0)
    assert graphs.run == 2 * len(blocks_of(method))
    assert not any(parameter.any() for parameter in blocks_of(other)[0].parameters() if parameter.ndim > 1)


def test_no_compiler_is_found_out_early():
    """Before anything is written."""
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match=r"^--compile needs a C\+\+ compiler .* for --device cpu: .*no-such-compiler"),
    ):
        require_compiler(CPU)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_code_computes_the_same(precision):
    """To rounding; and what it computes again, to the same bits."""
    recipe, plain = trained("mae", precision)
    _, compiled = trained("mae", precision, compiled=True)
    _, both = trained("mae", precision, compiled=True, recomputed=True)
    expected, found, again = (step(recipe, method, 0, precision) for method in (plain, compiled, both))
    for one, other, same in zip(expected, found, again, strict=True):
        error = float((other - one).norm() / one.norm().clamp(min=1e-6))
        assert error < (1e-4 if precision == "fp32" else 0.05)
        assert torch.equal(other, same)
