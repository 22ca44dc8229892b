"""Python files of the user's: loaded as modules, here and in processes that this one starts."""

import ast
import hashlib
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import invalidate_caches
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from mimkit.files import home


@dataclass(frozen=True)
class PythonFile:
    """A Python file of the user's, as it was when it was run.

    Args:
        path: absolute.
        content: its bytes.
        beside: the modules of its folder that it was run with, by name.
    """

    path: Path
    content: bytes
    beside: dict[str, "PythonFile"] = field(default_factory=dict)

    def changed(self) -> bool:
        """Whether there is something else on the disk by now."""
        try:
            return self.path.read_bytes() != self.content
        except OSError:
            return True


_LOADED: dict[str, PythonFile] = {}  # what `load_python` has run, by the names in sys.modules
_BESIDE: dict[str, PythonFile] = {}  # what these have imported from beside them
_ONE_AT_A_TIME = threading.RLock()


class LoadedFiles:
    """The Python files that this process has loaded. What follows in the same pickle may be of their classes.

    Where it is unpickled they are importable, as they were here, whatever has become of them on the disk.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_there, (_LOADED | _BESIDE,)


def load_python(path: str | Path) -> ModuleType:
    """Run a Python file as a module, see `running`. An unchanged file with unchanged neighbours is not run again.

    The module has a name of its own in `sys.modules`, so that files of one name do not meet. What it imports from its
    folder has the usual names there, and is imported afresh for a file of another folder, or after a change.

    Raises:
        ValueError: the file cannot be read, or fails; the message says where.
    """
    with _ONE_AT_A_TIME:
        return _loaded(home(path).resolve())


def _loaded(file: Path) -> ModuleType:
    """See `load_python`."""
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise ValueError("no such file") from error
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from error
    known = hashlib.sha256(b"\0".join((os.fsencode(file), content))).hexdigest()[:16]
    name = re.sub(r"\W", "_", f"{file.stem}_{known}")
    if any(one.changed() or not _is_beside(file, other, one.path) for other, one in _BESIDE.items()):
        _forget_beside()
    before = _LOADED.get(name)
    if before is not None and all(_BESIDE.get(other) is one for other, one in before.beside.items()):
        return sys.modules[name]
    _refuse_clashes(file, content)
    _LOADED[name] = PythonFile(file, content)
    specification = _specification(name, _LOADED[name])
    assert specification is not None
    assert specification.loader is not None
    module = module_from_spec(specification)
    sys.modules[name] = module
    try:
        with running(file):
            specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name], _LOADED[name]
        raise
    _LOADED[name] = PythonFile(file, content, dict(_BESIDE))
    return module


def made_in_python(path: str | Path, name: str) -> Any:
    """What a Python file of the user's has under a name, or what the function of that name returns.

    Raises:
        ValueError: it has none, or cannot be read, or fails; the message says where.
    """
    module = load_python(path)
    if not hasattr(module, name):
        raise ValueError(f"the file has no {name}")
    made = getattr(module, name)
    if callable(made):
        with running(Path(str(module.__file__))):
            made = made()
    return made


@contextmanager
def running(file: Path) -> Iterator[None]:
    """Around code of a user's Python file: it can import what lies beside the file, and its error becomes one line.

    Raises:
        ValueError: instead of any error but an interrupt; says where in the file, or beside it, and what.
    """
    before = set(sys.modules)
    sys.path.insert(0, str(file.parent))
    invalidate_caches()
    try:
        yield
    except (Exception, SystemExit) as error:
        for name in _new_beside(file, before):
            del sys.modules[name]
        raise ValueError(_explained(error, file)) from error
    finally:
        if str(file.parent) in sys.path:
            sys.path.remove(str(file.parent))
    if str(file.parent) not in sys.path:  # for what it imports later; behind everything else
        sys.path.append(str(file.parent))
    _BESIDE.update({name: PythonFile(path, path.read_bytes()) for name, path in _new_beside(file, before).items()})


def _new_beside(file: Path, before: set[str]) -> dict[str, Path]:
    """The modules from beside a file that were not there before, and where they are."""
    names = sys.modules.keys() - before - _LOADED.keys()
    found = {name: Path(getattr(sys.modules[name], "__file__", None) or "") for name in names}
    return {name: path.resolve() for name, path in found.items() if _is_beside(file, name, path.resolve())}


def _is_beside(file: Path, name: str, path: Path) -> bool:
    """Whether a module of that name and path is imported from a file's folder."""
    *folders, last = name.split(".")
    place = file.parent.joinpath(*folders)
    return path in (place / f"{last}.py", place / last / "__init__.py")


