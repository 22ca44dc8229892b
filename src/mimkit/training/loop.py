"""The training loop. It knows a module that returns a loss, batches, and a run folder; it knows no method and no task.

One step s is a pure function of the state after step s − 1 and of s itself: batches, learning rate and masks are
computed from s, so a resumed run needs only weights, optimizer state and the states of torch's generators.
"""

import copy
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mimkit.errors import TrainingStopped
from mimkit.progress import Progress
from mimkit.training.blocks import prepare_blocks, uncompiled
from mimkit.training.checkpoint import Checkpoint
from mimkit.training.distributed import SINGLE, World, gradient_sync, parallelized
from mimkit.training.failures import as_messages
from mimkit.training.optim import Train, parameter_groups
from mimkit.training.precision import autocast, for_training, train_mode
from mimkit.training.recorder import Callback, Recorder, Row
from mimkit.training.run_folder import Run
from mimkit.training.signals import stop_signals, uninterrupted
from mimkit.training.state import State


class Batches(Protocol):
    """Batches in an order that is a function of the step, each in one or more equal micro-batches."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def accumulation(self) -> int:
        """Micro-batches in a batch, whose gradients accumulate."""
        ...

    def from_step(self, step: int) -> Generator[Any]:
        """All micro-batches of steps step + 1, step + 2, ... Each has `.inputs(device)`, the model's keyword
        arguments, and `.skipped`, (path, reason) of each sample that could not be read."""
        ...


class Evaluator(Protocol):
    """Evaluates the model between steps; returns a row for the log, or None. May not change the state of training.

    It is called with the model in evaluation mode, without gradients, its weights in float32, averaged where an average
    is kept. The model is the one that was handed to `fit`, which is whole under FSDP too.

    A row has a "kind" of its own, numbers and texts by name; floats are printed beside those of the untrained model.
    Its "skipped" lists images that could not be read, (path, reason); the loop counts and logs them.
    """

    def __call__(self, step: int) -> Row | None: ...


@dataclass(frozen=True)
class OnAllRanks:
    """An evaluator that every rank calls, each with the weights; the main process's row is logged.

    Args:
        evaluator: gathers its results from all ranks itself (`World.gather`).
    """

    evaluator: Evaluator

    def __call__(self, step: int) -> Row | None:
        return self.evaluator(step)


class LossOnly(nn.Module):
    """Wrapper that returns only `.loss`, the tensor that DDP and FSDP hang their hooks on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Tensor:
        loss: Tensor = self.model(**inputs).loss
        return loss


