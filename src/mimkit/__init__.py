"""mimkit: masked image modelling on your own unlabelled images.

    mimkit.pretrain("small", data="~/photos", out="runs/mine")
    encoder = mimkit.load_encoder("runs/mine")
    images = encoder.read(["cat.jpg", "dog.jpg"])
    features = encoder(images)

Names below are imported on first use, so that `import mimkit` alone stays cheap.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimkit import data as data
    from mimkit import decoders as decoders
    from mimkit import evaluation as evaluation
    from mimkit import losses as losses
    from mimkit import masks as masks
    from mimkit import readouts as readouts
    from mimkit import recipes as recipes
    from mimkit import targets as targets
    from mimkit import training as training
    from mimkit import views as views
    from mimkit.backbones import Latent as Latent
    from mimkit.backbones import create_encoder as create_encoder
    from mimkit.compose import RECIPES as RECIPES
    from mimkit.compose import list_recipes as list_recipes
    from mimkit.convert import export as export
    from mimkit.convert.importing.importer import import_checkpoint as import_checkpoint
    from mimkit.evaluation.frozen import embed as embed
    from mimkit.evaluation.frozen import probe as probe
    from mimkit.evaluation.reconstruction import reconstruct as reconstruct
    from mimkit.image_encoder import ImageEncoder as ImageEncoder
    from mimkit.jobs import resume as resume
    from mimkit.masks import Mask as Mask
    from mimkit.method import Method as Method
    from mimkit.method import Output as Output
    from mimkit.pretraining import pretrain as pretrain
    from mimkit.recipes import Recipe as Recipe
    from mimkit.recipes import build as build
    from mimkit.report import write_report as write_report
    from mimkit.settings import Settings as Settings
    from mimkit.sources import load_encoder as load_encoder
    from mimkit.sources import load_method as load_method
    from mimkit.training.loop import fit as fit
    from mimkit.training.machine import Machine as Machine
    from mimkit.training.optim import Train as Train
    from mimkit.training.run_folder import Run as Run

    __version__: str

_HOME = {
    "ImageEncoder": "mimkit.image_encoder",
    "Latent": "mimkit.backbones",
    "Machine": "mimkit.training.machine",
    "Mask": "mimkit.masks",
    "Method": "mimkit.method",
    "Output": "mimkit.method",
    "RECIPES": "mimkit.compose",
    "Recipe": "mimkit.recipes",
    "Run": "mimkit.training.run_folder",
    "Settings": "mimkit.settings",
    "Train": "mimkit.training.optim",
    "build": "mimkit.recipes",
    "create_encoder": "mimkit.backbones",
    "embed": "mimkit.evaluation.frozen",
    "export": "mimkit.convert",
    "fit": "mimkit.training.loop",
    "import_checkpoint": "mimkit.convert.importing.importer",
    "list_recipes": "mimkit.compose",
    "load_encoder": "mimkit.sources",
    "load_method": "mimkit.sources",
    "pretrain": "mimkit.pretraining",
    "probe": "mimkit.evaluation.frozen",
    "reconstruct": "mimkit.evaluation.reconstruction",
    "resume": "mimkit.jobs",
    "write_report": "mimkit.report",
}
_PACKAGES = (
    "data",
    "decoders",
    "evaluation",
    "losses",
    "masks",
    "readouts",
    "recipes",
    "targets",
    "training",
    "views",
)
__all__ = sorted([*_HOME, *_PACKAGES, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("mimkit")
    if name in _PACKAGES:
        return import_module(f"mimkit.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'mimkit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
