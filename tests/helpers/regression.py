"""A small network, its batches and settings: what the loop is tested on, around no method."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mimkit.training.loop import fit
from mimkit.training.optim import Train
from mimkit.training.run_folder import Run

STEPS, EPOCHS, BATCH = 4, 3, 8  # steps of an epoch, epochs, samples of a batch
VALUES = Train(epochs=EPOCHS, batch_size=BATCH, base_lr=0.3, warmup_epochs=1, precision="fp32")


class Regression(nn.Module):
    """A small network with dropout, so that its loss depends on torch's generator."""

    def __init__(self, seed: int = 0, dropout: float = 0.2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Dropout(dropout), nn.Linear(10, 1))

    def forward(self, x: Tensor, y: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=(self.layers(x) - y).square().mean())


class FrozenEncoder(nn.Module):
    """A frozen encoder with batch norms and dropout under a linear head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).requires_grad_(False)
            torch.manual_seed(1)
            self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor, y: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=(self.head(self.encoder(x)) - y).square().mean())


@dataclass
class Batch:
    """Samples, and what could not be read on the way to them."""

    x: Tensor
    y: Tensor
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        return {"x": self.x.to(device), "y": self.y.to(device)}


@dataclass(frozen=True)
class Batches:
    """Batches as a function of the step; `poisoned` steps (from 1) hold a NaN, `skipped` says what each step met."""

    accumulation: int = 1
    poisoned: tuple[int, ...] = ()
    skipped: dict[int, list[str]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    steps_per_epoch: int = STEPS

    def from_step(self, step: int) -> Iterator[Batch]:
        while True:
            x = torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            y = x[:, :1] - 2 * x[:, 1:2]
            if step + 1 in self.poisoned:
                x[-1, 0] = math.nan
            skipped = [(path, "broken") for path in self.skipped.get(step + 1, [])]
            for place, (some_x, some_y) in enumerate(
                zip(x.chunk(self.accumulation), y.chunk(self.accumulation), strict=True)
            ):
                yield Batch(some_x.to(self.dtype), some_y.to(self.dtype), [] if place else skipped)
            step += 1


def rows(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def assert_device_is_not_asked(model: Regression, values: Train, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run with a bad step, nothing reads a tensor's value between rows of the log."""
    asked, steps = [], []
    for name in ("__bool__", "__float__", "item", "tolist"):
        original = getattr(Tensor, name)

        def ask(self: Tensor, *args: object, name: str = name, original: Callable = original) -> object:
            asked.append((len(steps), name))
            return original(self, *args)

        monkeypatch.setattr(Tensor, name, ask)
    model.register_forward_pre_hook(lambda module, inputs: steps.append(None))
    fit(model, Batches(poisoned=(2,)), replace(values, clip_grad=1.0, ema_decay=0.9), run, log_every=6)
    assert len(steps) == STEPS * EPOCHS
    assert {step for step, _ in asked} <= {6, 12}


class Interrupted(Exception):
    pass
