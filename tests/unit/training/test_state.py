"""The state of training: its update leaves the device alone."""

import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.regression import VALUES, Batches, FrozenEncoder, Regression, same, weights
from mimkit.training.loop import fit
from mimkit.training.optim import Train
from mimkit.training.run_folder import Run
from mimkit.training.state import State


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_update_does_not_wait_for_the_gpu():
    model = Regression().cuda()
    batch = next(Batches().from_step(0)).inputs(torch.device("cuda"))
    state = State(model, replace(VALUES, clip_grad=1.0, ema_decay=0.9))
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


# --- groups and frozen children


def test_frozen_children_stay_as_they_are_and_out_of_checkpoints(tmp_path):
    """In evaluation mode: the same outputs each time, no statistics learned. Weights that come back are compared."""
    run, model = Run.create(tmp_path / "run", {}), FrozenEncoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []

    def look(step: int) -> None:
        seen.append((model.head.training, model.encoder.training, model.encoder[1].training))

    fit(model, Batches(), VALUES, run, evaluators=[(4, look)], checkpoint_minutes=0)
    assert (model.training, model.head.training) == (True, True)
    assert not any(module.training for module in model.encoder.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder.")
    saved = run.latest()
    assert saved.weights.keys() == {"head.weight", "head.bias"}
    assert saved.state["frozen"].keys() == {"encoder"}
    whole = fit(FrozenEncoder(), Batches(), VALUES, Run.create(tmp_path / "again", {}))
    assert whole
    restored = State(FrozenEncoder(), VALUES)
    restored.restore(saved)
    assert torch.equal(restored.model.head.weight, model.head.weight)
    with pytest.raises(ValueError, match=r"the frozen encoder has other weights now \(checksum \w+\) than the run"):
        State(FrozenEncoder(seed=5), VALUES).restore(saved)


def test_a_run_with_frozen_children_resumes_exactly(tmp_path):
    stops = iter([False] * 5 + [True] + [False] * 99)
    whole, cut = (Run.create(tmp_path / name, {}) for name in ("whole", "cut"))
    fit(FrozenEncoder(), Batches(), VALUES, whole, log_every=1)

    def interrupt(row: dict) -> None:
        if next(stops):
            os.kill(os.getpid(), signal.SIGTERM)

    assert not fit(FrozenEncoder(), Batches(), VALUES, cut, log_every=1, sinks=[interrupt])
    assert fit(FrozenEncoder(), Batches(), VALUES, cut, log_every=1)
    assert (cut.folder / "log.jsonl").read_bytes() == (whole.folder / "log.jsonl").read_bytes()


def test_a_groups_scale_multiplies_its_learning_rate():
    """As timm's layer decay has it; a group without one has the learning rate itself, to the last bit."""

    def groups(model: nn.Module, values: Train) -> list[dict]:
        first, second = model.layers[0], model.layers[3]
        return [
            {"params": first.parameters(), "lr_scale": 0.25, "weight_decay": 0.0},
            {"params": second.parameters(), "weight_decay": 0.0},
        ]

    model = Regression(dropout=0)
    state = State(model, VALUES, groups=groups)
    batch = next(Batches().from_step(0))
    loss = model(**batch.inputs(torch.device("cpu"))).loss
    loss.backward()
    before = [p.detach().clone() for p in (model.layers[0].bias, model.layers[3].bias)]
    state.update(loss.detach(), 0.1)
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.025, 0.1]
    moved = [
        float((p.detach() - old).abs().max())
        for p, old in zip((model.layers[0].bias, model.layers[3].bias), before, strict=True)
    ]
    assert moved[0] == pytest.approx(0.025, rel=1e-3)  # AdamW's first step is as long as the learning rate
    assert moved[1] == pytest.approx(0.1, rel=1e-3)
