"""Errors in training, each as one line with what to do."""

import itertools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed as dist

from mimkit.errors import BadImage, TrainingStopped
from mimkit.training.run_folder import Run

NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")  # of devices, of the machine
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


@contextmanager
def as_messages(step: Callable[[], int], run: Run, micro_batch: int) -> Iterator[None]:
    """Inside, an error of the training becomes one line with what to do; the original error stays its cause.

    Raises:
        TrainingStopped: instead of errors that mimkit does not define.
    """
    try:
        yield
    except BadImage as error:
        raise TrainingStopped(f"step {step()}: {error}") from error
    except (ValueError, RuntimeError, MemoryError, ConnectionError, EOFError) as error:
        if type(error).__module__.startswith("mimkit."):
            raise
        reason = first_line(error)
        kept = "the last checkpoint is kept" if any(run.folder.glob("checkpoints/step-*")) else "nothing was saved yet"
        on = f"{kept}, go on with: {run.resume_hint}"
        if out_of_memory(error):
            smaller = next((n for n in range(micro_batch // 2, 0, -1) if micro_batch % n == 0), None)
            what = f"out of memory in step {step()}, with --micro-batch {micro_batch}"
            option = (
                f", micro_batch={smaller} or 'auto'" if run.facts.get("needs") else f" --micro-batch {smaller}, or auto"
            )
            raise TrainingStopped(f"{what}; {on}{option if smaller else ''}") from error
        if "DataLoader worker (pid" in str(error) or isinstance(error, ConnectionError | EOFError):
            raise TrainingStopped(f"a data worker died in step {step()}: {reason}; {on}") from error
        if isinstance(error, dist.DistError) or any(words in str(error) for words in LOST_PEER):
            raise TrainingStopped(f"another process of this run died in step {step()}; {on}") from error
        raise TrainingStopped(f"step {step()}: {with_place(error)}; {on}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had too little memory."""
    said = any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and said)


def with_place(error: BaseException) -> str:
    """An error's type, the file and line that raised it, and the first line of its message."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; of one raised in a data worker, the last lines of its traceback."""
    lines = str(error).strip().splitlines() or [""]
    if not lines[0].startswith("Caught "):
        return lines[0]
    said = itertools.takewhile(lambda line: not line.startswith(" "), reversed(lines))
    return "; ".join(reversed([*said]))
