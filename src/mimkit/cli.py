"""The command line. Flags come from the typed signatures below; torch is loaded only by the commands that need it.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong.
"""

import contextlib
import functools
import io
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from mimkit.settings import Machine, Settings


def demo(*, out: Path = Path("runs/demo"), overwrite: bool = False) -> int:
    """The whole story on built-in photographs: pre-train, probe, reconstruct, report. Minutes on a CPU.

    Args:
        out: run folder.
        overwrite: replace an earlier run there.
    """
    from mimkit.demo import run_demo

    report = run_demo(out, overwrite=overwrite)
    print(f"report: {report}")
    return 0


def recipes(*, as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> int:
    """Table of recipes: paper, parts, published numbers."""
    from mimkit.recipes.table import as_rows, as_table

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
        recipe: a name from `mimkit recipes`.
        settings: what to train.
        machine: where to train it.
        out: run folder, new or empty.
        overwrite: replace a run that is there.
    """
    from mimkit.pretrain import pretrain as work

    return finish(out, work(recipe, settings, out, machine=machine, overwrite=overwrite))


def resume(run: Positional[Path], machine: OmitArgPrefixes[Machine]) -> int:
    """Continue a run exactly where its last checkpoint left it.

    Args:
        run: run folder.
        machine: where to train it.
    """
    from mimkit.pretrain import resume as work
    from mimkit.runs import Run

    return finish(run, work(Run(run), machine=machine))


def probe(
    source: Positional[str],
    *,
    data: Path,
    kind: Literal["all", "knn", "linear"] = "all",
    held_out: float = 0.1,
    image_size: tuple[int, ...] | None = None,
    device: str = "auto",
    workers: int | None = None,
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
        as_json: print JSON.
    """
    from mimkit.after import probe_source

    scores = probe_source(source, data, kind, held_out, image_size, device, workers)
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
) -> int:
    """Features of every image, into one .npz with `features`, `paths`, and `labels` where there are class folders.

    Args:
        source: run folder, exported file, timm:NAME or random:NAME.
        data: folder of images, or a text file that lists them.
        out: .npz file to write.
        image_size: one number or height and width, for timm:NAME and random:NAME.
        device: cpu, cuda, ...
        workers: processes that read images.
    """
    from mimkit.after import embed_source

    print(embed_source(source, data, out, image_size, device, workers))
    return 0


def reconstruct(
    source: Positional[str],
    images: Positional[tuple[Path, ...]],
    *,
    out: Path,
    mask_ratio: float | None = None,
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Pictures of what a method sees and what it makes of it, one PNG for each image.

    Args:
        source: run folder or exported file.
        images: image files.
        out: folder to write to.
        mask_ratio: hidden share; default: as trained.
        seed: of the masks.
        device: cpu, cuda, ...
    """
    from mimkit.after import reconstruct_images

    for path in reconstruct_images(source, images, out, mask_ratio, seed, device):
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
    print(write_report(list(runs), out))
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
    from mimkit import convert

    if format == "safetensors":
        convert.export_safetensors(source, out)
        print(f"{out}: load with mimkit.load_method({str(out)!r})")
        return 0
    arguments = convert.export_timm(source, out)
    call = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    print(f"{out}: load into timm.create_model({call})")
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
    "export": export,
}


def finish(run: Path, finished: bool) -> int:
    """Say how a run ended."""
    if finished:
        print(f"done: {run}\nreport: {run / 'report.html'}")
    else:
        print(f"stopped and saved; resume with: mimkit resume {run}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        work = parse(arguments)
    except SystemExit as stop:  # help, or a request that is no request; both have been printed
        return int(stop.code or 0)
    warnings.showwarning = lambda message, *_: print(f"mimkit: warning: {message}", file=sys.stderr)
    try:
        return work()
    except KeyboardInterrupt:
        print("mimkit: interrupted", file=sys.stderr)
        return 1
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        return complain(error, 2)
    except (MemoryError, OSError) as error:
        return complain(error, 1)
    except RuntimeError as error:
        # Torch is loaded by now if it can have raised; its own errors that are not ours keep their traceback.
        from torch import OutOfMemoryError

        from mimkit.data import TooManyBadImages
        from mimkit.train import TrainingStopped

        if isinstance(error, TrainingStopped | TooManyBadImages | OutOfMemoryError):
            return complain(error, 1)
        raise


def parse(arguments: list[str]) -> Callable[[], int]:
    """The command that the arguments ask for, ready to be called.

    Raises:
        SystemExit: with 0 after help, with 2 after one line that says what is wrong with the request.
    """
    deferred = {name: defer(command) for name, command in COMMANDS.items()}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.extras.subcommand_cli_from_dict(
                deferred, prog="mimkit", description=__doc__.splitlines()[0], args=arguments
            )
    except ValueError as error:  # from the settings' own checks
        complain(error, 2)
        raise SystemExit(2) from error
    except SystemExit as stop:
        if stop.code:
            complain(ValueError(unboxed(errors.getvalue())), 2)
        raise


def unboxed(box: str) -> str:
    """The message in a box that tyro drew, as one line: without title and frame, with what it proposes instead."""
    lines = [line.strip("╭╮╰╯│ ") for line in box.splitlines()][1:]
    rules = [place for place, line in enumerate(lines) if line and not line.strip("─-")]
    parts = [lines[start:end] for start, end in zip([-1, *rules], [*rules, len(lines)], strict=True)]
    message, *more = [" ".join(" ".join(part).strip("─- ").split()) for part in parts if "".join(part).strip("─-")]
    message = re.sub(r"^Error parsing __tyro\S*: ", "", message)
    message = re.sub(r"^Error parsing (\S+): no type matching \S+ could be instantiated from \[(.*?)\]\..*", r"\1 cannot be \2", message)
    for words in more:
        if words.startswith("Perhaps you meant"):
            message += f"; did you mean {' or '.join(dict.fromkeys(re.findall(r'--(?!help|no-)[a-z-]+', words)))}?"
        if words.startswith("Available subcommands"):
            message += f"; choose from {words.partition(': ')[2]}"
    return message


def defer(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The command as a function that only binds its arguments, so that parsing is over before work begins."""

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(command, *args, **kwargs)

    return bind


def complain(error: BaseException, code: int) -> int:
    """Print an error as one line and return the exit code."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    print("mimkit: " + " ".join(text.split()), file=sys.stderr)
    return code
