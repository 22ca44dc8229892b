"""Signals, handled where a run can handle them: between steps, and not inside a backward pass."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer the error for a dead data worker to the end of the block; torch raises it from a SIGCHLD handler, anywhere.

    A backward pass that is interrupted leaves autograd nodes behind, which crash the interpreter at its exit.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if main and hasattr(signal, "SIGCHLD") else None
    if not callable(handler):
        yield
        return
    deferred: list[Any] = []
    signal.signal(signal.SIGCHLD, lambda *signalled: deferred.append(signalled))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
    if deferred:
        handler(*deferred[0])


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM or SIGINT requests a stop after the step; a second SIGINT interrupts at once.

    Repeated SIGTERMs change nothing: Slurm sends one to all processes of a job, and torchrun forwards its own. Under
    torchrun the same holds for SIGINT. Only SIGKILL ends a run at once.
    """
    requested = False

    def request(number: int, frame: object) -> None:
        nonlocal requested
        requested = True
        if number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(number, old[number])

    main = threading.current_thread() is threading.main_thread()  # elsewhere Python forbids handlers
    numbers = (signal.SIGTERM, signal.SIGINT) if main else ()
    old: dict[int, Any] = {number: signal.signal(number, request) for number in numbers}
    try:
        yield lambda: requested
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
