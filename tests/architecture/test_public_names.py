"""What `import mimkit` gives: each name is what it says, on every look, in any order, and type checkers see it."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mimkit

REPOSITORY = Path(__file__).parents[2]
SOURCE = Path(mimkit.__file__).parent
ALL_NAMES = REPOSITORY / "tests" / "helpers" / "public_names.py"
PACKAGES = ["data", "decoders", "evaluation", "losses", "masks", "readouts", "recipes", "targets", "training", "views"]
KINDS = {"RECIPES": "dict", "__version__": "str"} | dict.fromkeys(PACKAGES, "module")


def kind(name: str) -> str:
    """What a name says that it is."""
    return KINDS.get(name) or ("type" if name[0].isupper() else "function")


def test_the_names_are_these():
    functions = (
        "pretrain resume probe embed reconstruct export import_checkpoint write_report load_encoder load_method "
    )
    functions += "create_encoder fit build list_recipes"
    classes = "Recipe Method Output Mask Latent ImageEncoder Settings Machine Train Run"
    assert set(mimkit.__all__) == {*functions.split(), *classes.split(), *KINDS}
    assert mimkit.__all__ == sorted(mimkit.__all__)
    with pytest.raises(AttributeError, match="module 'mimkit' has no attribute 'pretraim'"):
        mimkit.pretraim  # noqa: B018


@pytest.mark.parametrize("package", [mimkit, mimkit.training], ids=lambda package: package.__name__)
def test_type_checkers_are_told_the_same_names_from_the_same_places(package):
    (block,) = (node for node in ast.parse(Path(package.__file__).read_text()).body if isinstance(node, ast.If))
    told = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            told |= {alias.asname: f"{node.module}.{alias.name}" for alias in node.names}
    modules = {name: f"mimkit.{name}" for name in PACKAGES if package is mimkit}
    homes = {name: home if package is mimkit else f"{package.__name__}.{home}" for name, home in package._HOME.items()}
    assert told == modules | {name: f"{home}.{name}" for name, home in homes.items()}
    assert all(getattr(package, name) is getattr(package, name) for name in package._HOME)
    assert set(package.__all__) <= set(dir(package))


def test_no_public_name_is_that_of_a_module():
    """For each package, and all that its `__init__` hands out."""
    paths = [path.relative_to(SOURCE) for path in SOURCE.rglob("*.py")]
    modules = {path.with_suffix("") for path in paths} | {path.parent for path in paths if path.name == "__init__.py"}
    found = []
    for path in SOURCE.rglob("__init__.py"):
        package = path.parent.relative_to(SOURCE)
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            names |= {alias.asname or alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            names |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
        names -= set(PACKAGES) if package == Path() else set()
        found += [str(package / name) for name in names if package / name in modules]
    assert found == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs to fork")
def test_each_name_is_what_it_says_in_each_order_with_each_other():
    environment = os.environ | {"PYTHONPATH": str(SOURCE.parent), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, str(ALL_NAMES), *mimkit.__all__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["wrong"] == []
    assert {name: it[0] for name, it in seen["alone"].items()} == {name: kind(name) for name in mimkit.__all__}
    for name, (type_, module, qualname) in seen["alone"].items():
        if type_ in ("type", "function"):
            assert qualname == name
            assert module.startswith("mimkit.")
        elif type_ == "module":
            assert qualname == f"mimkit.{name}"


def test_pretrain_takes_each_flag_once():
    """Its own arguments, those of Settings and those of Machine have no name in common but `data`."""
    own = {p.name for p in inspect.signature(mimkit.pretrain).parameters.values()}
    settings, machine = set(mimkit.Settings.__dataclass_fields__), set(mimkit.Machine.__dataclass_fields__)
    assert own & settings == {"data"}
    assert not own - {"machine"} & machine
    assert not settings & machine


USER = """
import mimkit
from mimkit.recipes import mae

reveal_type(mimkit.__version__)
reveal_type(mimkit.pretrain("small", data="photos", out="runs/x", epochs=5))
reveal_type(mimkit.resume("runs/x"))
reveal_type(mimkit.probe("runs/x", data="photos"))
reveal_type(mimkit.embed("runs/x", data="photos"))
reveal_type(mimkit.reconstruct("runs/x", images="cat.jpg", out="pictures"))
reveal_type(mimkit.export("runs/x", format="timm", out="backbone.safetensors"))
reveal_type(mimkit.import_checkpoint("mae.pth", "mae.safetensors", heads=3))
reveal_type(mimkit.write_report("runs/x", "report.html"))
reveal_type(mimkit.load_encoder("runs/x", image_size=96))
reveal_type(mimkit.load_method("runs/x"))
reveal_type(mimkit.build(mae()))
reveal_type(mimkit.list_recipes())
reveal_type(mimkit.Run("runs/x"))
reveal_type(mimkit.recipes.mae())
mimkit.Settings(epoch=5)
"""
REVEALED = """\
str
bool
bool
dict[str, Any]
mimkit.evaluation.frozen.Embedding
list[pathlib.Path]
mimkit.convert.exporting.formats.ExportReport
mimkit.convert.importing.importer.ImportReport
pathlib.Path
mimkit.image_encoder.ImageEncoder
mimkit.method.Method
mimkit.method.Method
list[str]
mimkit.training.run_folder.Run
mimkit.recipes.recipe.Recipe"""


def test_types_are_seen_from_outside(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--config-file", str(REPOSITORY / "pyproject.toml")]
    command += ["--cache-dir", str(REPOSITORY / ".mypy_cache"), str(tmp_path / "user.py")]
    environment = os.environ | {"MYPYPATH": str(SOURCE.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout.replace("builtins.", "").replace("pathlib._local.", "pathlib.")
    assert re.findall(r'Revealed type is "(.*)"', said) == REVEALED.splitlines(), done.stdout + done.stderr
    (error,) = re.findall(r"error: (.*)", said)
    assert error.startswith('Unexpected keyword argument "epoch" for "Settings"')
