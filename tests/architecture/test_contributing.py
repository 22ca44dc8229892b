"""CONTRIBUTING's table "To add" is literally true: each row is done to a copy of the package, and what it adds is used.

A row names the file, the table of compose.py with the line to add, and an example, which becomes that file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import mimkit
from helpers.runs import as_flags
from helpers.tiny import TINY

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| an? (\w+) \| .*?`([\w/.]+)` \| `(\w+)`: `\"([\w-]+)\": (\w+)` \| \[.*\]\((.*)\) \|$", re.MULTILINE
)
PHOTOS = {"count": 12, "size": 64}


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    what: str
    file: str
    table: str
    name: str
    part: str
    example: str


ROWS = [Row(*found) for found in ROW.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))]


def add(row: Row, package: Path) -> None:
    """What the row says: its file, an import and a line in compose.py."""
    example, target = (ROOT / row.example).read_text(encoding="utf-8"), package / row.file
    module = "mimkit." + row.file.removesuffix(".py").replace("/", ".")
    if target.exists():  # a class in a file that is there
        own = [line for line in example.splitlines() if not line.startswith(f"from {module} import")]
        target.write_text(target.read_text() + "\n\n" + "\n".join(own) + "\n")
    else:
        target.write_text(example)
    lines = (package / "compose.py").read_text().splitlines()
    (begin,) = (number for number, line in enumerate(lines) if line.startswith(f"{row.table}: "))
    end = lines.index("}", begin)
    lines.insert(end, f'    "{row.name}": {row.part},')
    lines.insert(
        next(n for n, line in enumerate(lines) if line.startswith("from mimkit")), f"from {module} import {row.part}"
    )
    (package / "compose.py").write_text("\n".join(lines) + "\n")


def run(source: Path, *commands: list[str]) -> str:
    """Commands of the package in a folder, one after the other; their output."""
    code = "import json, sys; from mimkit.cli.main import main; sys.exit(any(map(main, json.loads(sys.argv[1]))))"
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(out: Path, recipe: str, photos: Path, flags: dict[str, object]) -> list[list[str]]:
    """Train, resume, export, embed."""
    small = {"batch_size": 4, "epochs": 1, "warmup_epochs": 0, "precision": "fp32"}
    here, run_folder, weights = (
        ["--workers", "0", "--device", "cpu"],
        str(out / "run"),
        str(out / "weights.safetensors"),
    )
    return [
        ["pretrain", recipe, "--data", str(photos), "--out", run_folder, *here, *as_flags(flags | small)],
        ["resume", run_folder, *here],
        ["export", run_folder, "--format", "safetensors", "--out", weights],
        ["embed", weights, "--data", str(photos), "--out", str(out / "features.npz"), *here],
        ["recipes"],
        ["pretrain", "--help"],
    ]


def test_the_table_has_these_rows():
    assert {row.what for row in ROWS} == {"target", "mask", "readout", "method"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_a_row_is_all_that_it_takes(row, photos, tmp_path):
    package = tmp_path / "source" / "mimkit"
    shutil.copytree(Path(mimkit.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    add(row, package)
    recipe = row.name if row.table == "RECIPES" else "mae"
    changed = {} if recipe == row.name else {row.what: row.name}
    said = run(package.parent, *commands(tmp_path, recipe, photos, TINY["mae"] | changed))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    if changed:
        assert facts["parts"][row.what]["name"] == row.part
        assert re.search(rf"--{row.what} .*?\b{row.name}\b", said, re.DOTALL)  # its help
    else:
        assert facts["recipe"] == row.name
        assert re.search(rf"^{row.name} ", said, re.MULTILINE)


def test_a_backbone_needs_nothing(photos, tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (backbone,) = re.findall(r"^\| a backbone \| none.*`--backbone (\w+)` \|$", text, re.MULTILINE)
    flags = {"backbone": backbone, "image_size": (96, 96)}
    run(Path(mimkit.__file__).parents[1], *commands(tmp_path, "simmim", photos, flags))
