"""Submits `mimkit pretrain` to Slurm: one torchrun on each node, queued again until the run is finished.

pip install submitit
python slurm.py --nodes 4 --gpus 8 --hours 24 mae --data /shared/photos --out /shared/runs/mae
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

PORT = 29400


class Pretrain:
    """What runs on each node.

    Args:
        gpus: processes on each node.
        request: the words after `mimkit pretrain`.
    """

    def __init__(self, gpus: int, request: list[str]) -> None:
        self.gpus, self.request = gpus, request

    def __call__(self) -> None:
        nodes = os.environ["SLURM_JOB_NODELIST"]
        names = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        command = launch(
            nodes=int(os.environ["SLURM_NNODES"]),
            gpus=self.gpus,
            first=names.stdout.split()[0],
            job=os.environ["SLURM_JOB_ID"],
            request=self.request,
        )
        self.process = subprocess.Popen(command)
        if self.process.wait():
            raise RuntimeError(f"torchrun ended with code {self.process.returncode}")

    def checkpoint(self) -> object:
        """Called by submitit shortly before the time is over: save, and queue the same again.

        Slurm keeps the job's number, by which the run folder knows its own.
        """
        import submitit

        self.process.terminate()  # torchrun passes it on to its processes, which save and stop
        self.process.wait()
        return submitit.helpers.DelayedSubmission(Pretrain(self.gpus, self.request))


def launch(*, nodes: int, gpus: int, first: str, job: str, request: list[str]) -> list[str]:
    """One node's command."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", str(gpus)]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:{PORT}", "--rdzv-id", job]
    return [*torchrun, *meeting, "--max-restarts", "3", "-m", "mimkit", "pretrain", *request]


def main() -> None:
    """Submit."""
    import submitit

    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--logs", type=Path, default=Path("slurm"))
    options, request = parser.parse_known_args()
    executor = submitit.AutoExecutor(folder=options.logs)
    executor.update_parameters(
        name="mimkit",
        nodes=options.nodes,
        tasks_per_node=1,
        gpus_per_node=options.gpus,
        timeout_min=round(60 * options.hours),
        slurm_signal_delay_s=120,
    )
    print(executor.submit(Pretrain(options.gpus, request)).job_id)


if __name__ == "__main__":
    main()
