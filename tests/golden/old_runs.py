"""Writes tests/golden/runs/FORMAT: a run stopped in its middle, the log of the same run uninterrupted, exported and
imported files, and what each gives for fixed images. They are written once for each format, and kept for good.

    python tests/golden/old_runs.py

`format-1` was written so by commit 5e45b37, before run.json had a format.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import mimkit
from mimkit.cli.main import main
from mimkit.progress import Progress
from mimkit.randomness import sample_keys
from mimkit.training.run_folder import FORMAT

RUNS = Path(__file__).with_name("runs")
STOP = 7
SHARED = "--batch-size 4 --epochs 3 --precision fp32 --log-every 2 --probe-every 1 --held-out 0.25 --base-lr 0.2"
SHARED += " --device cpu --workers 0"
DECODER = "--decoder-width 8 --decoder-depth 1 --decoder-heads 2"
VIT = "vit_tiny_patch16_224(patch_size=4, embed_dim=12, depth=2, num_heads=2)"
DEEPER = "vit_tiny_patch16_224(patch_size=8, embed_dim=8, depth=4, num_heads=2)"
CONVNEXT = "convnext_atto(depths=(1, 1, 1, 1), dims=(4, 6, 8, 12))"


def photographs(folder: Path) -> None:
    """Two classes of a dozen pictures; run folders know their names only."""
    rng = np.random.default_rng(0)
    for i in range(24):
        place = folder / f"class_{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = 90 + 60 * (i % 2) + rng.integers(-40, 40, (40, 40, 3)).cumsum(axis=1) / 6
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{i:02d}.png")


def fixed_images(size: tuple[int, int]) -> Tensor:
    """uint8 [2, 3, H, W]."""
    return torch.randint(256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def outcome(source: str) -> dict[str, object]:
    """The first six features of fixed images, and the loss on them where there is a decoder."""
    encoder = mimkit.load_encoder(source)
    found: dict[str, object] = {"features": encoder(fixed_images(encoder.image_size))[:, :6].tolist()}
    if not source.startswith("imported"):
        output = mimkit.load_method(source)(fixed_images(encoder.image_size), keys=sample_keys(0, 0, torch.arange(2)))
        found["loss"] = float(output.loss.detach())
    return found


def run(recipe: str, out: str, backbone: str, flags: str) -> None:
    """Pre-train on `photos`, into a folder."""
    command = ["pretrain", recipe, "--data", "photos", "--out", out, "--backbone", backbone]
    assert main([*command, *flags.split(), *SHARED.split()]) == 0


def write() -> None:
    """Into the current folder, which has `photos`."""
    flags = f"--image-size 16 {DECODER} --ema 0.9 --clip-grad 1 --taps 0 1"
    run("pixmim-mff", "whole", VIT, flags)
    usual = Progress.step

    def stopping(self: Progress, step: int) -> None:
        usual(self, step)
        if step == STOP:
            os.kill(os.getpid(), signal.SIGTERM)

    Progress.step = stopping  # type: ignore[method-assign]
    run("pixmim-mff", "run", VIT, flags)
    offsets = " 0.1 0.2" * 4
    run("localmim", "localmim", DEEPER, f"--image-size 32 {DECODER} --hog-offsets{offsets}")
    run("simmim", "simmim", CONVNEXT, "--image-size 64 --mask-cell 32 --target hog")
    for name in ("localmim", "simmim"):
        assert main(["export", name, "--format", "safetensors", "--out", f"exported-{name}.safetensors"]) == 0
    torch.manual_seed(0)
    options = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "img_size": 16, "num_classes": 0}
    save_file(timm.create_model("vit_tiny_patch16_224", **options).state_dict(), "published.safetensors")
    assert main(["import", "published.safetensors", "--out", "imported.safetensors", "--heads", "2"]) == 0
    sources = ("run", "exported-localmim.safetensors", "exported-simmim.safetensors", "imported.safetensors")
    Path("expected.json").write_text(json.dumps({source: outcome(source) for source in sources}, indent=1) + "\n")
    shutil.copy("whole/log.jsonl", "expected.jsonl")


def main_program() -> None:
    """Write the files of this version's format."""
    target = RUNS / f"format-{FORMAT}"
    if target.exists():
        sys.exit(f"{target} is there: what old versions wrote is kept as it is")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        photographs(Path("photos"))
        write()
        facts = Path("run/run.json")
        facts.write_text(facts.read_text().replace(str(Path("photos").resolve()), "photos"))
        for name in ("report.html", ".lock"):
            Path("run", name).unlink(missing_ok=True)
        shutil.rmtree("run/reconstructions", ignore_errors=True)
        target.mkdir(parents=True)
        for name in ("run", "expected.json", "expected.jsonl", "imported.safetensors"):
            shutil.move(name, target / name)
        for path in Path().glob("exported-*.safetensors"):
            shutil.move(path, target / path.name)


if __name__ == "__main__":
    main_program()
