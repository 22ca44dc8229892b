"""Commands that prepare data: pack."""

import sys
from pathlib import Path

from tyro.conf import Positional

from mimkit.files import refuse_unwritable


def pack(
    path: Positional[str],
    *,
    out: Path,
    short_side: int = 256,
    quality: int = 90,
    workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Pack images into one file for --data: resized, checksummed, faster to read, one file to copy.

    Args:
        path: as for --data of `mimkit pretrain`; train and val folders stay separate splits.
        out: file to write.
        short_side: pixels that an image's short side has at most; nothing is enlarged.
        quality: of the JPEG images, 1 to 100; small JPEG files are copied as they are.
        workers: processes that read and resize; default: one per two cores, at least one, at most eight.
        overwrite: replace an existing file.
    """
    refuse_unwritable(out)
    if out.exists() and not overwrite:
        raise FileExistsError(f"--out {out} is there already; choose another, or give --overwrite")
    from mimkit.data import all_with_splits, write_pack
    from mimkit.errors import naming
    from mimkit.progress import Progress
    from mimkit.training.hardware import choose_workers
    from mimkit.training.machine import Machine

    count = choose_workers(Machine(workers=workers).workers)
    with naming("PATH"):
        images, splits = all_with_splits(path)
    with Progress(steps=len(images), done=0, images_per_step=1, unit="image") as progress:
        progress.summary = "packed"
        done = write_pack(
            images, splits, out, short_side=short_side, quality=quality, workers=count, report=progress.step
        )
    for name, reason in done.skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    left_out = f", {len(done.skipped)} unreadable images left out" if done.skipped else ""
    print(f"{out}: {done.images} images, {done.bytes / 1e6:.1f} MB{left_out}")
    return 0
