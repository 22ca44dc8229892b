"""The loop. It knows a module that returns a loss, batches, and a run folder; it knows no method and no task.

One step s is a pure function of the state after step s − 1 and of s itself: batches, learning rate and masks are
computed from s, so a resumed run needs only weights, optimizer moments and torch's generator.
"""

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mimkit.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from mimkit.progress import Progress
from mimkit.runs import Run
from mimkit.schedule import Train

Row = dict[str, Any]


class Batches(Protocol):
    """Batches in an order that is a function of the step, each in one or more equal parts."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def parts(self) -> int: ...

    def starting_at(self, step: int) -> Generator[Any]: ...


class Evaluator(Protocol):
    """Looks at the model between steps; returns a row for the log, or None. May not touch training's state.

    A row's "skipped" lists images that could not be read, (path, reason); the loop counts and logs them.
    """

    def __call__(self, step: int) -> Row | None: ...


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says why and what is kept."""


def parameter_groups(model: nn.Module, values: Train) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decayed, biases, norms and other vectors not, tokens and positions as the values say."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1
            if name.endswith("_token"):
                decayed = values.decay_tokens
            elif name.endswith(("pos_embed", "relative_position_bias_table")):
                decayed = values.decay_positions
            groups[decayed].append(parameter)
    decays = {True: values.weight_decay, False: 0.0}
    return [{"params": group, "weight_decay": decays[decayed]} for decayed, group in groups.items() if group]


def fit(
    model: nn.Module,
    batches: Batches,
    values: Train,
    run: Run,
    *,
    evaluators: Sequence[tuple[int, Evaluator]] = (),
    scalars: Callable[[], dict[str, float]] = dict,
    device: torch.device | str = "cpu",
    log_every: int = 10,
    checkpoint_minutes: float = 5.0,
    nonfinite_limit: int = 10,
    skipped_share: float = 0.1,
    images: int = 0,
    sinks: Iterable[Callable[[Row], None]] = (),
) -> bool:
    """Train from the run's latest checkpoint, or from the start, to the end.

    Args:
        model: returns an output with `.loss` when called with a batch's `inputs(device)`.
        batches: the gradients of a batch's parts accumulate to one step.
        values: see `Train`.
        run: where state, log and pictures go.
        evaluators: pairs of (every so many steps, evaluator); each also runs before the first and after the last step.
        scalars: further numbers for each training row.
        log_every: steps that one training row averages over.
        checkpoint_minutes: time between checkpoints; 0 writes one after each step.
        nonfinite_limit: steps in a row whose loss or gradient is not finite before the run stops. Such steps
            change nothing and are counted.
        skipped_share: share of the images that may prove unreadable.
        images: number of images, for that share.
        sinks: called with every row, such as a TensorBoard writer.

    Returns:
        True at the end; False when a signal asked to stop, and a checkpoint was written.

    Raises:
        TrainingStopped: too many steps without a finite loss, or too many unreadable images.
    """
    steps_per_epoch = batches.steps_per_epoch
    steps = values.epochs * steps_per_epoch
    device = torch.device(device)
    state = State(model.to(device).train(), values)
    first = run.latest()
    run.rewind(first)
    if first is not None:
        state.restore(first)

    def record(row: Row) -> None:
        run.log(row)
        for sink in sinks:
            sink(row)

    def evaluate(step: int) -> None:
        for every, evaluator in evaluators:
            if step == steps or step % every == 0:
                model.eval()
                gpus = [device] if device.type == "cuda" else []
                with progress.pausing(), torch.random.fork_rng(devices=gpus), torch.no_grad():
                    row = evaluator(step)
                model.train()
                if row is not None:
                    count_skipped(step, row.pop("skipped", ()))
                    record({**row, "step": step, "epoch": step / steps_per_epoch})
                    progress.line(f"step {step}: {beside_untrained(row, run)}")

    def count_skipped(step: int, unreadable: Sequence[tuple[str, str]]) -> None:
        for path, reason in unreadable:
            if path not in state.skipped:
                state.skipped.add(path)
                record({"kind": "skipped", "step": step, "path": path, "reason": reason})
                progress.line(f"skipped {path}: {reason}")
        if unreadable and len(state.skipped) > skipped_share * images:
            raise TrainingStopped(
                f"{len(state.skipped)} of {images} images could not be read, more than the "
                f"--skipped-share {skipped_share:g} that is allowed; the last one: {unreadable[-1][0]}"
            )

    def add_gradients(step: int) -> Tensor:
        loss = torch.zeros((), device=device)
        for _ in range(batches.parts):
            with progress.waiting():
                batch = next(parts)
            count_skipped(step, batch.skipped)
            with torch.autocast(device.type, torch.bfloat16, enabled=values.precision == "bf16"):
                part = model(**batch.inputs(device)).loss / batches.parts
            part.backward()
            loss += part.detach()
        return loss

    with (
        Progress(steps=steps, done=state.step, images_per_step=values.batch_size) as progress,
        closing(batches.starting_at(state.step)) as parts,
        _stop_signals() as stop,
    ):
        if state.step == 0:
            evaluate(0)
        saved_at = time.monotonic()
        for step in range(state.step + 1, steps + 1):
            lr = values.lr((step - 1) / steps_per_epoch)
            loss = add_gradients(step)
            norm = state.update(loss, lr)
            if state.nonfinite:
                record({"kind": "nonfinite", "step": step, "loss": str(float(loss)), "grad_norm": str(float(norm))})
                progress.line(f"step {step}: loss {float(loss)}, gradient norm {float(norm)}: step skipped")
            if state.nonfinite == nonfinite_limit:
                raise TrainingStopped(
                    f"no finite loss in {nonfinite_limit} steps in a row, up to step {step}; the last checkpoint is "
                    f"kept. Try a lower --base-lr (now {values.base_lr:g}), --clip-grad 1, or --precision fp32"
                )
            if step % log_every == 0 or step == steps:
                row = {"kind": "train", "step": step, "epoch": step / steps_per_epoch, "lr": lr, **state.means()}
                record({**row, **scalars()})
                run.log_speed(progress.speed(step, row))
            progress.step(step)
            evaluate(step)
            if step == steps:
                record({"kind": "end", "step": steps})
            stopping = stop()
            if step == steps or stopping or time.monotonic() - saved_at >= checkpoint_minutes * 60:
                run.save(step, state.checkpoint())
                saved_at = time.monotonic()
            if stopping and step < steps:
                return False
    return True


