"""What a notebook does under a start method: runs commands, and tries what workers cannot be sent.

python -c "from helpers.start_method import begin; begin(METHOD, STOP); ..."
"""

import multiprocessing
import os
import signal

from mimkit.progress import Progress


def begin(method: str, stop: int | None = None) -> None:
    """Start workers by this method from now on; a run is asked to stop after a step."""
    multiprocessing.set_start_method(method)
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(["mimkit.compose"])  # a worker is ready sooner
    usual = Progress.step

    def stopping(self: Progress, step: int) -> None:
        usual(self, step)
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    Progress.step = stopping  # type: ignore[method-assign]