def fit(
    model: nn.Module,
    batches: Batches,
    values: Train,
    run: Run,
    *,
    evaluators: Sequence[tuple[int, Evaluator]] = (),
    scalars: Callable[[], dict[str, float]] = dict,
    groups: Callable[[nn.Module, Train], list[dict[str, Any]]] = parameter_groups,
    device: torch.device | str = "cpu",
    log_every: int = 10,
    checkpoint_minutes: float = 5.0,
    sharded_checkpoints: bool = False,
    skipped_share: float = 0.1,
    samples: int = 0,
    sinks: Iterable[Callback] = (),
    world: World = SINGLE,
    compiled: bool = False,
    recomputed: bool = False,
) -> bool:
    """Train from the run's latest checkpoint, or from the start, to the end.

    Args:
        model: returns an output with `.loss` when called with a batch's `inputs(device)`. A child of it without a
            trainable parameter stays in evaluation mode and out of checkpoints.
        batches: the gradients of a batch's micro-batches accumulate to one step.
        values: see `Train`.
        run: the folder for checkpoints, log and pictures.
        evaluators: pairs of (steps between evaluations, evaluator); each also runs before the first and after the last
            step, on the main process, unless it is `OnAllRanks`.
        scalars: further numbers for each training row of the log.
        groups: makes the optimizer's parameter groups; see `parameter_groups`.
        device: where to train.
        log_every: steps that one training row averages over.
        checkpoint_minutes: time between checkpoints; 0 writes one after each step.
        sharded_checkpoints: each rank writes the tensors, or shards of them, that it holds.
        skipped_share: share of the samples that may prove unreadable.
        samples: number of samples that this is a share of.
        sinks: called with each row of the log on the main process, such as a TensorBoard writer. Where one raises an
            error, the step is finished and saved, and then training stops.
        world: the ranks. `batches` are this one's slices, and all pass the same values; the main process writes,
            evaluates and prints.
        compiled, recomputed: see `prepare_blocks`. With FSDP a sharded copy is trained: `model` itself stays unsharded,
            and has the trained weights in evaluations and at the end.

    Returns:
        True at the end; False when a signal requested a stop, and a checkpoint was written.

    Raises:
        TrainingStopped: too many steps without a finite loss, too many unreadable images, or an error in a step or a
            sink.
    """
    steps_per_epoch, accumulation = batches.steps_per_epoch, batches.accumulation
    steps, device = values.epochs * steps_per_epoch, torch.device(device)
    trained = copy.deepcopy(model) if world.sharded else model
    prepare_blocks(for_training(trained, device, values.precision), compiled=compiled, recomputed=recomputed)
    loss_of = parallelized(LossOnly(trained), world, device)
    state = State(trained, values, world, groups=groups)
    if world.sharded and world.is_main:
        model.to(device)
    resume_from_newest(state, run, world)
    step = state.step
    unreadable: list[tuple[str, str]] = []
    with (
        Progress(steps=steps, done=step, images_per_step=values.batch_size, silent=not world.is_main) as progress,
        closing(batches.from_step(step)) as micro_batches,
        stop_signals() as stop,
        as_messages(lambda: step, run, values.batch_size // accumulation // world.size),
    ):
        recorder = Recorder(
            run,
            state,
            values,
            progress,
            world,
            sinks=sinks,
            steps_per_epoch=steps_per_epoch,
            samples=samples,
            skipped_share=skipped_share,
        )
        upcoming: Iterator[Any] = micro_batches
        if world.size > 1 and step < steps:
            first = next(micro_batches)
            warm_up(loss_of, first, state, device)
            upcoming = itertools.chain([first], micro_batches)
        if step == 0:
            evaluate(evaluators, model, state, recorder, step, steps, device)
        saved_at = time.monotonic()
        while step < steps:
            lr = values.lr(step / steps_per_epoch)
            step += 1
            loss = torch.zeros((), device=device)
            for number in range(accumulation):
                with progress.waiting():
                    batch = next(upcoming)
                unreadable += batch.skipped
                with gradient_sync(loss_of, last=number == accumulation - 1):
                    loss += backward(loss_of, batch, values.precision, device, accumulation)
            state.update(world.mean(loss), lr)
            if step % log_every == 0 or step == steps:
                if world.sharded and scalars():
                    state.copy_to(model)
                recorder.window(step, lr, scalars)
            progress.step(step)
            evaluate(evaluators, model, state, recorder, step, steps, device)
            overdue = time.monotonic() - saved_at >= checkpoint_minutes * 60
            stopping, saving, skipping = world.any(
                stop() or recorder.failed is not None, world.is_main and overdue, bool(unreadable)
            )
            if skipping:
                recorder.skipped(step, sorted(one for some in world.gather(unreadable) for one in some))
                unreadable.clear()
            if step == steps:
                recorder.end(steps)
            if step == steps or stopping or saving:
                checkpoint = state.checkpoint(sharded=sharded_checkpoints)
                if world.is_main or sharded_checkpoints:
                    run.save(step, checkpoint, world if sharded_checkpoints else SINGLE, sharded=sharded_checkpoints)
                saved_at = time.monotonic()
                recorder.raise_failed()
            if stopping and step < steps:
                return False
    if world.sharded:
        state.copy_to(model)
    return True


def backward(loss_of: nn.Module, batch: Any, precision: str, device: torch.device, accumulation: int) -> Tensor:
    """The forward and backward pass of one micro-batch; returns its loss divided by the accumulation."""
    with autocast(device, precision):
        loss: Tensor = loss_of(**batch.inputs(device)) / accumulation
    with uninterrupted():
        loss.backward()
    return loss.detach()


def warm_up(loss_of: nn.Module, batch: Any, state: State, device: torch.device) -> None:
    """A pass without an update: DDP rebuilds its buckets after its first pass, and with them the order of summation,
    which must be the same in the steps of a resumed run."""
    state.model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), uncompiled():
        backward(loss_of, batch, state.values.precision, device, 1)
    train_mode(state.model)
    refuse_without_gradient(state)
    state.optimizer.zero_grad(set_to_none=True)


def refuse_without_gradient(state: State) -> None:
    """Ranks exchange a gradient for every trainable parameter: one that gets none must be frozen.

    Raises:
        TrainingStopped: there is such a parameter.
    """
    names = state.without_gradient()
    if names:
        raise TrainingStopped(
            f"{len(names)} trained parameters got no gradient, {names[0]} first: to train with several processes, "
            "freeze (requires_grad_(False)) what the loss does not depend on"
        )


def evaluate(
    evaluators: Sequence[tuple[int, Evaluator]],
    model: nn.Module,
    state: State,
    recorder: Recorder,
    step: int,
    steps: int,
    device: torch.device,
) -> None:
    """Call the evaluators that are due after a step, and record their rows."""
    world, gpus = state.world, [device] if device.type == "cuda" else []
    due = [evaluator for every, evaluator in evaluators if step == steps or step % every == 0]
    if not due:
        return
    unreadable: list[tuple[str, str]] = []
    shared = any(isinstance(evaluator, OnAllRanks) for evaluator in due)
    if world.sharded and shared:
        model.to(device)
    with recorder.progress.pausing(), state.eval_weights(model, on_all_ranks=shared):
        for evaluator in due:
            if not world.is_main and not isinstance(evaluator, OnAllRanks):
                continue
            model.eval()
            with torch.random.fork_rng(devices=gpus), torch.no_grad(), uncompiled():
                row = evaluator(step)
            train_mode(model)
            if row is not None:
                unreadable += row.pop("skipped", ())
                recorder.evaluated(step, row)
    recorder.skipped(step, [one for some in world.gather(unreadable) for one in some])


def resume_from_newest(state: State, run: Run, world: World) -> None:
    """Restore the newest whole checkpoint, the same on all ranks; the main process rewinds the log to it."""
    found: list[Checkpoint] = []

    def newest_step() -> int | None:
        checkpoint = run.latest()
        run.rewind(checkpoint)
        found.extend([checkpoint] if checkpoint else [])
        return checkpoint.state["step"] if checkpoint else None

    step = world.on_main(newest_step)
    if step is not None:
        state.restore(found[0] if found else run.checkpoint(step))
