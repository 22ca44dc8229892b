"""The whole story without a download: scikit-image's photographs, a small ViT, minutes on a CPU.

Each photograph is cut in two by a vertical line: tiles from the left part are trained on, tiles from the right part are
held out, and no pixel is in both. The probe asks which photograph a tile comes from.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# CC0, public domain or without known copyright restrictions, as scikit-image's own notes say.
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
MARK = ".made-by-mimkit-demo"  # in the tiles' folder: it may be made afresh
LONGEST = 600
TILE = 96
TRAIN_SHARE = 0.7
TRAIN_STRIDE = 24
HELD_OUT_STRIDE = 16


def run_demo(out: Path, *, overwrite: bool = False) -> bool:
    """Make the tiles and pre-train `small` on them into `out`/run. False where a signal stopped it early."""
    from mimkit.pretraining import pretrain
    from mimkit.settings import Settings
    from mimkit.training.run_folder import refuse_nonempty

    run, tiles = out / "run", out / "photographs"
    refuse_nonempty(run, overwrite=overwrite)
    if tiles.exists() and not (tiles / MARK).is_file():
        raise FileExistsError(f"--out {out} has a folder {tiles.name} that is not the demo's: choose another")
    counts = _make_tiles(tiles)
    print(
        f"{len(PHOTOGRAPHS)} photographs: {counts['train']} training and {counts['val']} held-out tiles",
        file=sys.stderr,
    )
    return pretrain("small", Settings(data=tiles, image_size=(TILE,), epochs=18), run, overwrite=overwrite)


def _make_tiles(folder: Path) -> dict[str, int]:
    """Write `folder`/{train,val}/<photograph>/*.png afresh; returns how many of each."""
    import skimage

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    counts = {"train": 0, "val": 0}
    for name in PHOTOGRAPHS:
        with Image.open(Path(os.fspath(skimage.__path__[0])) / "data" / name) as image:
            photograph = image.convert("RGB")
        photograph.thumbnail((LONGEST, LONGEST))  # lest the largest ones give most of the tiles
        pixels = np.asarray(photograph)
        line = round(pixels.shape[1] * TRAIN_SHARE)
        splits = {"train": (pixels[:, :line], TRAIN_STRIDE), "val": (pixels[:, line:], HELD_OUT_STRIDE)}
        for split, (area, stride) in splits.items():
            place = folder / split / Path(name).stem
            place.mkdir(parents=True)
            for top in range(0, area.shape[0] - TILE + 1, stride):
                for left in range(0, area.shape[1] - TILE + 1, stride):
                    tile = Image.fromarray(area[top : top + TILE, left : left + TILE])
                    tile.save(place / f"{top:04d}-{left:04d}.png", compress_level=1)
                    counts[split] += 1
    return counts
