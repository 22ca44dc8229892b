"""The loop around a module that returns a loss: steps, bad steps, accumulation, interruptions."""

import json
import math
import os
import signal
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
from mimkit.errors import TrainingStopped
from mimkit.training.checkpoint import load
from mimkit.training.loop import fit, refuse_without_gradient
from mimkit.training.optim import Train, parameter_groups
from mimkit.training.run_folder import Run
from mimkit.training.state import State

# --- steps


def test_steps_follow_adamw_and_the_schedule(run):
    """The loop against torch's AdamW driven by hand."""
    model, twin = Regression(dropout=0), Regression(dropout=0)
    assert fit(model, Batches(), VALUES, run, log_every=1)
    optimizer = torch.optim.AdamW(parameter_groups(twin, VALUES), lr=0.0, betas=VALUES.betas)
    logged = [row for row in rows(run) if row["kind"] == "train"]
    assert [row["step"] for row in logged] == list(range(1, STEPS * EPOCHS + 1))
    for step, (batch, row) in enumerate(zip(Batches().from_step(0), logged, strict=False)):
        for group in optimizer.param_groups:
            group["lr"] = VALUES.lr(step / STEPS)
        optimizer.zero_grad()
        loss = twin(batch.x, batch.y).loss
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in twin.parameters()))
        optimizer.step()
        assert row["lr"] == VALUES.lr(step / STEPS)
        assert row["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert row["epoch"] == (step + 1) / STEPS
    for ours, theirs in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_training_lowers_the_loss(run):
    fit(Regression(), Batches(), replace(VALUES, epochs=30), run, log_every=STEPS)
    losses = [row["loss"] for row in rows(run) if row["kind"] == "train"]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_row_of_the_log_averages_over_its_steps(tmp_path):
    every, some = (Run.create(tmp_path / name, {}) for name in ("every", "some"))
    for run, log_every in ((every, 1), (some, 5)):
        torch.manual_seed(0)
        fit(Regression(), Batches(), VALUES, run, log_every=log_every)
    single, averaged = ([row for row in rows(run) if row["kind"] == "train"] for run in (every, some))
    assert [row["step"] for row in averaged] == [5, 10, 12]
    for row, (start, end) in zip(averaged, [(0, 5), (5, 10), (10, 12)], strict=True):
        for name in ("loss", "grad_norm"):
            mean = sum(one[name] for one in single[start:end]) / (end - start)
            assert row[name] == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_of_parts_accumulate_to_those_of_the_batch(tmp_path, parts):
    models = []
    for count in (1, parts):
        models.append(Regression(dropout=0).double())
        run = Run.create(tmp_path / str(count), {})
        fit(models[-1], Batches(accumulation=count, dtype=torch.float64), VALUES, run, log_every=1)
    whole, pieces = (rows(Run(tmp_path / str(count))) for count in (1, parts))
    for one, other in zip(*(weights(model) for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    losses = [[row["loss"] for row in log if row["kind"] == "train"] for log in (whole, pieces)]
    assert len(losses[0]) == STEPS * EPOCHS
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_averages_of_the_weights_are_what_the_run_hands_out(run):
    """By the formula, over finite steps; evaluators see them, training goes on with its own weights."""
    model, seen, own = Regression(dropout=0), {}, []
    watched = [(1, lambda step: seen.update({step: weights(model)}))]
    sinks = [lambda row: own.append(weights(model)) if row["kind"] == "train" else None]
    values = replace(VALUES, ema_decay=0.8)
    fit(model, Batches(poisoned=(3,)), values, run, evaluators=watched, sinks=sinks, log_every=1)
    averages = seen[0]
    for step, trained in enumerate(own, start=1):
        if step != 3:
            averages = [0.8 * average + 0.2 * now for average, now in zip(averages, trained, strict=True)]
        for average, shown in zip(averages, seen[step], strict=True):
            torch.testing.assert_close(shown, average, rtol=1e-5, atol=1e-7)
    saved = run.latest()
    for (name, parameter), shown in zip(model.named_parameters(), seen[STEPS * EPOCHS], strict=True):
        assert torch.equal(saved.weights[name], shown)
        assert torch.equal(saved.training[f"trained/{name}"], parameter)
        assert not torch.equal(parameter, shown)
    plain = Regression(dropout=0)
    fit(plain, Batches(poisoned=(3,)), VALUES, Run.create(run.folder / "plain", {}))
    assert same(weights(plain), weights(model))


def test_a_step_does_not_ask_the_device(run, monkeypatch):
    assert_device_is_not_asked(Regression(), VALUES, run, monkeypatch)


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_gradients_are_clipped_by_their_common_norm(run, clip):
    """After the first step AdamW's first moment is (1 − β₁) times the gradient it was given."""
    model = Regression(dropout=0)
    batch = next(Batches().from_step(0))
    model(batch.x, batch.y).loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    fit(model, Batches(steps_per_epoch=1), replace(VALUES, epochs=1, warmup_epochs=0, clip_grad=clip), run, log_every=1)
    saved = run.latest().training
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        expected = 0.1 * gradient * min(1.0, clip / float(norm))
        torch.testing.assert_close(saved[f"optimizer/exp_avg/{name}"], expected, rtol=1e-3, atol=1e-9)
    assert rows(run)[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)  # as it was before


# --- what goes wrong


class InfiniteGradient(Regression):
    """Its loss is finite where its gradient is not: √0."""

    def forward(self, x: Tensor, y: Tensor) -> SimpleNamespace:
        bad = torch.isnan(x).any()
        loss = super().forward(x.nan_to_num(), y).loss
        return SimpleNamespace(loss=loss + (loss - loss.detach()).abs().sqrt() if bad else loss)


@pytest.mark.parametrize("make", [Regression, InfiniteGradient])
def test_a_bad_step_changes_nothing_and_is_counted(run, make):
    model, before, after = make(), {}, {}

    def watch(step: int) -> None:
        after[step] = weights(model)
        before[step + 1] = after[step]

    fit(model, Batches(poisoned=(3, 6)), VALUES, run, evaluators=[(1, watch)], log_every=1)
    for step in range(1, STEPS * EPOCHS + 1):
        still = same(before[step], after[step])
        assert still == (step in (1, 3, 6)), step  # the first has a learning rate of 0
    bad = [row for row in rows(run) if row["kind"] == "nonfinite"]
    assert [row["step"] for row in bad] == [3, 6]
    assert all("nan" in (row["loss"], row["grad_norm"]) or "inf" in (row["loss"], row["grad_norm"]) for row in bad)
    good = [row for row in rows(run) if row["kind"] == "train" and "loss" in row]
    assert len(good) == STEPS * EPOCHS - 2
    assert all(math.isfinite(row["loss"]) for row in good)
    assert all(json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines())


def test_too_many_bad_steps_in_a_row_stop_the_run(run, monkeypatch):
    monkeypatch.setattr("mimkit.training.recorder.NONFINITE_LIMIT", 3)
    batches = Batches(poisoned=(2, 3, 5, 6, 7, 8))
    model = Regression()
    with pytest.raises(TrainingStopped, match=r"3 steps in a row, up to step 7.*--base-lr \(now 0\.3\)"):
        fit(model, batches, VALUES, run, checkpoint_minutes=0, log_every=1)
    kept = run.latest()
    assert kept.state["step"] == 6
    assert all(torch.isfinite(value).all() for value in kept.weights.values())
    fresh = Regression(seed=1)
    with pytest.raises(TrainingStopped):  # resumed, the same bad steps come again
        fit(fresh, batches, VALUES, run, checkpoint_minutes=0, log_every=1)
    assert [row["step"] for row in rows(run) if row["kind"] == "nonfinite"] == [2, 3, 5, 6, 7]


def test_bad_steps_that_are_not_in_a_row_do_not_stop_the_run(run, monkeypatch):
    monkeypatch.setattr("mimkit.training.recorder.NONFINITE_LIMIT", 3)
    assert fit(Regression(), Batches(poisoned=(1, 2, 4, 5, 7, 8)), VALUES, run)


def test_skipped_images_are_logged_once(run):
    batches = Batches(skipped={2: ["a.jpg", "b.jpg"], 6: ["a.jpg"], 7: ["c.jpg"]})
    assert fit(Regression(), batches, VALUES, run, samples=10, skipped_share=0.3)
    logged = [(row["step"], row["path"], row["reason"]) for row in rows(run) if row["kind"] == "skipped"]
    assert logged == [(2, "a.jpg", "broken"), (2, "b.jpg", "broken"), (7, "c.jpg", "broken")]


def test_images_that_evaluators_skip_count_too(run):
    def look(step: int) -> dict:
        return {"kind": "look", "skipped": [("a.jpg", "broken"), ("held-out.jpg", "empty")]}

    batches = Batches(skipped={2: ["a.jpg"]})
    assert fit(Regression(), batches, VALUES, run, evaluators=[(4, look)], samples=10, skipped_share=0.2)
    logged = [(row["step"], row["path"]) for row in rows(run) if row["kind"] == "skipped"]
    assert logged == [(0, "a.jpg"), (0, "held-out.jpg")]
    assert not any("skipped" in row for row in rows(run))
    assert run.latest().state["skipped"] == ["a.jpg", "held-out.jpg"]


def test_too_many_skipped_images_stop_the_run(run):
    batches = Batches(skipped={2: ["a.jpg", "b.jpg"], 6: ["a.jpg"], 7: ["c.jpg"]})
    with pytest.raises(TrainingStopped, match=r"3 of 10 .*--skipped-share 0\.2 .*c\.jpg"):
        fit(Regression(), batches, VALUES, run, samples=10, skipped_share=0.2, checkpoint_minutes=0)
    assert run.latest().state["skipped"] == ["a.jpg", "b.jpg"]


def test_what_gets_no_gradient_is_named():
    model = Regression()
    model.idle = nn.Linear(2, 2)
    state = State(model, VALUES)
    batch = next(Batches().from_step(0))
    model(batch.x, batch.y).loss.backward()
    assert state.without_gradient() == ["idle.weight", "idle.bias"]
    with pytest.raises(TrainingStopped, match=r"2 trained parameters got no gradient, idle\.weight first.*freeze"):
        refuse_without_gradient(state)
    model.idle.requires_grad_(False)
    refuse_without_gradient(State(model, VALUES))


# --- interruptions


def finished(tmp_path, name: str, values: Train = VALUES, **options) -> tuple[list[Tensor], bytes]:
    """Weights and log of a run that nothing interrupts."""
    torch.manual_seed(7)
    model, run = Regression(), Run.create(tmp_path / name, {})
    assert fit(model, Batches(accumulation=2, poisoned=(5,)), values, run, log_every=3, **options)
    return weights(model), (run.folder / "log.jsonl").read_bytes()


@pytest.mark.parametrize("ema", [None, 0.7])
@pytest.mark.parametrize("at", [1, 3, 5, 7, 11, 12])
def test_interrupted_and_resumed_ends_the_same(tmp_path, at, ema):
    values = replace(VALUES, ema_decay=ema)
    expected = finished(tmp_path, "undisturbed", values)
    run = Run.create(tmp_path / "interrupted", {})
    batches = Batches(accumulation=2, poisoned=(5,))

    def interrupt(step: int) -> None:
        if step == at:
            raise Interrupted

    torch.manual_seed(7)
    with pytest.raises(Interrupted):
        fit(Regression(), batches, values, run, log_every=3, checkpoint_minutes=0, evaluators=[(1, interrupt)])
    torch.manual_seed(8)
    model = Regression(seed=5 if at > 1 else 0)  # where a checkpoint was written, the weights come from it
    if at == 1:
        torch.manual_seed(7)
    assert fit(model, batches, values, Run(run.folder), log_every=3, checkpoint_minutes=0)
    assert same(weights(model), expected[0])
    assert (run.folder / "log.jsonl").read_bytes() == expected[1]
    handed_out, there = run.latest().weights, Run(tmp_path / "undisturbed").latest().weights
    assert all(torch.equal(handed_out[name], there[name]) for name in there)


def test_evaluators_leave_training_alone(tmp_path):
    """They draw random numbers, use the model, and come when they should: before, in between, after."""
    expected = finished(tmp_path, "undisturbed")
    seen, modes = [], []

    def look(step: int) -> dict:
        torch.manual_seed(step)
        seen.append(step)
        modes.append(torch.is_grad_enabled())
        return {"kind": "look", "value": float(torch.randn(()))}

    observed = finished(tmp_path, "observed", evaluators=[(5, look), (100, look)])
    assert seen == [0, 0, 5, 10, 12, 12]
    assert not any(modes)
    assert same(observed[0], expected[0])
    looks = [row for row in rows(Run(tmp_path / "observed")) if row["kind"] == "look"]
    assert [(row["step"], row["epoch"]) for row in looks] == [(step, step / STEPS) for step in seen]


def test_a_finished_run_is_left_as_it_is(run):
    model = Regression()
    fit(model, Batches(), VALUES, run)
    log = (run.folder / "log.jsonl").read_bytes()
    again = Regression(seed=3)
    assert fit(again, Batches(), VALUES, run)
    assert same(weights(again), weights(model))
    assert (run.folder / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(run, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    def ask(row: dict) -> None:
        if row["step"] == 4:
            os.kill(os.getpid(), number)

    assert fit(Regression(), Batches(), VALUES, run, sinks=[ask], log_every=1) is False
    assert run.latest().state["step"] == 4
    assert rows(run)[-1]["step"] == 4
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_second_signal_acts_at_once(run):
    def ask(row: dict) -> None:
        if row["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(Regression(), Batches(), VALUES, run, sinks=[ask], log_every=1)
    finally:
        signal.signal(signal.SIGINT, before)


def test_checkpoints_hold_what_they_say(run):
    fit(Regression(), Batches(), VALUES, run, checkpoint_minutes=0)
    paths = sorted((run.folder / "checkpoints").iterdir())
    assert [path.name for path in paths] == ["step-00000011", "step-00000012"]
    saved = load(paths[-1])
    assert saved.weights.keys() == Regression().state_dict().keys()
    names = [f"optimizer/{slot}/{name}" for name in saved.weights for slot in ("step", "exp_avg", "exp_avg_sq")]
    assert saved.training.keys() == {*names, "generator/cpu"}
    assert all(float(saved.training[name]) == STEPS * EPOCHS for name in names if "/step/" in name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_resuming_on_a_gpu(tmp_path):
    """Weights, moments, step counters and generators return to their device."""
    ends = []
    for interrupted in (False, True):
        run = Run.create(tmp_path / str(interrupted), {})
        torch.manual_seed(7)
        if interrupted:

            def ask(row: dict) -> None:
                if row["step"] == 4:
                    os.kill(os.getpid(), signal.SIGTERM)

            assert not fit(Regression(), Batches(), VALUES, run, device="cuda", log_every=2, sinks=[ask])
        model = Regression()
        assert fit(model, Batches(), VALUES, run, device="cuda", log_every=2)
        ends.append((weights(model), (run.folder / "log.jsonl").read_bytes()))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
