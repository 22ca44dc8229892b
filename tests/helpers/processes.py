"""Several processes at once: started as torchrun starts them, or by torchrun itself, and waited for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import TCPStore

INTERRUPTED = Path(__file__).with_name("interrupted.py")


def start(folder: Path, size: int, *command: str) -> list[subprocess.Popen[bytes]]:
    """Processes that find each other, as torchrun starts them. Their words are in the folder."""
    environment = {**os.environ, "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(size):
        with (folder / f"output-{rank}.txt").open("wb") as output:
            own = environment | {"RANK": str(rank)}
            processes.append(subprocess.Popen([sys.executable, *command], stdout=output, stderr=output, env=own))
    return processes


def run_together(folder: Path, size: int, *command: str) -> list[str]:
    """What the processes say, once they have ended well. Their store outlives their groups, as torchrun's does."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", str(store.port))
        patch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        processes = start(folder, size, *command)
    try:
        codes = [process.wait(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = [(folder / f"output-{rank}.txt").read_text() for rank in range(size)]
    assert codes == [0] * size, "\n".join(said)
    return said


def torchrun(folder: Path, *arguments: str, processes: int = 2, restarts: int = 0, interrupt: str = "-1:0:0") -> str:
    """What the processes say, once they have ended well."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    launch += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", str(INTERRUPTED)]
    output = folder / "output.txt"
    environment = {**os.environ, "INTERRUPT": interrupt, "OMP_NUM_THREADS": "1"}
    with output.open("wb") as file:
        code = subprocess.run(
            [*launch, *arguments], stdout=file, stderr=file, env=environment, timeout=400, check=False
        ).returncode
    assert code == 0, output.read_text()
    return output.read_text()
