"""What the command line can do, one function each: flags come from the signatures, help from the docstrings.

Nothing here imports torch before a command that needs it runs.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from mimkit.files import refuse_unwritable
from mimkit.settings import Machine, Settings


def demo(*, out: Path = Path("runs/demo"), overwrite: bool = False) -> int:
    """The whole story on built-in photographs: pre-train, probe, reconstruct, report. Minutes on a CPU.

    Args:
        out: folder for the photographs' tiles and the run.
        overwrite: replace an earlier demo there.
    """
    from mimkit.demo import run_demo

    return finish(out / "run", run_demo(out, overwrite=overwrite))


def recipes(*, as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> int:
    """Table of recipes: paper, parts, published numbers."""
    from mimkit.table import as_rows, as_table

    print(json.dumps(as_rows(), indent=1) if as_json else as_table())
    return 0


def pretrain(
    recipe: Positional[str],
    settings: OmitArgPrefixes[Settings],
    machine: OmitArgPrefixes[Machine],
    *,
    out: Path,
    overwrite: bool = False,
) -> int:
    """Pre-train a backbone on a folder of images.

    Args:
        recipe: a name from `mimkit recipes`, or FILE.py:NAME for a function of your own that returns a Recipe.
        settings: what to train.
        machine: where to train it.
        out: run folder, new or empty.
        overwrite: replace a run that is there.
    """
    from mimkit.pretrain import pretrain as work

    return finish(out, work(recipe, settings, out, machine=machine, overwrite=overwrite))


def resume(run: Positional[Path], machine: OmitArgPrefixes[Machine], *, recipe: str | None = None) -> int:
    """Continue a run exactly where its last checkpoint left it.

    Args:
        run: run folder.
        machine: where to train it.
        recipe: FILE.py:NAME, for a run made with a recipe from a file of your own.
    """
    from mimkit.pretrain import resume as work
    from mimkit.runs import Run

    return finish(run, work(Run(run), machine=machine, recipe=recipe))


def probe(
    source: Positional[str],
    *,
    data: Path,
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
        data: folder with class folders, or with train and val folders that have them.
        kind: which classifier on top.
        held_out: share to score on, where there are no train and val folders.
        image_size: one number or height and width, for timm:NAME and random:NAME.
        device: cpu, cuda, ...
        workers: processes that read images.
        recipe: FILE.py:NAME, for sources made with a recipe from a file of your own.
        as_json: print JSON.
    """
    from mimkit.after import probe_source

    scores = probe_source(source, data, kind, held_out, image_size, device, workers, recipe)
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
    data: Path,
    out: Path,
    image_size: tuple[int, ...] | None = None,
    device: str = "auto",
    workers: int | None = None,
    recipe: str | None = None,
) -> int:
    """Features of every image, into one .npz with `features`, `paths`, and `labels` where there are class folders.

    Args:
        source: run folder, exported file, timm:NAME or random:NAME.
        data: folder of images, or a text file that lists them.
        out: .npz file to write.
        image_size: one number or height and width, for timm:NAME and random:NAME.
        device: cpu, cuda, ...
        workers: processes that read images.
        recipe: FILE.py:NAME, for sources made with a recipe from a file of your own.
    """
    refuse_unwritable(out)
    from mimkit.after import embed_source

    print(embed_source(source, data, out, image_size, device, workers, recipe))
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
    """Pictures of what a method sees and what it makes of it, one PNG for each image.

    Args:
        source: run folder or exported file.
        images: image files.
        out: folder to write to.
        mask_ratio: hidden share; default: as trained.
        seed: of the masks.
        device: cpu, cuda, ...
        recipe: FILE.py:NAME, for sources made with a recipe from a file of your own.
    """
    refuse_unwritable(out / "0000.png")
    from mimkit.after import reconstruct_images

    for path in reconstruct_images(source, images, out, mask_ratio, seed, device, recipe):
        print(path)
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


