"""AdamW in bfloat16 alone: what it keeps of small steps, and what comes out of a run with it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from helpers.regression import (
    EPOCHS,
    STEPS,
    VALUES,
    Batches,
    Interrupted,
    Regression,
    assert_device_is_not_asked,
    rows,
    same,
    weights,
)
from mimkit.training import adamw_bf16 as bf16
from mimkit.training.adamw_bf16 import AdamWBF16, random_bits, round_stochastically
from mimkit.training.loop import fit
from mimkit.training.optim import norm_of
from mimkit.training.run_folder import Run

PURE = replace(VALUES, precision="bf16-pure")


# --- AdamW


def obvious(start: Tensor, gradients: Iterable[Tensor], lr: float, betas: tuple[float, float], decay: float) -> Tensor:
    """AdamW by its formula, in float64."""
    weight = start.double()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        first = betas[0] * first + (1 - betas[0]) * gradient.double()
        second = betas[1] * second + (1 - betas[1]) * gradient.double().square()
        weight = weight * (1 - lr * decay)
        root = (second / (1 - betas[1] ** step)).sqrt() + 1e-8
        weight = weight - lr * first / (1 - betas[0] ** step) / root
    return weight


def stepped(start: Tensor, gradients: Iterable[Tensor], make: Callable) -> tuple[Tensor, dict[str, Tensor]]:
    """Where an optimizer takes bfloat16 weights, what it remembers beside them added, and its state."""
    parameter = nn.Parameter(start.clone())
    optimizer = make([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    slots = optimizer.state[parameter]
    return parameter.detach().double() + slots.get("remainder", torch.zeros(())).double(), slots


@pytest.mark.parametrize("second_beta", [0.95, 0.999])
@pytest.mark.parametrize(("lr", "most", "plain"), [(1e-6, 0.03, 0.9), (1e-5, 0.01, 0.9), (1e-4, 0.01, 0.7)])
def test_small_steps_are_kept(lr, most, plain, second_beta):
    """Errors over the way that weights go in 300 steps: ours, and that of torch's AdamW on bfloat16 weights."""
    drawn = torch.Generator().manual_seed(0)
    start = (0.05 * torch.randn(4096, generator=drawn)).bfloat16()
    drift = 1e-3 * torch.randn(4096, generator=drawn)
    gradients = [(drift + 1e-3 * torch.randn(4096, generator=drawn)).bfloat16() for _ in range(300)]
    expected = obvious(start, gradients, lr, (0.9, second_beta), 0.05)

    def error(found: Tensor) -> float:
        return float((found - expected).norm() / (expected - start.double()).norm())

    options = {"lr": lr, "betas": (0.9, second_beta)}
    ours, _ = stepped(start, gradients, lambda p: AdamWBF16([{"params": p, "weight_decay": 0.05}], **options))
    theirs, _ = stepped(start, gradients, lambda p: torch.optim.AdamW(p, weight_decay=0.05, fused=True, **options))
    assert error(ours) < most
    assert error(theirs) > plain


def test_second_moments_follow_gradients_that_become_small():
    """With β₂ = 0.999 a moment falls by less than half a bfloat16 step, so that rounding to nearest would keep it."""
    drawn = torch.Generator().manual_seed(0)
    gradients = [(1e-3 * 0.99**step * torch.randn(4096, generator=drawn)).bfloat16() for step in range(900)]
    expected = sum(0.001 * 0.999 ** (899 - step) * g.double().square() for step, g in enumerate(gradients))
    start, options = torch.ones(4096).bfloat16(), {"lr": 1e-5, "betas": (0.9, 0.999)}
    _, ours = stepped(start, gradients, lambda p: AdamWBF16(p, **options))
    _, theirs = stepped(start, gradients, lambda p: torch.optim.AdamW(p, fused=True, **options))
    assert float(ours["exp_avg_sq"].double().mean() / expected.mean()) == pytest.approx(1, abs=0.01)
    assert float(theirs["exp_avg_sq"].double().mean() / expected.mean()) > 1.5


def test_rounding_is_right_on_average_and_leaves_what_fits():
    numbers = torch.tensor([1.001, -1.001, 3e-20, -0.7, 1.0, 0.0, -2.5])
    rounded = torch.stack(
        [
            round_stochastically(numbers.clone(), torch.bfloat16, random_bits(torch.tensor(float(step)), 7)[0])
            for step in range(2000)
        ]
    ).double()
    below, above = numbers.bfloat16(), rounded.unique(dim=0)
    assert all(len(values.unique()) <= 2 for values in above.T)
    torch.testing.assert_close(rounded.mean(dim=0), numbers.double(), rtol=4e-4, atol=0)
    assert torch.equal(rounded[:, 4:], below[4:].double().expand(2000, -1))
    bits = random_bits(torch.tensor(3.0), 10_000)
    assert torch.equal(bits, random_bits(torch.tensor(3.0), 10_000))
    assert not torch.equal(bits, random_bits(torch.tensor(4.0), 10_000))
    assert bits.min() >= 0
    assert bits.max() < 1 << 16
    assert bits.double().mean(dim=1) == pytest.approx((32767.5,) * 3, rel=0.03)