def _forget_beside() -> None:
    """Have what lies beside files imported afresh, with the folders that it is imported through."""
    for name in _BESIDE:
        sys.modules.pop(name, None)
        for count in range(1, name.count(".") + 1):
            folder = name.rsplit(".", count)[0]
            if getattr(sys.modules.get(folder), "__file__", "") is None:  # a package without an __init__.py
                del sys.modules[folder]
    _BESIDE.clear()


def _refuse_clashes(file: Path, content: bytes) -> None:
    """Raise ValueError where a file imports what lies beside it, and another module of that name is there already."""
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError):  # running it will say so
        return
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    for name in sorted({name.partition(".")[0] for name in names} - sys.stdlib_module_names - _BESIDE.keys()):
        there = getattr(sys.modules.get(name), "__file__", None)
        beside = [path for path in (file.parent / f"{name}.py", file.parent / name / "__init__.py") if path.is_file()]
        if there is not None and beside and Path(there).resolve() not in beside:
            raise ValueError(
                f"{file.name} imports {name}, which is {there} in this program already: rename {beside[0]}"
            )


def _explained(error: BaseException, file: Path) -> str:
    """Where in a user's file, or beside it, an error comes from, and what it says, in a line."""
    place, function, said = "", "<module>", str(error).strip().partition("\n")[0]
    number: int | None = None
    for frame in traceback.extract_tb(error.__traceback__):
        if _is_below(file, frame.filename):
            place, number, function = frame.filename, frame.lineno, frame.name
    if isinstance(error, SyntaxError) and error.filename and _is_below(file, error.filename):
        place, number, function, said = error.filename, error.lineno, "<module>", error.msg
    where = Path(place or file).name + (f", line {number}" if number else "")
    where += "" if function == "<module>" else f", in {function}"
    return f"{where}: {type(error).__name__}{': ' if said else ''}{said}"


def _is_below(file: Path, other: str) -> bool:
    """Whether code is in a file's folder, and is no installed package."""
    return Path(other).is_relative_to(file.parent) and "site-packages" not in Path(other).parts


class _Kept(SourceLoader):
    """Runs a Python file as it was, and leaves no bytecode."""

    def __init__(self, file: PythonFile) -> None:
        self.file = file

    def get_filename(self, fullname: str) -> str:
        return str(self.file.path)

    def get_data(self, path: str | bytes) -> bytes:
        return self.file.content


class _KeptFiles(MetaPathFinder):
    """Finds Python files as they were."""

    def __init__(self, files: dict[str, PythonFile]) -> None:
        self.files = files

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        return _specification(fullname, self.files[fullname]) if fullname in self.files else None


def _specification(name: str, file: PythonFile) -> ModuleSpec | None:
    folders = [str(file.path.parent)] if file.path.name == "__init__.py" else None
    return spec_from_file_location(name, file.path, loader=_Kept(file), submodule_search_locations=folders)


def _load_there(files: dict[str, PythonFile]) -> LoadedFiles:
    """Make files importable that another process has loaded."""
    if not files.keys() <= sys.modules.keys():
        sys.meta_path.insert(0, _KeptFiles(files))
        sys.path += {str(file.path.parent) for file in files.values()}
    return LoadedFiles()
