"""mimkit: masked image modelling on your own unlabelled images.

    encoder = mimkit.load_encoder("runs/mine")
    images = encoder.read(["cat.jpg", "dog.jpg"])
    features = encoder(images)

Names below are imported on first use, so that `import mimkit` alone stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimkit.image_encoder import ImageEncoder as ImageEncoder
    from mimkit.jobs import resume as resume
    from mimkit.masks import Mask as Mask
    from mimkit.pretraining import pretrain as pretrain
    from mimkit.settings import Settings as Settings
    from mimkit.sources import load_encoder as load_encoder
    from mimkit.sources import load_method as load_method
    from mimkit.training.machine import Machine as Machine
    from mimkit.training.run_folder import Run as Run

_HOME = {
    "ImageEncoder": "mimkit.image_encoder",
    "Machine": "mimkit.training.machine",
    "Mask": "mimkit.masks",
    "Run": "mimkit.training.run_folder",
    "Settings": "mimkit.settings",
    "load_encoder": "mimkit.sources",
    "load_method": "mimkit.sources",
    "pretrain": "mimkit.pretraining",
    "resume": "mimkit.jobs",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mimkit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