def import_(
    file: Positional[Path],
    *,
    out: Path,
    recipe: str | None = None,
    image_size: tuple[int, ...] | None = None,
    window: int | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    target: str | None = None,
    patch_merge_order: Literal["published", "column"] = "published",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    strict: bool = True,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """A published checkpoint as a file that every command takes: MAE, SimMIM, LocalMIM, GreenMIM, ConvMAE, BEiT,
    MMPretrain, Hugging Face, timm. Its format is recognised; nothing in it is run.

    Args:
        file: .pth, .pt, .bin or .safetensors, or a Hugging Face folder.
        out: safetensors file to write.
        recipe: the method, where the weights do not show it.
        image_size: side, or height and width, to resize tables of positions to.
        window: of Swin, to resize tables of relative positions to.
        heads: of attention, where neither the checkpoint nor the published models tell.
        decoder_heads: the same for the decoder.
        target: what was reconstructed, where the checkpoint does not say it.
        patch_merge_order: column reorders the patch merging of LocalMIM's Swin to timm's.
        mean: of each channel, that images are normalised with; default: the checkpoint's, or ImageNet's.
        std: the same for the deviation.
        strict: refuse a checkpoint with weights missing or left over; --no-strict reports them.
        as_json: print JSON.
    """
    if file.is_file() and not file.stat().st_size:
        raise ValueError(f"FILE {file} is empty")
    refuse_unwritable(out)
    from mimkit.convert.importer import import_checkpoint

    done = import_checkpoint(
        file,
        out,
        recipe=recipe,
        image_size=image_size,
        window=window,
        heads=heads,
        decoder_heads=decoder_heads,
        target=target,
        patch_merge_order=patch_merge_order,
        mean=mean,
        std=std,
        strict=strict,
    )
    print(json.dumps(done.to_json(), indent=1) if as_json else "\n".join([*done.lines(), f"written: {out}"]))
    return 0


def export(
    source: Positional[Path],
    *,
    format: Literal["timm", "safetensors"],
    out: Path,
) -> int:
    """Weights as a file for others: the encoder in timm's names, or the whole method.

    Args:
        source: run folder or exported file.
        format: timm: the encoder, loads strictly into timm.create_model; safetensors: the whole method.
        out: file to write.
    """
    refuse_unwritable(out)
    from mimkit import convert

    if format == "safetensors":
        convert.export_safetensors(source, out)
        print(f"{out}: load with mimkit.load_method({str(out)!r})")
        return 0
    arguments = convert.export_timm(source, out)
    call = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    print(f"{out}: load into timm.create_model({call})")
    return 0


def bench(
    what: Positional[Literal["step", "data"]],
    *,
    recipe: tuple[str, ...] = ("mae",),
    data: Path | None = None,
    backbone: str | None = None,
    image_size: tuple[int, ...] | None = None,
    batch_size: int = 16,
    images: int = 256,
    precision: Literal["bf16", "fp32"] = "fp32",
    rounds: int = 5,
    peers: bool = False,
    device: str = "auto",
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Throughput of a training step, or of reading images, beside peers in the same run.

    Args:
        what: step, or data.
        recipe: for step: names from `mimkit recipes`; the first is compared with the others.
        data: for data: a folder of images.
        backbone: for step: instead of the recipe's.
        image_size: side of the images in pixels, or height and width; default: the recipe's, or 224.
        batch_size: for step: images per step.
        images: for data: files to read in each round.
        precision: for step: bf16 autocast or float32.
        rounds: repetitions; medians are reported.
        peers: for step: also Hugging Face's ViTMAE.
        device: for step: cpu, cuda, ...
        as_json: print JSON.
    """
    from mimkit import bench as benches
    from mimkit.pretrain import choose_device
    from mimkit.settings import as_size

    size = as_size(image_size)
    if what == "data":
        if data is None:
            raise ValueError("bench data needs --data, a folder of images")
        result = benches.bench_data(data, image_size=size or (224, 224), images=images, rounds=rounds)
    else:
        result = benches.bench_step(
            recipe,
            Settings(data=Path(), backbone=backbone, image_size=size),
            batch_size=batch_size,
            precision=precision,
            rounds=rounds,
            peers=peers,
            device=choose_device(device),
        )
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print(
            "\n".join(
                f"{name:36}{value:.3g}" if isinstance(value, float) else f"{name:36}{value}"
                for name, value in result.items()
            )
        )
    return 0


def finish(run: Path, finished: bool) -> int:
    """Say how a run ended."""
    if finished:
        print(f"done: {run}\nreport: {run / 'report.html'}")
    else:
        print(f"stopped and saved; resume with: mimkit resume {run}")
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "recipes": recipes,
    "pretrain": pretrain,
    "resume": resume,
    "probe": probe,
    "embed": embed,
    "reconstruct": reconstruct,
    "report": report,
    "import": import_,
    "export": export,
    "bench": bench,
}
