"""Names of parts stand once, in compose.py: what README and the settings' help say of them agrees with it."""

import dataclasses
import re
from pathlib import Path

import pytest

from mimkit import compose
from mimkit.cli.recipe_table import as_rows
from mimkit.settings import Settings, names_of, part_names

README = Path(__file__).parents[2] / "README.md"
FLAGS = {"view": "VIEWS", "mask": "MASKS", "readout": "READOUTS", "decoder": "DECODERS", "target": "TARGETS"}


@pytest.mark.parametrize("table", [*FLAGS.values(), "RECIPES", "DISTANCES"])
def test_names_read_as_text_are_those_of_the_table(table):
    """The settings read compose.py without importing it."""
    assert part_names()[table] == list(getattr(compose, table))


@pytest.mark.parametrize(("flag", "table"), FLAGS.items())
def test_help_lists_the_names(flag, table):
    (field,) = (field for field in dataclasses.fields(Settings) if field.name == flag)
    helps = [str(note) for note in Settings.__annotations__[field.name].__metadata__]
    assert names_of(table) in "".join(helps)


@pytest.mark.parametrize(("flag", "table"), FLAGS.items())
def test_readme_lists_the_names(flag, table):
    """In the order of the table, before the first semicolon."""
    (row,) = re.findall(rf"^\| `--{flag}` \| (.*?)(?:; .*)? \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"`([a-z0-9-]+)`", row.partition(" (")[0]) == list(getattr(compose, table)), (
        f"README's row of --{flag} should list {', '.join(f'`{name}`' for name in getattr(compose, table))}"
    )


def test_readme_has_the_table_of_recipes():
    rows = [f"| `{row['recipe']}` | {row['paper']} | {row['backbone']} | {row['verified']} |" for row in as_rows()]
    table = "\n".join(["| recipe | paper | backbone | verified against |", "| --- | --- | --- | --- |", *rows])
    assert table in README.read_text(encoding="utf-8")
