"""The numbers that records of any kind hold, without knowing what they mean."""

from mimkit.report.formatting import short
from mimkit.report.read import Row, RunData, number

NOT_MEASURED = {"kind", "step", "epoch"}  # keys of a record that say which it is, not what was measured


def measured(record: Row) -> dict[str, float]:
    """The finite numbers that a record holds, without its step and epoch."""
    found = {key: number(value) for key, value in record.items() if key not in NOT_MEASURED}
    return {key: value for key, value in found.items() if value is not None}


def measured_keys(records: list[Row]) -> list[str]:
    """The keys under which any of these records holds a finite number, in the order of their first appearance."""
    return list(dict.fromkeys(key for record in records for key in measured(record)))


def last_measured(records: list[Row]) -> Row | None:
    """The last record after training began that holds a finite number."""
    return next((record for record in reversed(records) if record["step"] > 0 and measured(record)), None)


def varying_keys(records: list[Row]) -> list[str]:
    """The measured keys without whole numbers that never change, as a count of classes; all keys if none is left."""
    keys = measured_keys(records)

    def counts_the_same(key: str) -> bool:
        values = [record[key] for record in records if number(record.get(key)) is not None]
        return all(isinstance(value, int) for value in values) and len(set(values)) == 1

    return [key for key in keys if not counts_the_same(key)] or keys


def charted_keys(records: list[Row]) -> list[str]:
    """All measured keys, the varying_keys ones first."""
    return list(dict.fromkeys([*varying_keys(records), *measured_keys(records)]))


def job_rows(run: RunData) -> tuple[str, list[Row]] | None:
    """The kind and the records that speak for a job: those of its own kind, else the first others with a number."""
    return next(((kind, records) for kind, records in run.other_rows.items() if measured_keys(records)), None)


def in_common(runs: list[RunData]) -> list[tuple[str, list[str]]]:
    """Kinds of rows that at least two runs have after training began, with the numbers that these last rows share.

    Returns:
        (kind, keys); kinds without such a number are left out.
    """
    found = []
    for kind in dict.fromkeys(kind for run in runs for kind in run.other_rows):
        trained = [records for run in runs if last_measured(records := run.other_rows.get(kind, []))]
        last_rows = [measured(last_measured(records) or {}) for records in trained]
        keys = varying_keys([record for records in trained for record in records])
        keys = [key for key in keys if all(key in row for row in last_rows)]
        if len(trained) > 1 and keys:
            found.append((kind, keys))
    return found


def compared_with_untrained(value: float, before: float | None) -> str:
    """A number with its value before training, where that is known: 20.5 (untrained 1.60)."""
    return short(value) + ("" if before is None else f" (untrained {short(before)})")
