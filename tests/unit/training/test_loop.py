"""The loop around a module that returns a loss: schedule, groups, bad steps, accumulation, interruptions."""

import json
import math
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor, nn

from helpers import parts
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
from mimkit.data import TooManyBadImages
from mimkit.errors import TrainingStopped
from mimkit.readouts import Fused
from mimkit.training.checkpoint import load
from mimkit.training.failures import explained
from mimkit.training.loop import State, Train, fit, parameter_groups, refuse_without_gradient
from mimkit.training.run_folder import Run

# --- values


def test_learning_rate_is_the_formula():
    """METHODS: warm-up linear from 0 per iteration, then min + (peak − min)/2 · (1 + cos(π(e − w)/(E − w))).

    Peak and minimum follow the batch.
    """
    values = Train(epochs=10, batch_size=512, base_lr=1e-3, lr_batch=256, warmup_epochs=2.5, min_lr=1e-5)
    peak, last = 1e-3 * 512 / 256, 1e-5 * 512 / 256
    assert values.peak_lr == peak
    for step in range(10 * 7 + 1):
        epoch = step / 7
        if epoch < 2.5:
            expected = peak * epoch / 2.5
        else:
            expected = last + (peak - last) / 2 * (1 + math.cos(math.pi * (epoch - 2.5) / 7.5))
        assert values.lr(epoch) == pytest.approx(expected, rel=1e-12)
    assert values.lr(0) == 0
    assert values.lr(2.5) == peak
    assert values.lr(10) == pytest.approx(last)


def test_warmup_may_start_above_zero():
    """SimMIM's: from warmup_lr, which follows the batch as the peak does."""
    values = Train(epochs=10, batch_size=1024, base_lr=2e-4, lr_batch=512, warmup_epochs=4, warmup_lr=1e-6)
    assert values.lr(0) == pytest.approx(2e-6)
    assert values.lr(1) == pytest.approx(2e-6 + (4e-4 - 2e-6) / 4)
    assert values.lr(3) == pytest.approx(2e-6 + (4e-4 - 2e-6) * 3 / 4)
    assert values.lr(4) == values.peak_lr == pytest.approx(4e-4)
    assert values.lr(10) == 0  # the cosine still ends at min_lr


def test_drops_take_the_place_of_the_cosine():
    """SimMIM's long run: warm-up, then the peak, a tenth of it from the first drop on, a hundredth from the second."""
    values = Train(epochs=10, batch_size=256, base_lr=1e-3, warmup_epochs=2, min_lr=1e-4, drops=(6, 8.5))
    assert values.lr(1) == pytest.approx(5e-4)
    expected = {2: 1e-3, 4: 1e-3, 5.99: 1e-3, 6: 1e-4, 8.49: 1e-4, 8.5: 1e-5, 10: 1e-5}
    assert {epoch: values.lr(epoch) for epoch in expected} == pytest.approx(expected)


def test_all_rates_follow_the_batch_alike():
    """One schedule, twice the batch: each rate is twice as high."""
    for more in ({"min_lr": 1e-5, "warmup_lr": 1e-6}, {"drops": (7,), "warmup_lr": 1e-6}):
        one, two = (Train(epochs=10, batch_size=b, base_lr=1e-3, warmup_epochs=3, **more) for b in (128, 256))
        for epoch in (0, 1.5, 3, 5, 7, 9.75):
            assert two.lr(epoch) == pytest.approx(2 * one.lr(epoch), rel=1e-12)


def test_learning_rate_without_warmup_starts_at_the_peak():
    values = Train(epochs=10, batch_size=256, base_lr=1e-3, warmup_epochs=0)
    assert values.lr(0) == 1e-3
    assert values.lr(5) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": -8},
        {"base_lr": 0.0},
        {"base_lr": math.nan},
        {"base_lr": math.inf},
        {"clip_grad": 0.0},
        {"clip_grad": -1.0},
        {"ema": 1.0},
        {"ema": -0.5},
        {"weight_decay": -0.05},
        {"min_lr": 1.0},
        {"min_lr": -1e-6},
        {"warmup_lr": 0.4},
        {"warmup_lr": -1e-6},
        {"warmup_lr": math.nan},
        {"warmup_epochs": 3},
        {"warmup_epochs": -1},
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_flag(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"--{name.replace('_', '-')} .*{value:g}"):
        replace(VALUES, **wrong)


def decayed_by_mae(name: str, parameter: nn.Parameter) -> bool:
    """The published rule: neither one-dimensional parameters nor biases are decayed, everything else is."""
    return parameter.ndim > 1 and not name.endswith(".bias")


