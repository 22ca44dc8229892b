"""One self-contained HTML page of one or more run folders."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from mimkit.files import home, write_bytes
from mimkit.report import charts, figures, kinds
from mimkit.report.compare import Table, differences, median_speed, results, same_loss, unique_names
from mimkit.report.formatting import count, percent, short, show
from mimkit.report.read import PictureFile, RunData, before_training, last, number, read_run
from mimkit.report.rows import job_rows, last_measured, measured, varying_keys
from mimkit.report.verdict import PROBES, Verdict, compare, verdict

MOST_FRAMES = 12  # pictures shown of a single run
MOST_SKIPPED = 50  # skipped images listed
MOST_OWN_NUMBERS = 4  # of a job's own rows, at the head of a run
TALLEST = 860  # pixels that a picture takes on the page, unless it would become narrow
LARGEST_PNG = 600_000  # bytes; a larger picture is embedded as a JPEG
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Frame:
    """A picture inside the page, shown at most `limit` pixels wide."""

    step: str
    source: str
    width: int
    height: int

    @property
    def limit(self) -> int:
        """Three times its own width or what fits on a screen; small and narrow pictures get more than that."""
        fits = TALLEST * self.width // self.height
        return max(min(3 * self.width, fits), min(560, 5 * self.width, 2 * fits))


@dataclass(frozen=True)
class KeyNumber:
    """A number at the head of a run: what it is, its value, and what to compare it with."""

    name: str
    value: str
    beside: str = ""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as the page shows it."""

    run: RunData
    name: str
    color: str
    subtitle: list[str]
    verdict: Verdict
    key_numbers: list[KeyNumber]
    learning: list[figures.Figure]
    frames: list[Frame]
    kinds: list[kinds.KindSection]
    health: list[figures.Figure]
    groups: list[figures.Figure]
    optimisation: list[figures.Figure]
    speed: list[figures.Figure]
    skipped: Table
    skipped_text: str
    nonfinite: Table
    settings: Table
    parts: Table
    about: Table
    problems: list[str]


