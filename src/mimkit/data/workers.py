"""Map numbers to results in worker processes, in order.

Signals that ask a run to stop do not end workers at once, as the main process needs them to finish its step; they end
when it does.
"""

import atexit
import functools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mimkit.errors import CannotGoOn

SECONDS_AFTER_SIGTERM = 60

Made = TypeVar("Made")


def in_order(
    make: Callable[[int], Made], numbers: Iterable[int], workers: int, *, prefetch: int = 2, pin_memory: bool = False
) -> Generator[Made]:
    """`map(make, numbers)`, computed by worker processes. Closing the iterator ends them.

    Args:
        make: called in the workers, so it must be picklable.
        numbers: may be endless.
        workers: number of processes; 0 computes in this one.
        prefetch: results that each worker computes ahead.
        pin_memory: call `pin_memory()` of results that come from workers.

    Raises:
        Whatever `make` raises. From a worker, only `CannotGoOn` comes without torch's added traceback.
    """
    if workers == 0:
        yield from map(make, numbers)
        return
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
