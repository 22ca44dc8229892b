"""Progress bar, or plain lines where there is no terminal."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PLAIN_SECONDS = 10.0


def speaking() -> bool:
    """Whether this process prints messages: of several started by torchrun, only rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


class Progress:
    """Progress of training or other long work, on stderr.

    Args:
        steps: of the whole run.
        done: steps that are done already.
        images_per_step: for images per second.
        unit: the name of a step in plain lines.
        silent: print nothing, as on all ranks but rank 0.
    """

    def __init__(
        self, *, steps: int, done: int, images_per_step: int, unit: str = "step", silent: bool = False
    ) -> None:
        self.silent = silent
        self.steps, self.first, self.images_per_step, self.unit = steps, done, images_per_step, unit
        self.console = Console(stderr=True)
        self.bar: Bar | None = None
        if self.console.is_terminal and not silent:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, console=self.console)
            self.task = self.bar.add_task("", total=steps, completed=done)
        self.started = self.spoke = time.monotonic()
        self.window_waited = self.aside = 0.0
        self.window_started, self.window_step = self.started, done
        self.summary = ""

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context for waiting for data."""
        started = time.monotonic()
        yield
        self.window_waited += time.monotonic() - started

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Context for work other than training, such as a probe, which does not count towards images per second."""
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self.window_started += seconds
        self.aside += seconds

    def speed(self, step: int, row: dict[str, Any]) -> dict[str, Any]:
        """A row for the speed log, with the speed since the last call, which the bar shows from now on."""
        now = time.monotonic()
        seconds = max(now - self.window_started, 1e-9)
        rate = (step - self.window_step) * self.images_per_step / seconds
        wait = self.window_waited / seconds
        self.window_started, self.window_step, self.window_waited = now, step, 0.0
        loss = f"loss {row['loss']:.4f}" if "loss" in row else "no finite loss"
        self.summary = f"{loss}  {rate:.0f} images/s  data wait {wait:.0%}"
        return {"step": step, "images_per_second": rate, "data_wait": wait, "seconds": now - self.started}

    def step(self, step: int) -> None:
        """Show that a step is done."""
        if self.bar:
            self.bar.update(self.task, completed=step, description=self.summary)
            return
        now = time.monotonic()
        if now - self.spoke >= PLAIN_SECONDS or step == self.steps:
            self.spoke = now
            left = (now - self.started - self.aside) / max(1, step - self.first) * (self.steps - step)
            self.line(f"{self.unit} {step}/{self.steps}  {self.summary}  {duration(left)} left")

    def line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.silent:
            return
        if self.bar:
            self.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """8 s, 2 min 05 s, 3 h 20 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"