def write_report(runs: str | Path | Sequence[str | Path], out: str | Path) -> Path:
    """Writes one HTML page that needs no other file and no network.

    Args:
        runs: run folders, one or several, finished or not; several are compared, and one given twice counts once. `~`
            is expanded, as it is in `out`.
        out: the file to write; one that exists is replaced only once the new page is complete.

    Returns:
        `out`.

    Raises:
        ValueError: no folder is given, one is no run folder, or `out` is a folder.
    """
    folders = [home(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if not folders:
        raise ValueError("a report needs at least one run folder, got none")
    out = home(out)
    if out.is_dir():
        raise ValueError(f"the report is one file, but {out} is a folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    different = {folder.resolve(): folder for folder in folders}
    page = render([read_run(folder) for folder in different.values()])
    write_bytes(out, page.encode("utf-8", errors="backslashreplace"))  # file names need not be valid text
    return out


def render(runs: list[RunData]) -> str:
    """The page of one or more runs as HTML."""
    names = unique_names([run.folder for run in runs])
    frames = MOST_FRAMES if len(runs) == 1 else MOST_FRAMES // 2
    views = [view(run, names[i], color=charts.color(i), most_frames=frames) for i, run in enumerate(runs)]
    several: dict[str, Any] = {}
    if len(runs) > 1:
        several = {
            "verdict": compare(runs, names),
            "results": results(runs, names),
            "differences": differences(runs, names),
            "figures": figures.overlays(runs, names, same_loss=same_loss(runs)),
            "kinds": kinds.overlaid_sections(runs, names),
            "probed": any(run.probe for run in runs),
        }
    environment = Environment(
        loader=PackageLoader("mimkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return environment.get_template("page.html").render(views=views, several=several, made=made)


def view(run: RunData, name: str, *, color: str, most_frames: int) -> RunView:
    """Everything that the page says of one run."""
    problems = list(run.problems)
    paths = {show(record.get("path")) for record in run.skipped}
    return RunView(
        run=run,
        name=name,
        color=color,
        subtitle=_subtitle(run),
        verdict=verdict(run),
        key_numbers=_key_numbers(run),
        learning=figures.learning(run),
        frames=_frames(run.pictures, most_frames, problems),
        kinds=kinds.sections(run),
        health=figures.health(run),
        groups=figures.groups(run),
        optimisation=figures.optimisation(run),
        speed=figures.speed(run),
        skipped=Table(
            ["Step", "File", "Reason"],
            [
                [count(record["step"]), show(record.get("path", "")), show(record.get("reason", ""))]
                for record in run.skipped[:MOST_SKIPPED]
            ],
        ),
        skipped_text=f"{count(len(paths))} {'file' if len(paths) == 1 else 'files'} could not be used and "
        f"{'was' if len(paths) == 1 else 'were'} left out, {count(len(run.skipped))} "
        f"{'time' if len(run.skipped) == 1 else 'times'} in all.",
        nonfinite=Table(
            ["Step", "What was logged"],
            [
                [
                    count(record["step"]),
                    ", ".join(f"{key} {show(value)}" for key, value in record.items() if key not in ("kind", "step")),
                ]
                for record in run.nonfinite[:MOST_SKIPPED]
            ],
        ),
        settings=_pairs("Setting", run.section("settings")),
        parts=_parts(run),
        about=_about(run),
        problems=problems,
    )


def _subtitle(run: RunData) -> list[str]:
    images = number(run.section("data").get("train_images"))
    steps = (
        f"{count(run.step)} steps"
        if run.finished or not run.planned
        else (f"step {count(run.step)} of {count(run.planned)}")
    )
    found = [
        run.kind if run.info else "",
        run.recipe,
        steps,
        "" if images is None else f"{count(images)} images",
        "" if run.finished else "unfinished",
    ]
    return [text for text in found if text]


def _key_numbers(run: RunData) -> list[KeyNumber]:
    """The last of what the job's own rows, the probes, the training loss and the speed say."""
    own, probed = _own_numbers(run), _probed_numbers(run)
    found = probed + own if run.pretraining else own + probed
    loss = last(run.train, "loss")
    if loss is not None:
        first = next(y for record in run.train if (y := number(record.get("loss"))) is not None)
        found.append(KeyNumber("Training loss", short(loss), f"at first {short(first)}"))
    speed, wait = median_speed(run), last(run.speed, "data_wait")
    if speed is not None:
        found.append(
            KeyNumber("Images/s", short(speed), "" if wait is None else f"{100 * wait:.0f} % waiting for data")
        )
    return found


def _own_numbers(run: RunData) -> list[KeyNumber]:
    kind, records = job_rows(run) or ("", [])
    now, before = measured(last_measured(records) or {}), measured(before_training(records) or {})
    return [
        KeyNumber(f"{kind}: {key}", short(now[key]), f"untrained {short(before[key])}" if key in before else "")
        for key in [key for key in varying_keys(records) if key in now][:MOST_OWN_NUMBERS]
    ]


def _probed_numbers(run: RunData) -> list[KeyNumber]:
    found = []
    now, before = run.probe or {}, run.untrained or {}
    measures = [(PROBES[key], key, percent) for key in PROBES]
    measures += [("Loss, held-out", "masked_loss", short), ("Effective rank", "effective_rank", short)]
    for name, key, form in measures:
        value, then = number(now.get(key)), number(before.get(key))
        if value is not None:
            found.append(KeyNumber(name, form(value), "" if then is None else f"untrained {form(then)}"))
    return found


def _pairs(head: str, section: dict[str, Any]) -> Table:
    return Table([head, "Value"], [[key, show(value)] for key, value in section.items()])


def _parts(run: RunData) -> Table:
    """The parts that the run is made of, and how it was trained."""
    table = _pairs("Part", run.section("parts"))
    if run.info.get("training") is not None:
        table.rows.append(["training", show(run.info["training"])])
    return table


def _about(run: RunData) -> Table:
    info, data = run.info, run.section("data")
    rows: list[list[str]] = [["Folder", str(run.folder)]]
    classes = data.get("classes")
    if isinstance(classes, list):
        rows.append([f"Classes ({count(len(classes))})", ", ".join(show(name) for name in classes[:100])])
    for key, name in (
        ("path", "Data"),
        ("train_images", "Training images"),
        ("held_out_images", "Held-out images"),
        ("fingerprint", "Data fingerprint"),
    ):
        if data.get(key) is not None:
            value = number(data[key])
            rows.append([name, show(data[key]) if value is None else count(value)])
    for part, weights in run.section("parameters").items():
        size = number(weights)
        rows.append([f"Parameters, {part}", show(weights) if size is None else count(size)])
    for key, name in (("created", "Started"), ("machine", "Machine"), ("git_commit", "Commit"), ("mimkit", "mimkit")):
        if info.get(key) is not None:
            rows.append([name, show(info[key])])
    rows += [[name, show(version)] for name, version in run.section("versions").items()]
    return Table(["What", "Value"], rows)


def _frames(pictures: list[PictureFile], most: int, problems: list[str]) -> list[Frame]:
    """The pictures to show, evenly spread with the first and the last; broken ones are named in `problems`."""
    if len(pictures) > most:
        chosen = sorted({round(k * (len(pictures) - 1) / (most - 1)) for k in range(most)})
        pictures = [pictures[k] for k in chosen]
    frames = []
    for picture in pictures:
        frame = _frame(picture)
        if frame:
            frames.append(frame)
        else:
            problems.append(f"The picture {picture.path.name} could not be read; it may be half written.")
    return frames


def _frame(picture: PictureFile) -> Frame | None:
    try:
        data = picture.path.read_bytes()
        if not data.startswith(PNG_START) or PNG_END not in data[-16:]:
            return None
        kind = "png"
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if len(data) > LARGEST_PNG:
                smaller = io.BytesIO()
                image.convert("RGB").save(smaller, "JPEG", quality=90, subsampling=0)
                data, kind = smaller.getvalue(), "jpeg"
    except (OSError, ValueError, SyntaxError):
        return None
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Frame(count(picture.step), source, width, height)
