"""A run folder as plain data. Nothing here fails on a run that is still being written.

A record is one JSON object of a log, with a whole `step`. Pictures are read when a page is made, not here.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class PictureFile:
    """One picture of reconstructions, as it stands on the disk."""

    step: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run folder holds; whatever it does not hold (yet) is empty.

    Args:
        folder: the run folder.
        info: `run.json`.
        train, probes, skipped, nonfinite: records of `log.jsonl` by kind.
        speed: records of `speed.jsonl`. Like training and probe records they are in the order of their steps, one for
            each: where a run was resumed from an earlier step, the later line stands.
        ended: the step at which the run said that it was done.
        pictures: of reconstructions, in the order of their steps.
        columns: captions of a picture's columns, from left to right.
        note: how the pictures' pixels were restored.
        problems: what could not be read, one sentence each.
    """

    folder: Path
    info: Record
    train: list[Record]
    probes: list[Record]
    skipped: list[Record]
    nonfinite: list[Record]
    speed: list[Record]
    ended: int | None
    pictures: list[PictureFile]
    columns: list[str]
    note: str
    problems: list[str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name or str(self.folder)

    @property
    def recipe(self) -> str:
        """The recipe's name, or an empty text."""
        return str(self.info.get("recipe") or "")

    @property
    def step(self) -> int:
        """The last step that any line speaks of; 0 before training."""
        records = (*self.train[-1:], *self.probes[-1:], *self.speed[-1:], *self.nonfinite[-1:])
        return max([self.ended or 0, *(record["step"] for record in records)])

    @property
    def planned(self) -> int | None:
        """Steps that the run was meant to take."""
        steps = number(self.info.get("steps"))
        return int(steps) if steps and steps >= 1 else None

    @property
    def finished(self) -> bool:
        """Whether the run said that it was done, and took all its planned steps."""
        return self.ended is not None and self.ended >= (self.planned or self.step)

    @property
    def untrained(self) -> Record | None:
        """The probe of the encoder before its first step."""
        return self.probes[0] if self.probes and self.probes[0]["step"] == 0 else None

    @property
    def probe(self) -> Record | None:
        """The last probe after training began."""
        return self.probes[-1] if self.probes and self.probes[-1]["step"] > 0 else None

    def section(self, name: str) -> Record:
        """An object of `run.json` such as `settings`; empty where it is missing."""
        value = self.info.get(name)
        return value if isinstance(value, dict) else {}


def read_run(folder: Path) -> RunData:
    """Reads a run folder, finished or not.

    Raises:
        ValueError: there is no such folder, or it holds neither `run.json` nor `log.jsonl`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no run folder at {folder}")
    if not (folder / "run.json").is_file() and not (folder / "log.jsonl").is_file():
        raise ValueError(f"{folder} is not a run folder: it has neither run.json nor log.jsonl")

    problems: list[str] = []
    log = _read_lines(folder / "log.jsonl", problems)
    legend = _read_object(folder / "reconstructions" / "legend.json", problems)
    columns = legend.get("columns")
    kinds = ("train", "probe", "skipped", "nonfinite", "end")
    of_kind = {kind: [record for record in log if record.get("kind") == kind] for kind in kinds}
    return RunData(
        folder=folder,
        info=_read_object(folder / "run.json", problems),
        train=_last_of_each_step(of_kind["train"]),
        probes=_last_of_each_step(of_kind["probe"]),
        skipped=of_kind["skipped"],
        nonfinite=of_kind["nonfinite"],
        speed=_last_of_each_step(_read_lines(folder / "speed.jsonl", problems)),
        ended=max((record["step"] for record in of_kind["end"]), default=None),
        pictures=_pictures(folder / "reconstructions"),
        columns=[str(column) for column in columns] if isinstance(columns, list) else [],
        note=str(legend.get("note") or ""),
        problems=problems,
    )


def number(value: object) -> float | None:
    """A finite number as a float; anything else, and what is beyond ±1e30, as None. Below 1e-30 it is 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e30:
        return None
    return float(value) if abs(value) >= 1e-30 else 0.0


def points(records: Iterable[Record], key: str, *, x: str = "step", scale: float = 1.0) -> Points:
    """(x, scale·y) of the records that have the key; y is NaN where it is no finite number."""
    found = []
    for record in records:
        at = number(record.get(x))
        if key in record and at is not None:
            y = number(record[key])
            found.append((at, math.nan if y is None else scale * y))
    return found


def last(records: list[Record], key: str) -> float | None:
    """The last finite number that the records give for a key."""
    return next((y for record in reversed(records) if (y := number(record.get(key))) is not None), None)


def _read_object(path: Path, problems: list[str]) -> Record:
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        if path.name == "run.json":
            problems.append("run.json is missing, so the settings and the planned steps are unknown.")
        return {}
    except (OSError, ValueError, RecursionError):
        problems.append(f"{path.name} could not be read; it may be half written.")
        return {}
    if isinstance(value, dict):
        return value
    problems.append(f"{path.name} does not hold an object.")
    return {}


def _read_lines(path: Path, problems: list[str]) -> list[Record]:
    """The records of a file of JSON lines, in its order; a torn last line is left out without a word."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError:
        problems.append(f"{path.name} could not be read.")
        return []
    lines = data.split(b"\n")
    records, bad = [], 0
    for place, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8", errors="replace"))
        except (ValueError, RecursionError):
            bad += place < len(lines) - 1
            continue
        step = number(record.get("step")) if isinstance(record, dict) else None
        if step is None or step < 0:
            bad += 1
        else:
            records.append({**record, "step": int(step)})
    if bad:
        problems.append(f"{path.name}: {bad} unreadable {'line was' if bad == 1 else 'lines were'} left out.")
    return records


def _last_of_each_step(records: list[Record]) -> list[Record]:
    by_step = {record["step"]: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def _pictures(folder: Path) -> list[PictureFile]:
    found = []
    for path in folder.glob("step-*.png"):
        digits = path.stem.removeprefix("step-")
        if digits.isascii() and digits.isdigit():
            found.append(PictureFile(int(digits), path))
    return sorted(found, key=lambda picture: picture.step)
