"""The rules of the tests themselves: they share by helpers, and stand where the source files stand that they test."""

import ast
from collections.abc import Iterator
from pathlib import Path

import mimkit

TESTS = Path(__file__).parents[1]
SOURCE = Path(mimkit.__file__).parent
MODULES = sorted(path.relative_to(TESTS) for path in TESTS.rglob("*.py"))
TEST_MODULES = [path for path in MODULES if path.name.startswith("test_")]
UNIT = [path.relative_to("unit") for path in TEST_MODULES if path.parts[0] == "unit"]
GENERATORS = {Path("golden") / name for name in ("__init__.py", "regenerate.py", "grid.py", "old_runs.py")}


def imported(path: Path) -> Iterator[str]:
    """What a module imports, at its top or within its functions: `a.b` and, for `from a.b import c`, also `a.b.c`."""
    for node in ast.walk(ast.parse((TESTS / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def test_no_module_imports_a_test_module():
    names = {path.stem for path in TEST_MODULES}
    found = [(str(path), name) for path in MODULES for name in imported(path) if names & set(name.split("."))]
    assert found == []


def test_unit_tests_have_their_source_file():
    """A module or a package of the same name, in the same folder below src/mimkit."""
    assert len(UNIT) > 60
    sources = {path: SOURCE / path.parent / path.stem.removeprefix("test_") for path in UNIT}
    found = {path: s.with_suffix(".py").is_file() or (s / "__init__.py").is_file() for path, s in sources.items()}
    assert [str(path) for path, there in found.items() if not there] == []


def test_what_is_no_test_stands_in_helpers():
    others = set(MODULES) - set(TEST_MODULES) - GENERATORS
    assert {path for path in others if path.parts[0] != "helpers" and path.name != "conftest.py"} == set()
    assert not [path for path in TEST_MODULES if path.parts[0] == "helpers"]
    assert set(MODULES) >= GENERATORS