@pytest.mark.parametrize("decay_tokens", [True, False])
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "vit_base_patch14_reg4_dinov2"])
def test_what_is_decayed(backbone, decay_tokens):
    """Every trained parameter stands in one group: by MAE's rule, and tokens, which have three dimensions, as asked."""
    cell = 14 if "14" in backbone else 16
    method = parts.method(parts.encoder(backbone, size=(2 * cell, 2 * cell), sincos=True), readout=Fused)
    values = replace(VALUES, decay_tokens=decay_tokens)
    group_of = {id(p): group["weight_decay"] for group in parameter_groups(method, values) for p in group["params"]}
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert len(group_of) == len(trained)
    tokens = [name for name in trained if name.rpartition(".")[2] in ("cls_token", "reg_token", "mask_token")]
    assert len(tokens) == 2 + ("reg4" in backbone)
    for name, parameter in trained.items():
        expected = decay_tokens if name in tokens else decayed_by_mae(name, parameter)
        assert group_of[id(parameter)] == (values.weight_decay if expected else 0), name
    frozen = [name for name, p in method.named_parameters() if not p.requires_grad]
    assert frozen == ["encoder.vit.pos_embed"]


POSITIONS = {  # backbones, made small, and what says where their tokens are
    "vit_tiny_patch16_224": ({"depth": 2}, ["pos_embed"]),
    "beit_base_patch16_224": (
        {"depth": 2, "embed_dim": 48, "num_heads": 3},
        [f"blocks.{i}.attn.relative_position_bias_table" for i in range(2)],
    ),
    "swin_tiny_patch4_window7_224": (
        {"depths": (1, 1), "num_heads": (3, 6), "window_size": 2},
        [f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(2)],
    ),
}


@pytest.mark.parametrize("decay_positions", [True, False])
@pytest.mark.parametrize("backbone", POSITIONS)
def test_whether_positions_are_decayed(backbone, decay_positions):
    """Learned positions and relative position biases are matrices, yet decayed only where asked."""
    sizes, expected = POSITIONS[backbone]
    model = timm.create_model(backbone, img_size=32, num_classes=0, **sizes)
    values = replace(VALUES, decay_positions=decay_positions)
    group_of = {id(p): group["weight_decay"] for group in parameter_groups(model, values) for p in group["params"]}
    positions = [name for name, _ in model.named_parameters() if "pos" in name]
    assert positions == expected
    for name, parameter in model.named_parameters():
        decayed = decay_positions if name in positions else decayed_by_mae(name, parameter)
        assert group_of[id(parameter)] == (values.weight_decay if decayed else 0), name


# --- steps


def test_steps_follow_adamw_and_the_schedule(run):
    """The loop against torch's AdamW driven by hand."""
    model, twin = Regression(dropout=0), Regression(dropout=0)
    assert fit(model, Batches(), VALUES, run, log_every=1)
    optimizer = torch.optim.AdamW(parameter_groups(twin, VALUES), lr=0.0, betas=VALUES.betas)
    logged = [row for row in rows(run) if row["kind"] == "train"]
    assert [row["step"] for row in logged] == list(range(1, STEPS * EPOCHS + 1))
    for step, (batch, row) in enumerate(zip(Batches().starting_at(0), logged, strict=False)):
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
        fit(models[-1], Batches(parts=count, dtype=torch.float64), VALUES, run, log_every=1)
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
    values = replace(VALUES, ema=0.8)
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
    batch = next(Batches().starting_at(0))
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


def test_too_many_bad_steps_in_a_row_stop_the_run(run):
    batches = Batches(poisoned=(2, 3, 5, 6, 7, 8))
    model = Regression()
    with pytest.raises(TrainingStopped, match=r"3 steps in a row, up to step 7.*--base-lr \(now 0\.3\)"):
        fit(model, batches, VALUES, run, nonfinite_limit=3, checkpoint_minutes=0, log_every=1)
    kept = run.latest()
    assert kept.state["step"] == 6
    assert all(torch.isfinite(value).all() for value in kept.weights.values())
    fresh = Regression(seed=1)
    with pytest.raises(TrainingStopped):  # resumed, the same bad steps come again
        fit(fresh, batches, VALUES, run, nonfinite_limit=3, checkpoint_minutes=0, log_every=1)
    assert [row["step"] for row in rows(run) if row["kind"] == "nonfinite"] == [2, 3, 5, 6, 7]


def test_bad_steps_that_are_not_in_a_row_do_not_stop_the_run(run):
    assert fit(Regression(), Batches(poisoned=(1, 2, 4, 5, 7, 8)), VALUES, run, nonfinite_limit=3)


def test_skipped_images_are_logged_once(run):
    batches = Batches(skipped={2: ["a.jpg", "b.jpg"], 6: ["a.jpg"], 7: ["c.jpg"]})
    assert fit(Regression(), batches, VALUES, run, images=10, skipped_share=0.3)
    logged = [(row["step"], row["path"], row["reason"]) for row in rows(run) if row["kind"] == "skipped"]
    assert logged == [(2, "a.jpg", "broken"), (2, "b.jpg", "broken"), (7, "c.jpg", "broken")]


