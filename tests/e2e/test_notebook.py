"""A notebook trains, is interrupted, goes on and computes features."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mimkit import Run

PHOTOS = {"count": 12, "size": 40}

INTERRUPTING = """
import os, signal, mimkit

def interrupt(row):
    if row["kind"] == "train" and row["step"] == 2:
        os.kill(os.getpid(), signal.SIGINT)  # what "interrupt the kernel" does

settings = dict(epochs=2, batch_size=4, image_size=64, log_every=1, device="cpu", workers=0)
mimkit.pretrain("small", data="{photos}", out="{run}", callbacks=[interrupt], **settings)
"""
GOING_ON = """
assert mimkit.resume("{run}", device="cpu", workers=0)
"""
FEATURES = """
encoder = mimkit.load_encoder("{run}")
features = encoder(encoder.read(mimkit.data.find_images("{photos}").path(0)))
tuple(features.shape), mimkit.Run("{run}").rows("end")
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that run notebooks
def test_train_interrupt_resume_features(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    places = {"photos": str(photos), "run": str(tmp_path / "run")}
    cells = [
        cell.replace("{photos}", places["photos"]).replace("{run}", places["run"])
        for cell in (INTERRUPTING, GOING_ON, FEATURES)
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    first, _, last = ([*map(text_of, cell.outputs)] for cell in notebook.cells)
    said = "".join(first)
    assert "False" in first[-1]
    assert "stopped, step 2 of " in said
    assert f"mimkit.resume({places['run']!r})" in said
    assert "((1, 192), [{'kind': 'end'" in last[-1]
    steps = Run(tmp_path / "run").facts["steps"]
    assert [row["step"] for row in Run(tmp_path / "run").rows("train")] == [*range(1, steps + 1)]


def text_of(output: dict) -> str:
    """What an output of a cell says."""
    return output.get("text", "") or output.get("data", {}).get("text/plain", "")
