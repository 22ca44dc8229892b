"""Work on numbered things in other processes, its results in order.

Workers leave signals to the main process, which may still need them to stop in good order, and end when it does.
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
    """What `make` makes of each number, in their order, here or in worker processes. Closing it ends them.

    Args:
        make: is sent to the workers.
        numbers: without end, or few.
        workers: how many; 0 makes all here.
        prefetch: how many results each worker is ahead.
        pin_memory: have workers' results put into memory that a GPU copies from by itself: their `pin_memory()`.

    Raises:
        Whatever `make` raises; in a worker only `CannotGoOn` keeps its message to itself.
    """
    if workers == 0:
        yield from map(make, numbers)
        return
    loader = DataLoader(
        _Numbered(make),
        sampler=numbers,
        batch_size=None,  # a worker makes a whole one
        num_workers=workers,
        prefetch_factor=prefetch,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else it draws its workers' seeds from the global one
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
    """Dropping the iterator would do as well, but a traceback may keep it."""
    results._shutdown_workers()
    for worker in results._workers:
        worker.kill()  # one that is still deep in its work


class _Numbered(Dataset):
    """What a worker runs. Its expected failure travels as a value: torch would bury the message in a traceback."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make(number)
        except CannotGoOn as error:
            return error


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata; what matters comes back as `skipped`
    # A signal to the whole process group asks the main process to stop in good order: it still needs its workers then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    if os.name == "posix":
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM) and None)


def _die_with(parent: BaseProcess) -> None:
    """torch looks only at its direct parent, which may be a fork server that lives as long as this process does."""
    parent.join()
    os._exit(1)