def test_images_that_evaluators_skip_count_too(run):
    def look(step: int) -> dict:
        return {"kind": "look", "skipped": [("a.jpg", "broken"), ("held-out.jpg", "empty")]}

    batches = Batches(skipped={2: ["a.jpg"]})
    assert fit(Regression(), batches, VALUES, run, evaluators=[(4, look)], images=10, skipped_share=0.2)
    logged = [(row["step"], row["path"]) for row in rows(run) if row["kind"] == "skipped"]
    assert logged == [(0, "a.jpg"), (0, "held-out.jpg")]
    assert not any("skipped" in row for row in rows(run))
    assert run.latest().state["skipped"] == ["a.jpg", "held-out.jpg"]


def test_too_many_skipped_images_stop_the_run(run):
    batches = Batches(skipped={2: ["a.jpg", "b.jpg"], 6: ["a.jpg"], 7: ["c.jpg"]})
    with pytest.raises(TrainingStopped, match=r"3 of 10 .*--skipped-share 0\.2 .*c\.jpg"):
        fit(Regression(), batches, VALUES, run, images=10, skipped_share=0.2, checkpoint_minutes=0)
    assert run.latest().state["skipped"] == ["a.jpg", "b.jpg"]


def test_what_gets_no_gradient_is_named():
    model = Regression()
    model.idle = nn.Linear(2, 2)
    state = State(model, VALUES)
    batch = next(Batches().starting_at(0))
    model(batch.x, batch.y).loss.backward()
    assert state.without_gradient() == ["idle.weight", "idle.bias"]
    with pytest.raises(TrainingStopped, match=r"2 trained parameters got no gradient, idle\.weight first.*freeze"):
        refuse_without_gradient(state)
    model.idle.requires_grad_(False)
    refuse_without_gradient(State(model, VALUES))


KEPT = "the last checkpoint is kept, go on with: mimkit resume RUN"
FULL = "out of memory in step 7, with --micro-batch 15"
READER = "a process that reads images was lost in step 7"
PEER = f"another process of this run was lost in step 7; {KEPT}"
OF_A_WORKER = """Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "worker.py", line 1, in make
    make()
ValueError: the view
is wrong
while making a view of a.png
"""
TOLD = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), f"{FULL}; {KEPT} --micro-batch 5"),
    (MemoryError(), f"{FULL}; {KEPT} --micro-batch 5"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), FULL),
    (RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed."), f"{READER}: DataLoader worker (pid 5) is"),
    (ConnectionResetError(104, "Connection reset by peer"), f"{READER}: [Errno 104] Connection"),
    (RuntimeError("[gloo/pair.cc:1] Connection closed by peer [::1]:1"), PEER),
    (RuntimeError("[gloo] Timed out waiting 7200000ms for recv"), PEER),
    (torch.distributed.DistBackendError("NCCL error"), PEER),
    (ValueError("Input X contains\nNaN."), "step 7: ValueError in test_loop.py:"),
    (ValueError(OF_A_WORKER), f"ValueError: the view; is wrong; while making a view of a.png; {KEPT}"),
]


@pytest.mark.parametrize(("error", "told"), TOLD, ids=[type(error).__name__ for error, _ in TOLD])
def test_errors_on_the_way_become_one_line(error, told, tmp_path):
    run = Run.create(tmp_path / "run", {})
    with pytest.raises(TrainingStopped) as stopped, explained(lambda: 7, run, micro_batch=15):
        raise error
    message = str(stopped.value).replace(str(run.folder), "RUN")
    assert told in message
    assert KEPT in message
    assert "\n" not in message
    assert stopped.value.__cause__ is error


def test_our_own_errors_pass_as_they_are(run):
    with pytest.raises(TooManyBadImages, match="all"), explained(lambda: 7, run, micro_batch=2):
        raise TooManyBadImages("all are bad")


# --- interruptions


def finished(tmp_path, name: str, values: Train = VALUES, **options) -> tuple[list[Tensor], bytes]:
    """Weights and log of a run that nothing interrupts."""
    torch.manual_seed(7)
    model, run = Regression(), Run.create(tmp_path / name, {})
    assert fit(model, Batches(parts=2, poisoned=(5,)), values, run, log_every=3, **options)
    return weights(model), (run.folder / "log.jsonl").read_bytes()


@pytest.mark.parametrize("ema", [None, 0.7])
@pytest.mark.parametrize("at", [1, 3, 5, 7, 11, 12])
def test_interrupted_and_resumed_ends_the_same(tmp_path, at, ema):
    values = replace(VALUES, ema=ema)
    expected = finished(tmp_path, "undisturbed", values)
    run = Run.create(tmp_path / "interrupted", {})
    batches = Batches(parts=2, poisoned=(5,))

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
def test_an_update_does_not_wait_for_the_gpu():
    model = Regression().cuda()
    batch = next(Batches().starting_at(0)).inputs(torch.device("cuda"))
    state = State(model, replace(VALUES, clip_grad=1.0, ema=0.9))
    before = weights(model)
    for step in range(3):
        loss = model(**batch).loss
        loss.backward()
        bad = loss.detach() * (math.nan if step == 1 else 1.0)
        torch.cuda.set_sync_debug_mode("default" if step == 0 else "error")  # the first step makes the moments
        try:
            state.update(bad, lr=0.1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert same(weights(model), before) == (step == 1)
        before = weights(model)


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
