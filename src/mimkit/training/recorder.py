"""What a run logs and prints while it trains: rows, skipped images, messages."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from mimkit.errors import TrainingStopped
from mimkit.progress import Progress
from mimkit.training.distributed import World
from mimkit.training.failures import with_place
from mimkit.training.optim import Train
from mimkit.training.run_folder import Run
from mimkit.training.state import State

Row = dict[str, Any]
Callback = Callable[[Row], object]

OWN_KINDS = {"train", "skipped", "nonfinite", "end"}
NONFINITE_LIMIT = 10  # steps in a row without a finite loss or gradient, after which a run stops


class Recorder:
    """The log of a run. All ranks call it alike; the main process writes and prints.

    `failed` is the first sink that raised, and its error, for `raise_failed` once the step is saved.

    Args:
        run: the folder of the log.
        state: has the steps since the last training row, and the skipped images.
        values: the training values.
        progress: prints messages.
        world: the ranks.
        sinks: called with each row, such as a TensorBoard writer; one that raises is called no more.
        steps_per_epoch: for the epoch of a row.
        samples: their number.
        skipped_share: share of them that may prove unreadable.
    """

    def __init__(
        self,
        run: Run,
        state: State,
        values: Train,
        progress: Progress,
        world: World,
        *,
        sinks: Iterable[Callback],
        steps_per_epoch: int,
        samples: int,
        skipped_share: float,
    ) -> None:
        self.run, self.state, self.values, self.progress, self.world = run, state, values, progress, world
        self.sinks, self.steps_per_epoch = list(sinks), steps_per_epoch
        self.failed: tuple[Callback, BaseException] | None = None
        self.samples, self.skipped_share = samples, skipped_share

    def row(self, row: Row) -> None:
        """Write one row."""
        if self.world.is_main:
            self.run.log(row)
            for sink in [*self.sinks]:
                try:
                    sink(dict(row))
                except (Exception, SystemExit) as error:
                    self.sinks.remove(sink)
                    self.failed = self.failed or (sink, error)

    def raise_failed(self) -> None:
        """Stop, after a step that was saved, where a sink has failed.

        Raises:
            TrainingStopped: one has; the message says which, with what error, and how to go on.
        """
        if self.failed is not None:
            sink, error = self.failed
            name = getattr(sink, "__qualname__", type(sink).__name__)
            raise TrainingStopped(self.run.stopped(f"callback {name} failed: {with_place(error)}")) from error

    def end(self, steps: int) -> None:
        """Write the last row."""
        self.row({"kind": "end", "step": steps})

    def window(self, step: int, lr: float, scalars: Callable[[], dict[str, float]]) -> None:
        """Average the steps since the last window into one row; log and print non-finite ones.

        Raises:
            TrainingStopped: too many steps in a row were not.
        """
        means, nonfinite = self.state.flush_window()
        for one in nonfinite:
            at = step - one.ago
            self.row({"kind": "nonfinite", "step": at, "loss": str(one.loss), "grad_norm": str(one.norm)})
            self.progress.line(f"step {at}: loss {one.loss}, gradient norm {one.norm}: step skipped")
            if one.in_a_row == NONFINITE_LIMIT:
                raise TrainingStopped(
                    f"no finite loss in {NONFINITE_LIMIT} steps in a row, up to step {at}; the last checkpoint is "
                    f"kept. Try a lower --base-lr (now {self.values.base_lr:g}), --clip-grad 1, or --precision fp32"
                )
        row = {"kind": "train", "step": step, "epoch": step / self.steps_per_epoch, "lr": lr, **means}
        self.row({**row, **scalars()})
        speed = self.progress.speed(step, row)
        if self.world.is_main:
            self.run.log_speed(speed)

    def evaluated(self, step: int, row: Row) -> None:
        """Write an evaluator's row, and print its numbers beside those of the untrained model.

        Raises:
            ValueError: its kind is missing or the loop's own, or a value is neither number nor text.
        """
        if not isinstance(row.get("kind"), str) or row["kind"] in OWN_KINDS:
            raise ValueError(f"an evaluator's row needs a kind of its own, got {row.get('kind')!r}")
        for name, value in row.items():
            if isinstance(value, Tensor):
                raise ValueError(f"an evaluator's row of kind {row['kind']}: {name} is a tensor; give its .item()")
        self.row({**row, "step": step, "epoch": step / self.steps_per_epoch})
        if self.world.is_main:
            self.progress.line(f"step {step}: {compared_with_untrained(row, self.run)}")

    def skipped(self, step: int, unreadable: Sequence[tuple[str, str]]) -> None:
        """Count and log images that could not be read, (path, reason), each once.

        Raises:
            TrainingStopped: there are too many.
        """
        known = self.state.skipped
        for path, reason in unreadable:
            if path not in known:
                known.add(path)
                self.row({"kind": "skipped", "step": step, "path": path, "reason": reason})
                self.progress.line(f"skipped {path}: {reason}")
        if unreadable and len(known) > self.skipped_share * self.samples:
            raise TrainingStopped(
                f"{len(known)} of {self.samples} images could not be read, more than the "
                f"--skipped-share {self.skipped_share:g} that is allowed; the last one: {unreadable[-1][0]}"
            )


def require_callable(callbacks: Sequence[Callback]) -> None:
    """Raise ValueError for callbacks that are no list of functions."""
    given = isinstance(callbacks, Iterable) and not callable(callbacks)
    if not given or not all(callable(callback) for callback in callbacks):
        raise ValueError(f"callbacks takes a list of functions of a row, got {callbacks!r}")


def compared_with_untrained(row: Row, run: Run) -> str:
    """An evaluator's numbers in one line, each beside the untrained model's."""
    untrained = next((one for one in run.rows(row["kind"]) if one["step"] == 0), {})
    numbers = [
        f"{name} {value:.4g} (untrained {untrained[name]:.4g})" if name in untrained else f"{name} {value:.4g}"
        for name, value in row.items()
        if isinstance(value, float)
    ]
    return f"{row['kind']}: {', '.join(numbers)}"
