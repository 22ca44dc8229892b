"""Sections for rows of kinds that the report does not know: one chart for each number that a job logged of its own."""

from collections import Counter
from dataclasses import dataclass

from mimkit.report.charts import ReferenceLine, Series, color, line_chart
from mimkit.report.figures import Figure, common_axis
from mimkit.report.formatting import count, short
from mimkit.report.read import Row, RunData, before_training, number, points
from mimkit.report.rows import charted_keys, last_measured, measured_keys

MOST_CHARTS = 24  # of one kind


@dataclass(frozen=True)
class KindSection:
    """The charts of one kind of rows under a title, with the sentences that introduce them."""

    title: str
    lead: str
    figures: list[Figure]


def sections(run: RunData) -> list[KindSection]:
    """One section for each kind that the report does not know and that holds a finite number."""
    found = []
    for kind, records in run.other_rows.items():
        keys = charted_keys(records)
        if not keys:
            continue
        lead = f"What the job itself logged in rows of the kind “{kind}”, one chart for each number."
        if before_training(records) and last_measured(records):
            lead += " A dashed line is the value before training."
        lead += " Which way is better depends on the number."
        figures = [_figure(kind, records, key) for key in keys[:MOST_CHARTS]]
        found.append(KindSection(kind, lead + _not_shown(len(keys)), figures))
    return found


def overlaid_sections(runs: list[RunData], names: list[str]) -> list[KindSection]:
    """The curves of several runs in one chart for each number that at least two of them logged."""
    found = []
    for kind in dict.fromkeys(kind for run in runs for kind in run.other_rows):
        of_runs = [run.other_rows.get(kind, []) for run in runs]
        of_all = [record for records in of_runs for record in records]
        times = Counter(key for records in of_runs for key in measured_keys(records))
        keys = [key for key in charted_keys(of_all) if times[key] > 1]
        if keys:
            x = common_axis(runs, of_all)
            lead = (
                f"What the runs' own rows of the kind “{kind}” have in common. "
                "Which way is better depends on the number."
            )
            figures = [_overlay(kind, of_runs, names, key, x) for key in keys[:MOST_CHARTS]]
            found.append(KindSection(kind, lead + _not_shown(len(keys)), figures))
    return found


def _not_shown(keys: int) -> str:
    rest = keys - MOST_CHARTS
    if rest <= 0:
        return ""
    return f" {count(rest)} more {'number is' if rest == 1 else 'numbers are'} not shown; all are in log.jsonl."


def _figure(kind: str, records: list[Row], key: str) -> Figure:
    before = number((before_training(records) or {}).get(key))
    trained = [record for record in records if record["step"] > 0 and number(record.get(key)) is not None]
    caption = "" if before is None else f"{short(before)} before training"
    if trained:
        now = f"{short(number(trained[-1][key]))} at step {count(trained[-1]['step'])}"
        caption = f"{caption}, {now}" if caption else now
    series = Series(label="trained" if trained else "untrained", points=points(records, key), color=color(0), dots=True)
    references = (
        [ReferenceLine(label="untrained", value=before, color=color(0))] if before is not None and trained else []
    )
    title = f"{kind}: {key}"
    return Figure(title, f"{caption}.", line_chart([series], title=f"{title} by step", references=references))


def _overlay(kind: str, of_runs: list[list[Row]], names: list[str], key: str, x: str) -> Figure:
    series = [
        Series(label=name, points=points(records, key, x=x), color=color(i), dots=True)
        for i, (records, name) in enumerate(zip(of_runs, names, strict=True))
    ]
    references = [
        ReferenceLine(value=before, color=color(i))
        for i, records in enumerate(of_runs)
        if (before := number((before_training(records) or {}).get(key))) is not None
    ]
    title = f"{kind}: {key}"
    caption = f"{key} of each run." + (" Dashed: before training." if references else "")
    return Figure(title, caption, line_chart(series, title=f"{title} by {x}", x_name=x, references=references))