class State:
    """What a step changes, and so what a checkpoint holds.

    Args:
        model: on its device.
        values: see `Train`.
    """

    def __init__(self, model: nn.Module, values: Train) -> None:
        self.model, self.clip_grad = model, values.clip_grad
        self.optimizer = torch.optim.AdamW(parameter_groups(model, values), lr=0.0, betas=values.betas, fused=True)
        self.step = 0  # steps done when this process took over
        self.window: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm since the last training row
        self.skipped: set[str] = set()
        self.nonfinite = 0  # steps in a row

    def update(self, loss: Tensor, lr: float) -> Tensor:
        """One AdamW step with the gradients that are there, unless something is not finite. Returns their norm."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad, norm)
        if torch.isfinite(loss) and torch.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.window.append((loss, norm))
            self.nonfinite = 0
        else:
            self.nonfinite += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def means(self) -> dict[str, float]:
        """Mean loss and gradient norm since the last call; nothing where no step was finite."""
        if not self.window:
            return {}
        losses, norms = (torch.stack(column).cpu().double().mean() for column in zip(*self.window, strict=True))
        self.window.clear()
        return {"loss": float(losses), "grad_norm": float(norms)}

    def checkpoint(self) -> Checkpoint:
        device = next(self.model.parameters()).device
        generators = {"generator/cpu": torch.get_rng_state()}
        if device.type == "cuda":
            generators["generator/cuda"] = torch.cuda.get_rng_state(device)
        return Checkpoint(
            weights=self.model.state_dict(),
            training={**optimizer_tensors(self.optimizer, self.model), **generators},
            state={
                "window": [[float(loss), float(norm)] for loss, norm in self.window],
                "skipped": sorted(self.skipped),
                "nonfinite": self.nonfinite,
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """The inverse of `checkpoint`."""
        self.model.load_state_dict(checkpoint.weights)
        restore_optimizer(self.optimizer, self.model, checkpoint.training)
        device = next(self.model.parameters()).device
        torch.set_rng_state(checkpoint.training["generator/cpu"])
        if "generator/cuda" in checkpoint.training and torch.cuda.is_available():
            torch.cuda.set_rng_state(checkpoint.training["generator/cuda"], device)
        window = torch.tensor(checkpoint.state["window"], device=device).view(-1, 2)
        self.window = [(loss, norm) for loss, norm in window]
        self.step, self.nonfinite = checkpoint.state["step"], checkpoint.state["nonfinite"]
        self.skipped = set(checkpoint.state["skipped"])


def beside_untrained(row: Row, run: Run) -> str:
    """An evaluator's numbers in one line, each with what the untrained model had."""
    untrained = run.rows(row["kind"])[0]
    numbers = [
        f"{name} {value:.4g} (untrained {untrained[name]:.4g})"
        for name, value in row.items()
        if isinstance(value, float)
    ]
    return f"{row['kind']}: {', '.join(numbers)}"


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """While inside, the first SIGTERM or SIGINT asks to stop after the step; a second one acts at once."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, old[number])

    main = threading.current_thread() is threading.main_thread()  # elsewhere Python forbids handlers
    numbers = (signal.SIGTERM, signal.SIGINT) if main else ()
    old: dict[int, Any] = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield lambda: asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
