"""The command line, in which some process gets a signal after some step of a first start: for torchrun to run.

INTERRUPT=rank:step:signal torchrun ... tests/helpers/interrupted.py pretrain ...
"""

import os
import sys

from mimkit.cli.main import main
from mimkit.progress import Progress

rank, step, number = map(int, os.environ.get("INTERRUPT", "-1:0:0").split(":"))


class Interrupting(Progress):
    """Sends its own process the signal when it is told of the step."""

    def step(self, step_done: int) -> None:
        super().step(step_done)
        if step_done == step and os.environ["RANK"] == str(rank) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), number)


if __name__ == "__main__":
    import mimkit.training.loop

    mimkit.training.loop.Progress = Interrupting
    sys.exit(main())
