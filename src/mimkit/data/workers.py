"""Map numbers to results in worker processes, in order.

Signals that ask a run to stop do not end workers at once, as the main process needs them to finish its step; they end
when it does.
"""

import atexit
import functools
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mimkit.errors import CannotBeSent, CannotGoOn
from mimkit.user_code import LoadedFiles

SECONDS_AFTER_SIGTERM = 60

Made = TypeVar("Made")


def in_order(
    make: Callable[[int], Made], numbers: Iterable[int], workers: int, *, prefetch: int = 2, pin_memory: bool = False
) -> Generator[Made]:
    """`map(make, numbers)`, computed by worker processes. Closing the iterator ends them.

    Args:
        make: called in the workers, so it must be picklable where they are no forks of this process.
        numbers: may be endless.
        workers: number of processes; 0 computes in this one.
        prefetch: results that each worker computes ahead.
        pin_memory: call `pin_memory()` of results that come from workers.

    Raises:
        CannotBeSent: `make` is not picklable.
        Whatever `make` raises. From a worker, only `CannotGoOn` comes without torch's added traceback.
    """
    if workers == 0:
        yield from map(make, numbers)
        return
    if not workers_are_forks():
        refuse_unsendable(make)
    loader = DataLoader(
        _Numbered(make),
        sampler=numbers,
        batch_size=None,  # a worker's result is a batch already
        num_workers=workers,
        prefetch_factor=prefetch,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # without one, DataLoader draws the workers' seeds from the global generator
    )
    results = iter(loader)
    end = functools.partial(_end_workers, results)
    atexit.register(end)
    try:
        for result in results:
            if isinstance(result, CannotGoOn):
                raise result
            yield result
    finally:
        atexit.unregister(end)
        end()


def workers_are_forks() -> bool:
    """Whether data workers have what this process has, and need not be sent it: on Linux, up to Python 3.13."""
    return multiprocessing.get_start_method() == "fork"


def refuse_unsendable(value: object) -> None:
    """Check up front that a value can be sent to data workers that are no forks of this process.

    Raises:
        CannotBeSent: it holds what has no name, such as a lambda, or one that only this process knows.
    """
    try:
        _DryRun(_Nowhere()).dump(value)
    except CannotBeSent:
        raise
    except Exception as error:  # pickling gives AttributeError, TypeError, PicklingError and the object's own
        raise _cannot_be_sent(str(error).partition("\n")[0]) from error


def _cannot_be_sent(what: str) -> CannotBeSent:
    return CannotBeSent(
        f"data workers cannot be sent what they need: {what}; define it at the top of a file that can be imported, "
        "or read without workers: --workers 0, Machine(workers=0)"
    )


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: bytes) -> int:
        return len(data)


class _DryRun(ForkingPickler):
    """Pickles to see whether it can be done. What is large and can always be sent, or only while a process is started,
    is left out: tensors, arrays of numbers, locks and shared values."""

    def reducer_override(self, value: Any) -> Any:
        module = type(value).__module__
        if isinstance(value, torch.Tensor) or module.startswith(("torch.storage", "multiprocessing.", "ctypes")):
            return int, ()
        if type(value) is np.ndarray and not value.dtype.hasobject:
            return int, ()
        if isinstance(value, type | FunctionType) and value.__module__ == "__main__" and not _main_is_a_file():
            raise _cannot_be_sent(f"{value.__qualname__} is known to this session only")
        return NotImplemented


def _main_is_a_file() -> bool:
    """Whether other processes can run this one's main module, which a notebook or an interpreter has in no file."""
    main = sys.modules["__main__"]
    return getattr(main, "__spec__", None) is not None or hasattr(main, "__file__")


def _end_workers(results: Any) -> None:
    """Explicitly, as a traceback may keep the iterator alive."""
    results._shutdown_workers()
    for worker in results._workers:
        worker.kill()  # one may still be busy


class _Numbered(Dataset):
    """A worker's data set. `CannotGoOn` is returned, not raised: torch would bury its message in a traceback."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make(number)
        except CannotGoOn as error:
            return error

    def __getstate__(self) -> dict[str, Any]:
        """What is unpickled first makes the classes of the user's files importable."""
        return {"files": LoadedFiles(), "make": self.make}


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata; unreadable images are reported as `skipped`
    # SIGINT reaches the whole process group; the main process needs its workers to finish the step and save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    if os.name == "posix":
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM) and None)


def _die_with(parent: BaseProcess) -> None:
    """torch watches only the direct parent, which may be a fork server that lives as long as this process does."""
    parent.join()
    os._exit(1)
