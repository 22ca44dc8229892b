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

# Lower layers first; a module imports its own layer and those below. What stands beside them is in BESIDE.
LAYERS = [
    {"grids", "randomness", "losses", "lean", "flags", "files", "locations"},
    {"views"},
    {"masks", "targets"},
    {"backbones"},
    {"readouts", "decoders"},
    {"method"},
    {"recipes", "settings", "precision"},
    {"compose"},
    {"data", "features", "probes", "pictures", "evaluators", "sources", "convert", "table", "machine"},
    {"pretrain", "account", "tuning", "trials", "after", "bench", "bench_data", "peers", "demo"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
BESIDE = {
    "blocks": set(),
    "distributed": {"blocks"},
    "bf16": {"distributed", "randomness"},
    "checkpoint": {"files", "distributed"},
    "state": {"bf16", "checkpoint", "distributed", "schedule"},
    "runs": {"checkpoint", "distributed", "files"},
    "progress": set(),
    "signals": set(),
    "schedule": set(),
    "train": {
        "bf16",
        "blocks",
        "lean",
        "state",
        "checkpoint",
        "distributed",
        "runs",
        "progress",
        "schedule",
        "signals",
    },
    "report": {"files", "flags"},
}
WITHOUT_TORCH_AT_ONCE = {
    "__init__",
    "__main__",
    "cli",
    "commands",
    "settings",
    "files",
    "flags",
    "locations",
    "demo",
    "report",
}
HEAVY = {"torch", "timm", "sklearn", "skimage", "torchvision", "transformers", "safetensors"}


def part(path: Path) -> str:
    """A file's module or sub-package right below mimkit."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST, *, deferred: bool) -> Iterator[str]:
    """Absolute names of imported modules: at the top level, or also inside functions and for type checkers."""
    pending = list(ast.iter_child_nodes(tree))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif deferred or not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or for_types(node)):
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
    """What is imported inside functions may go anywhere but up to the command line; the rest only down."""
    me = part(path)
    if me == "__init__":
        return
    at_once, ever = imported_parts(path, deferred=False), imported_parts(path, deferred=True)
    if me in BESIDE:
        assert ever <= BESIDE[me]
        return
    level = next(place for place, layer in enumerate(LAYERS) if me in layer)
    below = {name for layer in LAYERS[: level + 1] for name in layer}
    beside = set(BESIDE) if level >= next(i for i, layer in enumerate(LAYERS) if "recipes" in layer) else set()
    assert at_once <= below | beside
    assert not ever & {"cli", "commands", "__main__"} or me in ("cli", "__main__")


def test_no_cycles():
    """Modules can be put in an order in which each imports only earlier ones."""
    waiting = {str(path): imported_files(path) for path in FILES}
    while waiting:
        ready = {path for path, needs in waiting.items() if not needs & waiting.keys()}
        assert ready, f"these import each other: {sorted(waiting)}"
        waiting = {path: needs for path, needs in waiting.items() if path not in ready}


def imported_files(path: Path) -> set[str]:
    found = set()
    for name in imports(ast.parse(path.read_text(encoding="utf-8")), deferred=False):
        if name.startswith("mimkit."):
            base = ROOT.joinpath(*name.split(".")[1:])
            for candidate in (base.with_suffix(".py"), base.parent.with_suffix(".py"), base.parent / "__init__.py"):
                if candidate.exists() and candidate != ROOT / "__init__.py":
                    found.add(str(candidate))
                    break
    return found - {str(path)}


def test_the_loop_knows_no_method():
    """Not even inside a function, and not through what it imports."""
    known, pending = set(), ["train"]
    while pending:
        name = pending.pop()
        if name not in known:
            known.add(name)
            paths = [path for path in FILES if part(path) == name]
            pending += [other for path in paths for other in imported_parts(path, deferred=True)]
    assert known.isdisjoint({"method", "recipes", "settings", "pretrain", "backbones", "targets", "masks", "data"})


def test_report_reads_files_only():
    for path in FILES:
        if part(path) == "report":
            heads = {name.partition(".")[0] for name in imports(ast.parse(path.read_text()), deferred=True)}
            assert not heads & HEAVY, path


def test_light_modules_load_nothing_heavy():
    """The static half of what the next tests measure."""
    for path in FILES:
        if part(path) in WITHOUT_TORCH_AT_ONCE:
            heads = {name.partition(".")[0] for name in imports(ast.parse(path.read_text()), deferred=False)}
            assert not heads & HEAVY, path
            assert imported_parts(path, deferred=False) <= WITHOUT_TORCH_AT_ONCE, path


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
    assert min(seconds) < 2


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
