"""Several runs side by side: how they are called, what they reached, and in what they differ."""

from dataclasses import dataclass
from pathlib import Path

from mimkit.report.formatting import percent, short, show, signed
from mimkit.report.read import Row, RunData, before_training, last, number
from mimkit.report.rows import compared_with_untrained, in_common, last_measured, measured
from mimkit.report.verdict import PROBES

UNKNOWN = short(None)
MOST_NUMBERS = 4  # of one kind of a job's own rows, in the table of results


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; the first cell of a row names it."""

    head: list[str]
    rows: list[list[str]]


def unique_names(folders: list[Path]) -> list[str]:
    """The shortest endings of the folders' paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    names = [Path(*part[-1:]).as_posix() for part in parts]
    for length in range(2, max(map(len, parts)) + 1):
        repeated = {name for name in names if names.count(name) > 1}
        if not repeated:
            break
        names = [
            Path(*part[-length:]).as_posix() if name in repeated else name
            for name, part in zip(names, parts, strict=True)
        ]
    return names


def results(runs: list[RunData], names: list[str]) -> Table:
    """One row per run: its last probe with the points gained, loss, speed; columns that no run fills are left out.

    Of the rows of other kinds, the numbers that the runs have in common stand beside their values before training.
    """
    common = [(kind, key) for kind, keys in in_common(runs) for key in keys[:MOST_NUMBERS]]
    head = [
        "Run",
        "Kind",
        "Recipe",
        *(f"{kind}: {key}" for kind, key in common),
        *PROBES.values(),
        "Loss, held-out",
        "Loss, training",
        "Effective rank",
        "Images/s",
        "Steps",
    ]
    rows = []
    for run, name in zip(runs, names, strict=True):
        probe, before = run.probe or {}, run.untrained or {}
        scores = []
        for key in PROBES:
            now, then = number(probe.get(key)), number(before.get(key))
            scores.append("" if now is None else percent(now) + ("" if then is None else f" ({signed(now - then)})"))
        values = (number(probe.get("masked_loss")), last(run.train, "loss"), number(probe.get("effective_rank")))
        steps = f"{run.step:,}" + (f" of {run.planned:,}" if run.planned and not run.finished else "")
        speed = median_speed(run)
        numbers = ["" if value is None else short(value) for value in (*values, speed)]
        own = []
        for kind, key in common:
            records = run.other_rows.get(kind, [])
            now = measured(last_measured(records) or {}).get(key)
            then = number((before_training(records) or {}).get(key))
            own.append("" if now is None else compared_with_untrained(now, then))
        rows.append([name, run.kind if len(known_kinds(runs)) > 1 else "", run.recipe, *own, *scores, *numbers, steps])
    filled = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return Table([head[i] for i in filled], [[row[i] or UNKNOWN for i in filled] for row in rows])


def differences(runs: list[RunData], names: list[str]) -> Table:
    """One row for each part and setting that two runs are known to have different values of."""
    rows = []
    for section, label in (
        ("parts", "part: {}"),
        ("settings", "{}"),
        ("data", "data: {}"),
        ("versions", "version: {}"),
    ):
        sections = [run.section(section) for run in runs]
        for key in dict.fromkeys(key for one in sections for key in one):
            rows.append([label.format(key), *(_value(one, key) for one in sections)])
    rows.append(["kind", *(run.kind if run.info else UNKNOWN for run in runs)])
    for key in ("training", "machine", "git_commit"):
        rows.append([key.replace("_", " "), *(_value(run.info, key) for run in runs)])
    return Table(["Setting", *names], [row for row in rows if len(set(row[1:]) - {UNKNOWN}) > 1])


def known_kinds(runs: list[RunData]) -> set[str]:
    """The kinds of the jobs whose `run.json` could be read."""
    return {run.kind for run in runs if run.info}


def same_loss(runs: list[RunData]) -> bool:
    """Whether the losses measure the same thing: equal kinds of job, targets and distances, as far as is known."""
    if len(known_kinds(runs)) > 1:
        return False
    parts = [run.section("parts") for run in runs]
    return all(len({_value(one, part) for one in parts} - {UNKNOWN}) <= 1 for part in ("target", "distance"))


def median_speed(run: RunData) -> float | None:
    """The middle of the measured images per second."""
    found = sorted(y for record in run.speed if (y := number(record.get("images_per_second"))) is not None)
    return found[len(found) // 2] if found else None


def _value(section: Row, key: str) -> str:
    if not section:
        return UNKNOWN
    return show(section[key]) if key in section else "not set"
