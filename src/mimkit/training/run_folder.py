"""The run folder: everything that it takes to repeat, resume and understand a run.

run.json              the request, every resolved value, parts, data, versions; written once
log.jsonl             the results: losses, probes, skipped files; the same however often the run is interrupted
speed.jsonl           images per second and share of time waiting for data, which differ from run to run
checkpoints/          see `mimkit.training.checkpoint`
reconstructions/      pictures of fixed images, one for each evaluation
report.html           written at the end, or by `mimkit report`
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mimkit.errors import refusing_damage
from mimkit.files import flush, home, process_lock, refuse_unwritable, write_text
from mimkit.records import make, parse_text
from mimkit.training.checkpoint import Checkpoint, load, recover, save
from mimkit.training.distributed import SINGLE, World
from mimkit.training.optim import Train

FORMAT = 2
"""Of run.json and of what `mimkit export` writes into files. Files of format 1 do not say it, have parts as text, and
know one kind of job. Every version reads all formats up to its own."""


class Run:
    """A run folder, opened for writing.

    Args:
        folder: holds a `run.json`, `~` is expanded; use `Run.create` to start one.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: its `run.json` is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = home(folder)
        if not (folder / "run.json").is_file():
            raise FileNotFoundError(f"{folder} holds no run (no run.json)")
        self.folder = folder
        try:
            self.facts: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{folder / 'run.json'} cannot be understood: {error}") from error
        refuse_unknown_format(self.facts, folder)

    @property
    def kind(self) -> str:
        """Of the job that the run trains."""
        return str(self.facts.get("kind", "pretrain"))  # format 1 has one kind

    @property
    def resume_hint(self) -> str:
        """What continues it, for messages."""
        if not self.facts.get("resumable", True):
            return "the command that began it"
        return f"{self.resume_call} in Python" if self.facts.get("needs") else f"mimkit resume {self.folder}"

    @property
    def resume_call(self) -> str:
        """What continues it in Python."""
        needed = "".join(f", {name}=..." for name in self.facts.get("needs", ()))
        return f"mimkit.resume({str(self.folder)!r}{needed})"

    @property
    def saved_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        saved = (int(path.name.removeprefix("step-")) for path in self.folder.glob("checkpoints/step-*"))
        return max(saved, default=None)

    def stopped(self, how: str) -> str:
        """What is kept of a run that was stopped or interrupted, and how to go on, in a line."""
        step, hint = self.saved_step, self.resume_hint
        if self.facts.get("resumable", True) and not self.facts.get("needs"):
            hint += f", or {self.resume_call} in Python"
        of = f" of {self.facts['steps']}" if "steps" in self.facts else ""
        kept = "nothing saved yet; start over" if step is None else f"step {step}{of} saved; go on"
        return f"{how}, {kept} with: {hint}"

    @property
    def train(self) -> Train:
        """The values it is trained with.

        Raises:
            ValueError: this version does not know one of them.
        """
        with refusing_damage(self.folder):
            written = self.facts["training"]
            train = make(parse_text(written) if isinstance(written, str) else written, {"Train": Train})
        if not isinstance(train, Train):
            raise ValueError(f"{self.folder} is damaged: its training values are {train!r}")
        return train

    @classmethod
    def create(cls, folder: Path, facts: dict[str, Any], *, overwrite: bool = False) -> "Run":
        """Start a run in a new or empty folder.

        Raises:
            FileExistsError: the folder has something in it, and `overwrite` is False.
            ValueError: another process is training the run in it.
        """
        refuse_nonempty(folder, overwrite=overwrite)
        if overwrite and (folder / "run.json").exists():
            with _locked(folder):
                _clear(folder)
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "run.json", json.dumps(facts, indent=1))
        except OSError as error:
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise type(error)(f"--out {folder} cannot be written: {error.strerror or error}") from error
        return cls(folder)

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to the log."""
        _append(self.folder / "log.jsonl", row)

    def log_speed(self, row: dict[str, Any]) -> None:
        _append(self.folder / "speed.jsonl", row)

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The log's rows of one kind, oldest first."""
        path = self.folder / "log.jsonl"
        rows = (
            (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line) if path.exists() else ()
        )
        return [row for row in rows if row["kind"] == kind]

    def save(self, step: int, checkpoint: Checkpoint, world: World = SINGLE, *, sharded: bool = False) -> None:
        """Write a checkpoint after `step` steps, with the length of the log so far. See `checkpoint.save`."""
        log = self.folder / "log.jsonl"
        if log.exists() and world.is_main:
            flush(log)  # else a power cut could leave a checkpoint beside a shorter log than it counts on
        state = {**checkpoint.state, "step": step, "log_bytes": log.stat().st_size if log.exists() else 0}
        complete = Checkpoint(checkpoint.weights, checkpoint.training, state)
        save(self.folder / "checkpoints", step, complete, world, sharded=sharded)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None; torn ones are set aside."""
        return recover(self.folder / "checkpoints")

    def checkpoint(self, step: int) -> Checkpoint:
        """The checkpoint after `step` steps; raises `Torn` where it is not whole."""
        return load(self.folder / "checkpoints" / f"step-{step:08d}")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process may train this run. The system releases the lock when the process ends.

        Raises:
            ValueError: another process is training it.
        """
        with _locked(self.folder):
            yield

    def rewind(self, checkpoint: Checkpoint | None) -> None:
        """Cut off what was logged after the checkpoint: it will be logged again."""
        log = self.folder / "log.jsonl"
        if log.exists():
            with log.open("r+b") as file:
                file.truncate(checkpoint.state["log_bytes"] if checkpoint else 0)
        speed = self.folder / "speed.jsonl"
        if speed.exists():
            with speed.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)  # a torn last line


def refuse_unknown_format(facts: Any, source: object) -> None:
    """Raise ValueError for what a newer version has written, and for what no version has."""
    number = facts.get("format", 1) if isinstance(facts, dict) else None
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{source} is damaged: what it says of itself has no format")
    if number > FORMAT:
        raise ValueError(f"{source} has format {number}, which a newer mimkit wrote: this version reads up to {FORMAT}")


def refuse_nonempty(folder: Path, *, overwrite: bool) -> None:
    """Raise FileExistsError where `folder` is not empty; with `overwrite`, only where it holds no run."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--out {folder} is a file, not a folder")
    refuse_unwritable(folder / "run.json")
    if not folder.exists() or not any(folder.iterdir()):
        return
    is_run = (folder / "run.json").is_file()
    if not overwrite:
        hint = "choose another"
        if is_run:
            with contextlib.suppress(ValueError):
                hint = f"continue it with {Run(folder).resume_hint}, or give --overwrite"
        raise FileExistsError(f"--out {folder} is not empty; {hint}")
    if not is_run:
        raise FileExistsError(f"--out {folder} is not empty and no run of mimkit: it will not be overwritten")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:  # so that only the lock's own error is translated
        try:
            stack.enter_context(process_lock(folder / ".lock"))
        except BlockingIOError as error:
            raise ValueError(f"{folder} is being trained by another process") from error
        yield


def _clear(folder: Path) -> None:
    """Remove the files that runs write, and nothing else."""
    for name in ("checkpoints", "reconstructions", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("log.jsonl", "speed.jsonl", "report.html", ".lock", "run.json"):
        (folder / name).unlink(missing_ok=True)


def _append(path: Path, row: dict[str, Any]) -> None:
    text = json.dumps(row, ensure_ascii=False) + "\n"
    try:
        # File names may hold bytes that are no text: JSON writes these as a backslash and their number, too.
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
