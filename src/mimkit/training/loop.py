"""The loop. It knows a module that returns a loss, batches, and a run folder; it knows no method and no task.

One step s is a pure function of the state after step s − 1 and of s itself: batches, learning rate and masks are
computed from s, so a resumed run needs only weights, optimizer moments and torch's generator.
"""

import copy
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mimkit.errors import TrainingStopped
from mimkit.progress import Progress
from mimkit.training.blocks import uncompiled
from mimkit.training.checkpoint import Checkpoint
from mimkit.training.distributed import ALONE, World, accumulating, parallelized
from mimkit.training.failures import explained
from mimkit.training.optim import Train, parameter_groups
from mimkit.training.precision import autocast, for_training
from mimkit.training.run_folder import Run
from mimkit.training.signals import stop_signals, uninterrupted
from mimkit.training.state import State

__all__ = ["State", "Train", "TrainingStopped", "fit", "parameter_groups"]

Row = dict[str, Any]


class Batches(Protocol):
    """Batches in an order that is a function of the step, each in one or more equal parts."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def accumulation(self) -> int: ...

    def from_step(self, step: int) -> Generator[Any]: ...


class Evaluator(Protocol):
    """Looks at the model between steps; returns a row for the log, or None. May not touch training's state.

    A row's "skipped" lists images that could not be read, (path, reason); the loop counts and logs them.
    """

    def __call__(self, step: int) -> Row | None: ...


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
    sharded_checkpoints: bool = False,
    nonfinite_limit: int = 10,
    skipped_share: float = 0.1,
    images: int = 0,
    sinks: Iterable[Callable[[Row], None]] = (),
    world: World = ALONE,
    prepare: Callable[[nn.Module], object] = lambda model: None,
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
        sharded_checkpoints: each process writes the tensors, or the shares of them, that it has.
        nonfinite_limit: steps in a row whose loss or gradient is not finite before the run stops. Such steps
            change nothing and are counted.
        skipped_share: share of the images that may prove unreadable.
        images: number of images, for that share.
        sinks: called with every row, such as a TensorBoard writer.
        world: the processes that train together. `batches` are this one's slices, and all give the same values; the
            first one writes, evaluates and speaks.
        prepare: called with the model that is trained, before it is sharded. Where parameters lie in shares that is
            a copy: the model itself stays whole, and has the trained weights when evaluators look and in the end.

    Returns:
        True at the end; False when a signal asked to stop, and a checkpoint was written.

    Raises:
        TrainingStopped: too many steps without a finite loss, too many unreadable images, or an error on the way.
    """
    steps_per_epoch = batches.steps_per_epoch
    steps = values.epochs * steps_per_epoch
    device = torch.device(device)
    gpus = [device] if device.type == "cuda" else []
    trained = copy.deepcopy(model) if world.sharded else model
    prepare(for_training(trained, device, values.precision))
    loss_of = parallelized(trained, world, device)
    state = State(trained, values, world)
    if world.sharded and world.leads:
        model.to(device)
    first = newest(run, world)
    if first is not None:
        state.restore(first)
    del first  # as large as what it was for
    met: list[tuple[str, str]] = []  # unreadable images of this step

    def record(row: Row) -> None:
        if world.leads:
            run.log(row)
            for sink in sinks:
                sink(row)

    def evaluate(step: int) -> None:
        due = [evaluator for every, evaluator in evaluators if step == steps or step % every == 0]
        unreadable: list[tuple[str, str]] = []
        if not due:
            return
        with progress.pausing(), state.shown_in(model):
            for evaluator in due if world.leads else ():
                model.eval()
                with torch.random.fork_rng(devices=gpus), torch.no_grad(), uncompiled():
                    row = evaluator(step)
                model.train()
                if row is not None:
                    unreadable += row.pop("skipped", ())
                    record({**row, "step": step, "epoch": step / steps_per_epoch})
                    progress.line(f"step {step}: {beside_untrained(row, run)}")
        count_skipped(step, world.first(lambda: unreadable))

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

    def add_gradients() -> Tensor:
        loss = torch.zeros((), device=device)
        for number in range(batches.accumulation):
            with progress.waiting():
                batch = next(parts)
            met.extend(batch.skipped)
            with accumulating(loss_of, more=number < batches.accumulation - 1):
                loss += backward(batch)
        return world.mean(loss)

    def backward(batch: Any) -> Tensor:
        with autocast(device, values.precision):
            part: Tensor = loss_of(**batch.inputs(device)) / batches.accumulation
        with uninterrupted():
            part.backward()
        return part.detach()

    def warm_up(batch: Any) -> None:
        """A first pass that is no step: DDP orders its sums anew after it, and a resumed run should sum as before."""
        trained.eval()
        with torch.random.fork_rng(devices=gpus), uncompiled():
            backward(batch)
        trained.train()
        refuse_without_gradient(state)
        state.optimizer.zero_grad(set_to_none=True)

    def tell(step: int, lr: float) -> None:
        means, bad = state.told()
        for one in bad:
            at = step - one.ago
            record({"kind": "nonfinite", "step": at, "loss": str(one.loss), "grad_norm": str(one.norm)})
            progress.line(f"step {at}: loss {one.loss}, gradient norm {one.norm}: step skipped")
            if one.in_a_row == nonfinite_limit:
                raise TrainingStopped(
                    f"no finite loss in {nonfinite_limit} steps in a row, up to step {at}; the last checkpoint is "
                    f"kept. Try a lower --base-lr (now {values.base_lr:g}), --clip-grad 1, or --precision fp32"
                )
        if world.sharded and scalars():
            state.copy_to(model)
        row = {"kind": "train", "step": step, "epoch": step / steps_per_epoch, "lr": lr, **means}
        record({**row, **scalars()})
        speed = progress.speed(step, row)
        if world.leads:
            run.log_speed(speed)

    step = state.step
    with (
        Progress(steps=steps, done=step, images_per_step=values.batch_size, silent=not world.leads) as progress,
        closing(batches.from_step(step)) as coming,
        stop_signals() as stop,
        explained(lambda: step, run, values.batch_size // batches.accumulation // world.size),
    ):
        parts: Iterator[Any] = coming
        if world.size > 1 and step < steps:
            batch = next(coming)
            warm_up(batch)
            parts = itertools.chain([batch], coming)
        if step == 0:
            evaluate(0)
        saved_at = time.monotonic()
        while step < steps:
            lr = values.lr(step / steps_per_epoch)
            step += 1
            loss = add_gradients()
            state.update(loss, lr)
            if step % log_every == 0 or step == steps:
                tell(step, lr)
            progress.step(step)
            evaluate(step)
            overdue = time.monotonic() - saved_at >= checkpoint_minutes * 60
            stopping, saving, unreadable = world.any(stop(), world.leads and overdue, bool(met))
            if unreadable:
                count_skipped(step, sorted(one for some in world.gather(met) for one in some))
                met.clear()
            if step == steps:
                record({"kind": "end", "step": steps})
            if step == steps or stopping or saving:
                checkpoint = state.checkpoint(shares=sharded_checkpoints)
                if world.leads or sharded_checkpoints:
                    run.save(step, checkpoint, world if sharded_checkpoints else ALONE, shares=sharded_checkpoints)
                saved_at = time.monotonic()
            if stopping and step < steps:
                return False
    if world.sharded:
        state.copy_to(model)
    return True


def newest(run: Run, world: World) -> Checkpoint | None:
    """The run's newest whole checkpoint, the same for all; the first process brings the log back to it."""

    found: list[Checkpoint] = []

    def prepared() -> int | None:
        checkpoint = run.latest()
        run.rewind(checkpoint)
        found.extend([checkpoint] if checkpoint else [])
        return checkpoint.state["step"] if checkpoint else None

    step = world.first(prepared)
    if step is not None and not found:
        found.append(run.checkpoint(step))
    return found[0] if found else None


def refuse_without_gradient(state: State) -> None:
    """Processes exchange a gradient for every parameter that is trained: one without must be frozen.

    Raises:
        TrainingStopped: there is one.
    """
    names = state.without_gradient()
    if names:
        raise TrainingStopped(
            f"{len(names)} trained parameters got no gradient, {names[0]} first: to train with several processes, "
            "freeze (requires_grad_(False)) what the loss does not depend on"
        )


def beside_untrained(row: Row, run: Run) -> str:
    """An evaluator's numbers in one line, each with what the untrained model had."""
    untrained = run.rows(row["kind"])[0]
    numbers = [
        f"{name} {value:.4g} (untrained {untrained[name]:.4g})"
        for name, value in row.items()
        if isinstance(value, float)
    ]
    return f"{row['kind']}: {', '.join(numbers)}"
