"""Signals, taken where a run can take them: between steps, and not inside a backward pass."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, the loss of a reading process is no error yet: torch raises it from a handler, in the midst of anything.

    A backward pass that is cut short leaves nodes behind, whose end crashes the interpreter's.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if main and hasattr(signal, "SIGCHLD") else None
    if not callable(handler):
        yield
        return
    lost: list[Any] = []
    signal.signal(signal.SIGCHLD, lambda *signalled: lost.append(signalled))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
    if lost:
        handler(*lost[0])


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM or SIGINT asks to stop after the step; a second SIGINT acts at once.

    A second SIGTERM asks for the same: Slurm sends one to all processes of a job, and torchrun passes its own on. So it
    is with any signal under torchrun. What must end at once is sent a SIGKILL.
    """
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        if number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(number, old[number])

    main = threading.current_thread() is threading.main_thread()  # elsewhere Python forbids handlers
    numbers = (signal.SIGTERM, signal.SIGINT) if main else ()
    old: dict[int, Any] = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield lambda: asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