def parameters_of(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    drawn = torch.Generator().manual_seed(0)
    found = [nn.Parameter(torch.randn(shape, generator=drawn).bfloat16()) for shape in shapes]
    for parameter in found:
        parameter.grad = torch.randn(parameter.shape, generator=drawn).bfloat16()
    return found


def test_chunks_cut_and_join_parameters(monkeypatch):
    """Each number is stepped alike wherever it lies; the noise alone is another."""
    shapes = ((), (7,), (3, 11), (0, 4), (50,), (2, 2))
    monkeypatch.setattr(bf16, "round_stochastically", lambda values, dtype, noise: values.to(dtype))
    ends = []
    for chunk in (1, 8, 16, 1000):
        monkeypatch.setitem(bf16.CHUNK, "cpu", chunk)
        found = parameters_of(*shapes)
        optimizer = AdamWBF16(
            [{"params": found[:3], "weight_decay": 0.1}, {"params": found[3:]}], lr=0.1, betas=(0.9, 0.9)
        )
        optimizer.step()
        ends.append([*weights(nn.ParameterList(found)), *(optimizer.state[p]["remainder"] for p in found)])
    assert all(same(end, ends[0]) for end in ends)
    rows = [row for rows in bf16.chunks([[torch.arange(5), torch.arange(3)]], 4) for row in rows]
    assert [row[0].tolist() for row in rows] == [[0, 1, 2, 3], [4], [0, 1, 2]]


def test_parameters_without_gradient_are_left_out():
    found = parameters_of((4,), (5,))
    found[0].grad = None
    before = weights(nn.ParameterList(found))
    AdamWBF16(found, lr=0.1, betas=(0.9, 0.9)).step()
    assert torch.equal(found[0], before[0])
    assert not torch.equal(found[1], before[1])


def test_norms_are_added_up_in_float32():
    found = [p.grad for p in parameters_of((300, 300), (7,))]
    expected = torch.cat([g.double().flatten() for g in found]).norm()
    assert float(norm_of(found)) == pytest.approx(float(expected), rel=1e-6)
    assert norm_of([g.double() for g in found]).dtype == torch.float64
    single = [g.float() for g in found]
    assert torch.equal(norm_of(single), nn.utils.get_total_norm(single))


# --- the loop


class Pure(Regression):
    """It casts its inputs to what its weights are."""

    def forward(self, x: Tensor, y: Tensor) -> SimpleNamespace:
        found = self.layers(x.to(self.layers[0].weight.dtype))
        return SimpleNamespace(loss=(found.float() - y).square().mean())


def everything(run: Run) -> dict[str, Tensor]:
    saved = run.latest()
    return saved.weights | saved.training


@pytest.mark.parametrize("clip", [1e-2, None])
def test_a_bad_step_changes_nothing(run, clip):
    """Neither weights, remainders, moments and counters, nor averages: all bits of the checkpoints of all steps."""
    after: dict[int, dict[str, Tensor]] = {}

    def keep(step: int) -> None:
        if step > 1:  # a step is saved after it was looked at
            after[step - 1] = everything(run)

    values = replace(PURE, clip_grad=clip, ema_decay=0.9)
    fit(Pure(dropout=0), Batches(poisoned=(3, 6)), values, run, checkpoint_minutes=0, evaluators=[(1, keep)])
    for step in range(3, STEPS * EPOCHS):
        changed = {name for name, value in after[step].items() if not torch.equal(value, after[step - 1][name])}
        moments = {name for name in after[step] if name.startswith("optimizer/exp_avg/")}
        assert changed >= moments if step not in (3, 6) else not changed, step
    assert float(after[7]["optimizer/step/layers.0.weight"]) == 5
    assert [row["step"] for row in rows(run) if row["kind"] == "nonfinite"] == [3, 6]


@pytest.mark.parametrize("ema", [None, 0.7])
@pytest.mark.parametrize("at", [3, 7, 12])
def test_interrupted_and_resumed_ends_the_same(tmp_path, at, ema):
    """Bit for bit, with what is saved in bfloat16."""
    values, batches = replace(PURE, ema_decay=ema, clip_grad=1.0), Batches(accumulation=2, poisoned=(5,))

    def interrupt(step: int) -> None:
        if step == at:
            raise Interrupted

    undisturbed, run = (Run.create(tmp_path / name, {}) for name in ("undisturbed", "interrupted"))
    torch.manual_seed(7)
    assert fit(Pure(), batches, values, undisturbed, log_every=3)
    torch.manual_seed(7)
    with pytest.raises(Interrupted):
        fit(Pure(), batches, values, run, log_every=3, checkpoint_minutes=0, evaluators=[(1, interrupt)])
    torch.manual_seed(8)
    assert fit(Pure(seed=5), batches, values, Run(run.folder), log_every=3, checkpoint_minutes=0)
    expected, found = everything(undisturbed), everything(run)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert (run.folder / "log.jsonl").read_bytes() == (undisturbed.folder / "log.jsonl").read_bytes()
    own = {name: value.dtype for name, value in expected.items() if name.startswith(("layers", "trained", "optimizer"))}
    averaged = {name for name in own if ema and name.startswith("layers")}
    steps = {name for name in own if name.startswith("optimizer/step")}
    assert {name for name, number in own.items() if number == torch.float32} == averaged | steps
    assert {number for name, number in own.items() if name not in averaged | steps} == {torch.bfloat16}


def test_training_lowers_the_loss_as_in_float32(tmp_path):
    ends = []
    for values in (VALUES, PURE):
        run = Run.create(tmp_path / values.precision, {})
        torch.manual_seed(0)
        fit(Pure(dropout=0), Batches(), replace(values, epochs=30), run, log_every=4)
        ends.append([row["loss"] for row in rows(run) if row["kind"] == "train"])
    assert ends[1] == pytest.approx(ends[0], rel=0.05, abs=0.01)
    assert ends[1][-1] < 0.2 * ends[1][0]


def test_a_step_does_not_ask_the_device(run, monkeypatch):
    assert_device_is_not_asked(Pure(), PURE, run, monkeypatch)
