"""Python files of the user's: run as modules, their mistakes in a line, and found by other processes."""

import pickle
import re
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest

from mimkit import user_code
from mimkit.files import located
from mimkit.user_code import LoadedFiles, load_python, made_in_python

MINE = """
from __future__ import annotations
from dataclasses import dataclass
from parts import Part

@dataclass(frozen=True)
class Mine:
    part: Part = Part()
    size: int = 1

made = Mine()
"""
PARTS = "class Part:\n    number = 1\n"


@pytest.fixture(autouse=True)
def forgotten():
    """Each test leaves no module and no path behind."""
    modules, paths = set(sys.modules), [*sys.path]
    yield
    assert sys.path[: len(paths)] == paths  # folders of files that were run come last, for what these import later
    sys.path[:] = paths
    for name in sys.modules.keys() - modules:
        del sys.modules[name]
    user_code._LOADED.clear()
    user_code._BESIDE.clear()


def write(folder: Path, number: int = 1) -> Path:
    """A file and its neighbour, in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "parts.py").write_text(PARTS.replace("1", str(number)))
    (folder / "mine.py").write_text(MINE)
    return folder / "mine.py"


def test_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(tmp_path)
    assert located("~/photos") == tmp_path / "photos"
    assert load_python("~/mine.py") is load_python(tmp_path / "mine.py")


def test_a_file_with_a_neighbour(tmp_path):
    module = load_python(write(tmp_path))
    assert load_python(tmp_path / "mine.py") is module
    assert sys.modules[module.__name__] is module
    assert module.__name__.startswith("mine_")
    assert [f.name for f in fields(module.Mine)] == ["part", "size"]
    assert type(pickle.loads(pickle.dumps(module.made))) is module.Mine


def test_files_of_one_name_do_not_meet(tmp_path):
    one, two = write(tmp_path / "one", 11), write(tmp_path / "two", 222)
    for _ in range(2):
        assert load_python(one).made.part.number == 11
        assert load_python(two).made.part.number == 222
    assert load_python(one).__name__ != load_python(two).__name__


def test_files_of_a_folder_share_their_neighbours(tmp_path):
    one = load_python(write(tmp_path))
    (tmp_path / "yours.py").write_text(MINE)
    assert load_python(tmp_path / "yours.py").Part is one.Part
    assert load_python(tmp_path / "mine.py") is one


def test_a_changed_file_or_neighbour_is_run_again(tmp_path):
    file = write(tmp_path)
    first = load_python(file)
    file.write_text(MINE.replace("size: int = 1", "size: int = 20"))
    second = load_python(file)
    assert second.made.size == 20
    assert second.Part is first.Part
    (tmp_path / "parts.py").write_text(PARTS.replace("1", "333"))
    assert load_python(file).made.part.number == 333


def test_packages_and_later_imports(tmp_path):
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "__init__.py").write_text("from group.inner import value\n")
    (tmp_path / "group" / "inner.py").write_text("value = 5\n")
    (tmp_path / "late.py").write_text("value = 6\n")
    (tmp_path / "mine.py").write_text(
        "import group\n\ndef made():\n    import late\n    return group.value, late.value\n"
    )
    assert made_in_python(tmp_path / "mine.py", "made") == (5, 6)
    assert user_code._BESIDE.keys() == {"group", "group.inner", "late"}


def test_what_a_name_stands_for(tmp_path):
    (tmp_path / "mine.v2.py").write_text("value = 5\n\ndef function():\n    return 6\n")
    assert made_in_python(tmp_path / "mine.v2.py", "value") == 5
    assert made_in_python(tmp_path / "mine.v2.py", "function") == 6
    with pytest.raises(ValueError, match=r"^the file has no other$"):
        made_in_python(tmp_path / "mine.v2.py", "other")


MISTAKES = {
    "syntax": (b"value = 1\n\nvalue = = 2\n", "mine.py, line 3: SyntaxError: invalid syntax"),
    "indentation": (b"def made():\nreturn 1\n", "mine.py, line 2: IndentationError: expected an indented block .*"),
    "bytes of no text": (
        b"value = 1\nname = '\xe9'\n",
        "mine.py, line 2: SyntaxError: .*'utf-8' codec can't decode .*",
    ),
    "zero bytes": (
        b"value = 1\0",
        "mine.py(, line 1)?: (SyntaxError|ValueError): source code string cannot contain .*",
    ),
    "error at once": (b"value = 1\nvalue / 0\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
    "error of several lines": (b"raise KeyError('a')\n", "mine.py, line 1: KeyError: 'a'"),
    "error without a word": (b"assert False\n", "mine.py, line 1: AssertionError"),
    "leaving": (b"import sys\nsys.exit('no')\n", "mine.py, line 2: SystemExit: no"),
    "unknown module": (b"\nimport nowhere\n", "mine.py, line 2: ModuleNotFoundError: No module named 'nowhere'"),
    "error when called": (b"def made():\n    return 1 / 0\n", "mine.py, line 2, in made: ZeroDivisionError: .*"),
    "error far below": (
        b"import re\n\ndef made():\n    return re.compile('(')\n",
        r"mine.py, line 4, in made: (re\.)?(error|PatternError): missing \), .*",
    ),
    "argument": (b"def made(size):\n    pass\n", "mine.py: TypeError: made.* missing 1 required .* 'size'"),
    "error in a neighbour": (b"import beside\n", "beside.py, line 2: ZeroDivisionError: division by zero"),
    "syntax in a neighbour": (b"import broken\n", "broken.py, line 1: SyntaxError: invalid syntax"),
    "error of a neighbour's": (
        b"from function import fail\n\ndef made():\n    fail()\n",
        "function.py, line 2, in fail: RuntimeError: first",
    ),
}


@pytest.mark.parametrize(("content", "line"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_its_place(tmp_path, content, line):
    (tmp_path / "beside.py").write_text("\n1 / 0\n")
    (tmp_path / "broken.py").write_text("= 1\n")
    (tmp_path / "function.py").write_text("def fail():\n    raise RuntimeError('first\\nsecond')\n")
    (tmp_path / "mine.py").write_bytes(content)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=rf"^{line}$"):
        made_in_python(tmp_path / "mine.py", "made")
    if b"def made" not in content:
        assert not {name for name in sys.modules.keys() - before if name.startswith(("mine", "beside", "broken"))}
        assert not user_code._LOADED


def test_what_is_no_file(tmp_path):
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ValueError, match=r"^no such file$"):
        load_python(tmp_path / "mine.py")
    with pytest.raises(ValueError, match=r"^the file cannot be read: (Is a directory|Permission denied)$"):
        load_python(tmp_path / "folder.py")


def test_an_interrupt_is_none_of_its_mistakes(tmp_path):
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_python(tmp_path / "mine.py")
    assert not user_code._LOADED


def test_another_process_finds_what_was_loaded(tmp_path):
    """As it was, whatever has become of the files."""
    module = load_python(write(tmp_path, 7))
    sent = pickle.dumps((LoadedFiles(), module.made, module.made.part))
    (tmp_path / "mine.py").unlink()
    (tmp_path / "parts.py").write_text("raise ValueError('changed')\n")
    receive = "import pickle, sys; got = pickle.load(sys.stdin.buffer); print(got[1].size, got[1].part.number, got[2])"
    done = subprocess.run([sys.executable, "-c", receive], input=sent, capture_output=True)
    assert re.match(rb"1 7 <parts\.Part object", done.stdout), done.stderr.decode()


def test_folders_without_init_are_imported_afresh_too(tmp_path):
    for name, number in (("a", 32), ("b", 64)):
        (tmp_path / name / "shared").mkdir(parents=True)
        (tmp_path / name / "shared" / "numbers.py").write_text(f"Z = {number}\n")
        (tmp_path / name / "mine.py").write_text("from shared.numbers import Z\nmade = Z\n")
    for _ in range(2):
        assert [made_in_python(tmp_path / name / "mine.py", "made") for name in "ab"] == [32, 64]
    (tmp_path / "b" / "shared" / "numbers.py").write_text("Z = 96\n")
    assert made_in_python(tmp_path / "b" / "mine.py", "made") == 96


def test_a_neighbour_of_a_name_that_is_taken(tmp_path, monkeypatch):
    """By a module of this program from elsewhere; of the standard library that is meant."""
    elsewhere = types.ModuleType("parts")
    elsewhere.__file__ = str(tmp_path / "elsewhere.py")
    monkeypatch.setitem(sys.modules, "parts", elsewhere)
    with pytest.raises(ValueError, match=r"mine.py imports parts, which is .*elsewhere.py in this program already"):
        load_python(write(tmp_path))
    monkeypatch.delitem(sys.modules, "parts")
    (tmp_path / "json.py").write_text("raise RuntimeError\n")
    (tmp_path / "other.py").write_text("import json\nmade = json.loads('5')\n")
    assert made_in_python(tmp_path / "other.py", "made") == 5


def test_what_is_imported_later_is_found(tmp_path):
    (tmp_path / "late.py").write_text("number = 5\n")
    (tmp_path / "mine.py").write_text("def view():\n    import late\n    return late.number\n")
    assert load_python(tmp_path / "mine.py").view() == 5


def test_threads_wait_for_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("import time\ntime.sleep(0.2)\nmade = 5\n")
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(lambda _: made_in_python(tmp_path / "mine.py", "made"), range(4))] == [5] * 4
