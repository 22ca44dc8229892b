"""How far it is from `mimkit pretrain` to the loss: the files and lines that a reader of one step opens, counted.

A tiny run of `mae` is profiled up to the loss of its first step. The walk is the calls that stand open then, from the
command down to `Method.forward`; the function that planned the job; and what the equation in `Method.forward` names:
mask, encoder, readout, decoder, target, distance and their mean. Lines are those of these functions and of all that
they call on the way to that loss, docstrings included.

And how far from an image's file to its batch: the files of the calls that stand open where it is decoded, where it is
cut and where the batch is put together.
"""

import inspect
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from PIL import Image

import mimkit
from helpers.runs import as_flags
from helpers.tiny import TINY
from mimkit.backbones import VisibleViT
from mimkit.cli.main import main
from mimkit.data import Samples, TrainBatches, find_images
from mimkit.data.decode import read_image
from mimkit.data.jpeg import JpegPicture
from mimkit.decoders import TransformerDecoder
from mimkit.losses import masked_mean, squared
from mimkit.masks import RandomMask
from mimkit.method import Method
from mimkit.plan import plan_pretraining
from mimkit.readouts import Last
from mimkit.targets import Pixels
from mimkit.training.loop import evaluate, fit
from mimkit.views import PillowPicture, RandomResizedCrop

ROOT = str(Path(mimkit.__file__).parent)
MOST_FILES, MOST_LINES = 13, 900
PHOTOS = {"count": 24, "size": 64}
EQUATION = (
    RandomMask.sample,
    VisibleViT.forward,
    Last.forward,
    TransformerDecoder.forward,
    Pixels.__call__,
    squared,
    masked_mean,
)


DECODED_CUT_TOGETHER = (
    (read_image, JpegPicture._decode),
    (PillowPicture.cut, JpegPicture.cut),
    (Samples.tensors,),
)
MOST_FILES_OF_A_BATCH = 5


class Walk:
    """The functions entered, by what called them."""

    def __init__(self) -> None:
        self.path: dict[CodeType, None] = {plan_pretraining.__code__: None}
        self.inside: dict[CodeType, None] = {}  # of the first `Method.forward`

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        """What `sys.setprofile` takes."""
        if event != "call" or not is_ours(frame.f_code):
            return
        codes = [code for code in reversed([*codes_of(frame)]) if is_ours(code)]
        if fit.__code__ in codes and Method.forward.__code__ in codes and evaluate.__code__ not in codes:
            self.path.update(dict.fromkeys(codes[: codes.index(Method.forward.__code__) + 1]))
            self.inside[frame.f_code] = None
            if frame.f_code is masked_mean.__code__:  # the loss
                sys.setprofile(None)


def is_ours(code: CodeType) -> bool:
    """Whether it is a function of mimkit."""
    return code.co_filename.startswith(ROOT)


def codes_of(frame: FrameType | None):
    """The code of a call and of those that stand open around it, innermost first."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def test_the_loss_is_near(photos, tmp_path, capsys):
    flags = as_flags(TINY["mae"] | {"batch_size": 4, "epochs": 1, "warmup_epochs": 0, "precision": "fp32"})
    flags += ["--held-out", "0", "--workers", "0", "--device", "cpu"]
    walk = Walk()
    sys.setprofile(walk)
    try:
        assert main(["pretrain", "mae", "--data", str(photos), "--out", str(tmp_path / "run"), *flags]) == 0
    finally:
        sys.setprofile(None)
    named = [function.__code__ for function in EQUATION]
    assert all(code in walk.inside for code in named)
    files = {code.co_filename for code in [*walk.path, *named]}
    lengths = {code: len(inspect.getsourcelines(code)[0]) for code in walk.path | walk.inside if code.co_name[0] != "<"}
    listed = "\n".join(
        f"{length:5} {Path(code.co_filename).relative_to(ROOT)}: {code.co_qualname}" for code, length in lengths.items()
    )
    listed += f"\n{len(files)} files, {sum(lengths.values())} lines"
    print(listed)
    assert len(files) <= MOST_FILES, listed
    assert sum(lengths.values()) <= MOST_LINES, listed


@pytest.mark.parametrize("decode", ["pillow", "auto"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_batch_is_near(tmp_path, decode, suffix):
    for number in range(4):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{number}.{suffix}")
    samples = Samples(find_images(tmp_path), view=RandomResizedCrop(), size=(16, 16), decode=decode)
    open_at: dict[CodeType, set[str]] = {}

    def walk(frame: FrameType, event: str, value: Any) -> None:
        if event == "call":
            open_at[frame.f_code] = {code.co_filename for code in codes_of(frame) if is_ours(code)}

    sys.setprofile(walk)
    try:
        TrainBatches(samples, batch_size=4).micro_batch_at(0)
    finally:
        sys.setprofile(None)
    met = [[open_at[f.__code__] for f in functions if f.__code__ in open_at] for functions in DECODED_CUT_TOGETHER]
    assert all(met)
    files = {Path(file).name for each in met for some in each for file in some}
    assert files <= {"loader.py", "samples.py", "jpeg.py", "decode.py", "views.py"}
    assert len(files) <= MOST_FILES_OF_A_BATCH
