"""Commands that evaluate a trained model: probe, embed, reconstruct, report."""

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from mimkit.files import refuse_unwritable


def probe(
    source: Positional[str],
    *,
    data: str,
    kind: Literal["all", "knn", "linear"] = "all",
    held_out: float = 0.1,
    image_size: tuple[int, ...] | None = None,
    device: str = "auto",
    workers: int | None = None,
    recipe: str | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Accuracy of frozen features on held-out images of a folder with class folders.

    Args:
        source: run folder, exported file, timm:NAME or random:NAME.
        data: folder with class folders, or with train and val folders that have them; or shards with classes, here or
            at a URL.
        kind: which classifier to fit.
        held_out: share to score on, where there are no train and val folders.
        image_size: one number or height and width; default: the source's own. Positions are resized.
        device: cpu, cuda, ...
        workers: data workers, processes that read images.
        recipe: FILE.py:NAME, for sources made with a recipe from a file of your own.
        as_json: print JSON.
    """
    from mimkit.evaluation import frozen

    scores = frozen.probe(
        source,
        data=data,
        kind=kind,
        held_out=held_out,
        image_size=image_size,
        device=device,
        workers=workers,
        recipe=recipe,
    )
    if as_json:
        print(json.dumps(scores, indent=1))
        return 0
    for name in ("linear", "knn"):
        if name in scores:
            print(f"{name:8}{scores[name]:6.2f} %")
    print(
        f"{scores['train_images']} training and {scores['test_images']} test images, {scores['classes']} classes "
        f"(chance {100 / scores['classes']:.1f} %)"
    )
    return 0


def embed(
    source: Positional[str],
    *,
    data: str,
    out: Path,
    image_size: tuple[int, ...] | None = None,
    device: str = "auto",
    workers: int | None = None,
    recipe: str | None = None,
) -> int:
    """Features of every image, into one .npz with `features`, `paths`, and `labels` where there are class folders.

    Args:
        source: run folder, exported file, timm:NAME or random:NAME.
        data: what `mimkit pretrain` takes.
        out: .npz file to write.
        image_size: one number or height and width; default: the source's own. Positions are resized.
        device: cpu, cuda, ...
        workers: data workers, processes that read images.
        recipe: FILE.py:NAME, for sources made with a recipe from a file of your own.
    """
    from mimkit.evaluation import frozen

    done = frozen.embed(
        source, data=data, out=out, image_size=image_size, device=device, workers=workers, recipe=recipe
    )
    bad, (images, size) = done.skipped, done.features.shape
    more = f", {len(bad)} unreadable images left out, the first: {': '.join(bad[0])}" if bad else ""
    print(f"{out}: {images} images x {size} features{more}")
    return 0


def reconstruct(
    source: Positional[str],
    images: Positional[tuple[Path, ...]],
    *,
    out: Path,
    mask_ratio: float | None = None,
    seed: int = 0,
    device: str = "auto",
    recipe: str | None = None,
) -> int:
    """Pictures of images, their visible cells and a method's reconstruction, one PNG for each image.

    Args:
        source: run folder or exported file.
        images: image files.
        out: folder to write to.
        mask_ratio: hidden share; default: as trained.
        seed: of the masks.
        device: cpu, cuda, ...
        recipe: FILE.py:NAME, for sources made with a recipe from a file of your own.
    """
    from mimkit.evaluation import reconstruction

    paths = reconstruction.reconstruct(
        source, images=images, out=out, mask_ratio=mask_ratio, seed=seed, device=device, recipe=recipe
    )
    print("\n".join(map(str, paths)))
    return 0


def report(runs: Positional[tuple[Path, ...]], *, out: Path = Path("report.html")) -> int:
    """One self-contained page on one run, or several side by side.

    Args:
        runs: run folders.
        out: HTML file to write.
    """
    from mimkit.report import write_report

    if not runs:
        raise ValueError("RUNS: name at least one run folder")
    refuse_unwritable(out)
    print(write_report(list(runs), out))
    return 0
