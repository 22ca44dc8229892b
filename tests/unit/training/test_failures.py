"""What goes wrong in a step is told in one line."""

import pytest
import torch

from mimkit.errors import BadImage, TooManyBadImages, TrainingStopped
from mimkit.training.failures import as_messages
from mimkit.training.run_folder import Run

KEPT = "the last checkpoint is kept, go on with: mimkit resume RUN"
FULL = "out of memory in step 7, with --micro-batch 15"
WORKER = "a data worker died in step 7"
PEER = f"another process of this run died in step 7; {KEPT}"
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
    (RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed."), f"{WORKER}: DataLoader worker (pid 5) is"),
    (ConnectionResetError(104, "Connection reset by peer"), f"{WORKER}: [Errno 104] Connection"),
    (RuntimeError("[gloo/pair.cc:1] Connection closed by peer [::1]:1"), PEER),
    (RuntimeError("[gloo] Timed out waiting 7200000ms for recv"), PEER),
    (torch.distributed.DistBackendError("NCCL error"), PEER),
    (ValueError("Input X contains\nNaN."), "step 7: ValueError in test_failures.py:"),
    (ValueError(OF_A_WORKER), f"ValueError: the view; is wrong; while making a view of a.png; {KEPT}"),
]


@pytest.mark.parametrize(("error", "told"), TOLD, ids=[type(error).__name__ for error, _ in TOLD])
def test_errors_on_the_way_become_one_line(error, told, tmp_path):
    run = Run.create(tmp_path / "run", {})
    (run.folder / "checkpoints" / "step-00000005").mkdir(parents=True)
    with pytest.raises(TrainingStopped) as stopped, as_messages(lambda: 7, run, micro_batch=15):
        raise error
    message = str(stopped.value).replace(str(run.folder), "RUN")
    assert told in message
    assert KEPT in message
    assert "\n" not in message
    assert stopped.value.__cause__ is error


def test_a_line_says_what_goes_on_and_whether_anything_was_saved(tmp_path):
    """`mimkit resume` for kinds of runs that it knows, else the command that began the run."""
    run = Run.create(tmp_path / "run", {"kind": "cells", "resumable": False})
    with (
        pytest.raises(TrainingStopped, match="nothing was saved yet, go on with: the command that began it"),
        as_messages(lambda: 1, run, micro_batch=2),
    ):
        raise RuntimeError("torn")
    with pytest.raises(TrainingStopped, match=r"^step 1: a.png: torn$"), as_messages(lambda: 1, run, micro_batch=2):
        raise BadImage("a.png", "torn")


def test_our_own_errors_pass_as_they_are(run):
    with pytest.raises(TooManyBadImages, match="all"), as_messages(lambda: 7, run, micro_batch=2):
        raise TooManyBadImages("all are bad")


def test_what_python_continues_is_told_in_python(tmp_path):
    run = Run.create(tmp_path / "run", {"needs": ["data"]})
    on = r"go on with: mimkit\.resume\('.*/run', data=\.\.\.\) in Python, micro_batch=1 or 'auto'$"
    with pytest.raises(TrainingStopped, match=on), as_messages(lambda: 1, run, micro_batch=2):
        raise MemoryError
