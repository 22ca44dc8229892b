"""The design's rules as tests: who imports whom, what loads torch, how long files are, that all is described."""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import mimkit

ROOT = Path(mimkit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MOST_LINES = 350

# The rule in one table, lowest layer first: a module or package of mimkit imports from its own layer and those below,
# and from what stands beside. Imports inside functions and for type checkers count too.
LAYERS = [
    {"errors", "files", "typed", "user_code", "randomness", "progress", "records", "grids", "losses"},
    {"views", "settings"},
    {"masks", "targets", "data"},
    {"backbones"},
    {"readouts", "decoders", "image_encoder"},
    {"method"},
    {"recipes"},
    {"compose"},
    {"sources"},
    {"evaluation", "convert", "plan", "bench"},
    {"pretraining", "jobs"},
    {"cli"},
    {"__main__"},
]
# What any layer may import, and all that it imports itself.
BESIDE = {
    "training": {"errors", "files", "typed", "randomness", "progress", "records", "report"},
    "report": {"errors", "files", "records"},
}
MOST_MODULES_IN_THE_ROOT = 20  # beside __init__ and __main__
WITHOUT_TORCH_AT_ONCE = {
    "__init__",
    "__main__",
    "cli",
    "settings",
    "files",
    "typed",
    "user_code",
    "errors",
    "progress",
    "records",
    "report",
    "training/machine.py",
}
HEAVY = {"torch", "timm", "sklearn", "skimage", "torchvision", "transformers", "safetensors"}


def part(path: Path) -> str:
    """A file's module or sub-package right below mimkit."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST, *, deferred: bool, typing: bool = True) -> Iterator[str]:
    """Absolute names of imported modules: at the top level, or also inside functions, or not what is for types only."""
    pending = list(ast.iter_child_nodes(tree))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (deferred or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)) and (
            typing or not for_types(node)
        ):
            pending += ast.iter_child_nodes(node)


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported_parts(path: Path, *, deferred: bool) -> set[str]:
    """The modules and sub-packages of mimkit that a file imports."""
    found = set()
    for name in imports(ast.parse(path.read_text(encoding="utf-8")), deferred=deferred):
        package, _, rest = name.partition(".")
        if package == "mimkit" and rest:
            first = rest.partition(".")[0]
            is_module = (ROOT / f"{first}.py").exists() or (ROOT / first).is_dir()
            found.add(first if is_module else "__init__")
    return found - {part(path)}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_every_module_has_a_layer():
    placed = [name for layer in LAYERS for name in layer] + list(BESIDE)
    assert len(placed) == len(set(placed))
    assert set(placed) == {part(path) for path in FILES} - {"__init__"}


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_imports_go_down(path):
    me, found = part(path), imported_parts(path, deferred=True)
    if me == "__init__":  # hands out names of all layers, lazily
        return
    if me in BESIDE:
        assert found <= BESIDE[me]
        return
    level = next(place for place, layer in enumerate(LAYERS) if me in layer)
    below = {name for layer in LAYERS[: level + 1] for name in layer}
    assert found <= below | BESIDE.keys()


def test_the_root_is_small():
    modules = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
    assert len(modules) <= MOST_MODULES_IN_THE_ROOT, sorted(modules)


def test_no_cycles():
    """Modules can be put in an order in which each imports only earlier ones, for type checkers too."""
    waiting = {str(path): imported_files(path) for path in FILES}
    while waiting:
        ready = {path for path, needs in waiting.items() if not needs & waiting.keys()}
        assert ready, f"these import each other: {sorted(waiting)}"
        waiting = {path: needs for path, needs in waiting.items() if path not in ready}


def imported_files(path: Path, *, typing: bool = True) -> set[str]:
    found = set()
    for name in imports(ast.parse(path.read_text(encoding="utf-8")), deferred=False, typing=typing):
        if name.startswith("mimkit."):
            base = ROOT.joinpath(*name.split(".")[1:])
            for candidate in (base.with_suffix(".py"), base.parent.with_suffix(".py"), base.parent / "__init__.py"):
                if candidate.exists() and candidate != ROOT / "__init__.py":
                    found.add(str(candidate))
                    break
    return found - {str(path)}


def test_the_loop_knows_no_method():
    """Not even inside a function, and not through what it imports: neither method nor data, settings nor task."""
    known, pending = set(), ["training"]
    while pending:
        name = pending.pop()
        if name not in known:
            known.add(name)
            paths = [path for path in FILES if part(path) == name]
            pending += [other for path in paths for other in imported_parts(path, deferred=True)]
    assert known == {"training", *BESIDE["training"]}


def test_report_reads_files_only():
    for path in FILES:
        if part(path) == "report":
            heads = {name.partition(".")[0] for name in imports(ast.parse(path.read_text()), deferred=True)}
            assert not heads & HEAVY, path


def is_light(path: Path) -> bool:
    """Whether a file stands in `WITHOUT_TORCH_AT_ONCE`, as itself or with all of its package."""
    return part(path) in WITHOUT_TORCH_AT_ONCE or path.relative_to(ROOT).as_posix() in WITHOUT_TORCH_AT_ONCE


def test_light_modules_load_nothing_heavy():
    """The static half of what the next tests measure."""
    for path in filter(is_light, FILES):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not {name.partition(".")[0] for name in imports(tree, deferred=False, typing=False)} & HEAVY, path
        assert all(is_light(Path(other)) for other in imported_files(path, typing=False)), path


def loaded_after(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after some code."""
    code = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import mimkit; mimkit.Settings",
        "from mimkit.report import write_report",
        "from mimkit.cli.main import main; main(['--help'])",
        "from mimkit.cli.main import main; main(['pretrain', '--help'])",
        "import mimkit; mimkit.Machine",
        "import mimkit; dir(mimkit); mimkit.__version__",
        "from mimkit.cli.main import main; main(['--version'])",
    ],
)
def test_torch_is_not_loaded(code):
    assert loaded_after(code).isdisjoint(HEAVY)


def test_help_is_there_at_once():
    seconds = []
    for _ in range(2):  # the first may have to read the disk
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "mimkit", "--help"], capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("pretrain", "resume", "probe", "embed", "reconstruct", "export"))
    assert min(seconds) < 1


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_all_that_is_public_is_described(path):
    """Modules, classes and functions; methods may be described by their protocol."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    public = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"]
    assert not [node.name for node in public if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_nothing_read_can_run_code(path):
    """No pickle, in any of its guises."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name.partition(".")[0] for name in imports(tree, deferred=True)} & {
        "pickle",
        "joblib",
        "dill",
        "shelve",
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert name not in ("eval", "exec")
            assert name != "torch.load" or keywords.get("weights_only") == "True"
            assert keywords.get("allow_pickle", "False") == "False"
