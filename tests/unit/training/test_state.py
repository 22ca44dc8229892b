"""The state of training: its update leaves the device alone."""

import math
from dataclasses import replace

import pytest
import torch

from helpers.regression import (
    VALUES,
    Batches,
    Regression,
    same,
    weights,
)
from mimkit.training.loop import State


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
