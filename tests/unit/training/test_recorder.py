"""What a run writes and prints while it trains."""

import pytest
import torch

from helpers.regression import VALUES, Batches, Regression
from mimkit.errors import TrainingStopped
from mimkit.training.loop import fit
from mimkit.training.recorder import compared_with_untrained


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"mIoU": 1.0}, "an evaluator's row needs a kind of its own, got None"),
        ({"kind": "train", "loss": 1.0}, "an evaluator's row needs a kind of its own, got 'train'"),
        ({"kind": "segment", "mIoU": torch.tensor(1.0)}, r"kind segment: mIoU is a tensor; give its \.item\(\)"),
    ],
)
def test_rows_that_would_spoil_the_log_are_refused(run, row, said):
    with pytest.raises(TrainingStopped, match=said):
        fit(Regression(), Batches(), VALUES, run, evaluators=[(4, lambda step: dict(row))])
    assert not (run.folder / "log.jsonl").exists()


def test_a_sink_that_fails_stops_training_after_the_step_was_saved(run):
    """Others are told of all rows; it is called no more, and the first error counts."""
    calls, told = [], []

    def sink(row):
        calls.append(row)
        raise LookupError(f"call {len(calls)}")

    with pytest.raises(
        TrainingStopped, match=r"failed: LookupError in test_recorder\.py:\d+: call 1, step 2 saved; go on"
    ):
        fit(Regression(), Batches(), VALUES, run, log_every=2, sinks=[sink, told.append])
    assert run.saved_step == 2
    assert [row["step"] for row in calls] == [row["step"] for row in told] == [2]
    assert fit(Regression(), Batches(), VALUES, run, log_every=2, sinks=[told.append])
    assert [row["step"] for row in told if row["kind"] == "train"] == [2, 4, 6, 8, 10, 12]


def test_numbers_stand_beside_those_of_the_untrained_model_if_there_are(run):
    run.log({"kind": "late", "step": 8, "score": 8.0})
    assert compared_with_untrained({"kind": "late", "score": 9.0}, run) == "late: score 9"
    run.log({"kind": "early", "step": 0, "score": 1.0})
    row = {"kind": "early", "score": 9.0, "count": 3, "more": 2.5}
    assert compared_with_untrained(row, run) == "early: score 9 (untrained 1), more 2.5"
