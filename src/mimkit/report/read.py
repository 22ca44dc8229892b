"""A run folder as plain data. Nothing here fails on a run that is still being written.

A record is one JSON object of a log, with a whole `step`; in `log.jsonl` it also says its `kind`. Five kinds have
sections of their own in a report (`KNOWN_KINDS`); any other kind is a job's own numbers, shown as curves.
Pictures are read when a page is made, not here.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Points = list[tuple[float, float]]

PRETRAIN = "pretrain"  # the kind of a run whose run.json does not say one
KNOWN_KINDS = ("train", "probe", "skipped", "nonfinite", "end")
SEVERAL_PER_STEP = {"skipped", "nonfinite", "end"}  # of these kinds, all records of a step stand


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
        rows: records of `log.jsonl` by their kind, each kind's in the order of their steps. Of a kind that has one
            record per step, where a run was resumed from an earlier step, the later line stands.
        speed: records of `speed.jsonl`, likewise one per step.
        pictures: of reconstructions, in the order of their steps.
        columns: captions of a picture's columns, from left to right.
        note: how the pictures' pixels were restored.
        problems: what could not be read, one sentence each.
    """

    folder: Path
    info: Row
    rows: dict[str, list[Row]]
    speed: list[Row]
    pictures: list[PictureFile]
    columns: list[str]
    note: str
    problems: list[str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name or str(self.folder)

    @property
    def kind(self) -> str:
        """What kind of job this is, such as "pretrain"; a run that does not say is a pre-training."""
        return str(self.info.get("kind") or PRETRAIN)

    @property
    def pretraining(self) -> bool:
        """Whether this is a pre-training, as far as is known."""
        return self.kind == PRETRAIN

    @property
    def recipe(self) -> str:
        """The recipe's name, or an empty text."""
        return str(self.info.get("recipe") or "")

    @property
    def train(self) -> list[Row]:
        """Means over stretches of training steps."""
        return self.rows.get("train", [])

    @property
    def probes(self) -> list[Row]:
        """What probes of the frozen encoder gave."""
        return self.rows.get("probe", [])

    @property
    def skipped(self) -> list[Row]:
        """Files that could not be used."""
        return self.rows.get("skipped", [])

    @property
    def nonfinite(self) -> list[Row]:
        """Steps whose loss or gradient was not finite."""
        return self.rows.get("nonfinite", [])

    @property
    def ended(self) -> int | None:
        """The last step at which the run said that it was done."""
        return max((record["step"] for record in self.rows.get("end", [])), default=None)

    @property
    def other_rows(self) -> dict[str, list[Row]]:
        """The records of all kinds but the known ones; those of the run's own kind come first."""
        kinds = sorted((kind for kind in self.rows if kind not in KNOWN_KINDS), key=lambda kind: kind != self.kind)
        return {kind: self.rows[kind] for kind in kinds}

    @property
    def step(self) -> int:
        """The last step that any line speaks of; 0 before training."""
        return max((records[-1]["step"] for records in (*self.rows.values(), self.speed) if records), default=0)

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
    def untrained(self) -> Row | None:
        """The probe of the encoder before its first step."""
        return before_training(self.probes)

    @property
    def probe(self) -> Row | None:
        """The last probe after training began."""
        return self.probes[-1] if self.probes and self.probes[-1]["step"] > 0 else None

    def section(self, name: str) -> Row:
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
    return RunData(
        folder=folder,
        info=_read_object(folder / "run.json", problems),
        rows=_by_kind(log),
        speed=_last_of_each_step(_read_lines(folder / "speed.jsonl", problems)),
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


def points(records: Iterable[Row], key: str, *, x: str = "step", scale: float = 1.0) -> Points:
    """(x, scale·y) of the records that have the key; y is NaN where it is no finite number."""
    found = []
    for record in records:
        at = number(record.get(x))
        if key in record and at is not None:
            y = number(record[key])
            found.append((at, math.nan if y is None else scale * y))
    return found


def last(records: list[Row], key: str) -> float | None:
    """The last finite number that the records give for a key."""
    return next((y for record in reversed(records) if (y := number(record.get(key))) is not None), None)


def before_training(records: list[Row]) -> Row | None:
    """The record of step 0, if the first of these is one."""
    return records[0] if records and records[0]["step"] == 0 else None


def _by_kind(log: list[Row]) -> dict[str, list[Row]]:
    """The records of each kind in the order of their steps; those whose kind is no text are left out."""
    rows: dict[str, list[Row]] = {}
    for record in log:
        kind = record.get("kind")
        if kind and isinstance(kind, str):
            rows.setdefault(kind, []).append(record)
    return {
        kind: sorted(records, key=lambda record: record["step"])
        if kind in SEVERAL_PER_STEP
        else _last_of_each_step(records)
        for kind, records in rows.items()
    }


def _read_object(path: Path, problems: list[str]) -> Row:
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


def _read_lines(path: Path, problems: list[str]) -> list[Row]:
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


def _last_of_each_step(records: list[Row]) -> list[Row]:
    by_step = {record["step"]: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def _pictures(folder: Path) -> list[PictureFile]:
    found = []
    for path in folder.glob("step-*.png"):
        digits = path.stem.removeprefix("step-")
        if digits.isascii() and digits.isdigit():
            found.append(PictureFile(int(digits), path))
    return sorted(found, key=lambda picture: picture.step)
