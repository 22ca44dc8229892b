"""A job: what is trained, on which batches, with which evaluators. The interface between a request and the loop.

`mimkit.plan.Pretraining` is one; a task is another. `mimkit.training.launch` starts jobs and continues them.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from mimkit.training.distributed import SINGLE, World
from mimkit.training.loop import Batches, Evaluator
from mimkit.training.optim import Train, parameter_groups
from mimkit.training.run_folder import Run


@dataclass(frozen=True)
class Reading:
    """The cost of reading, by a short measurement.

    Args:
        seconds: that one data worker took for each of some samples.
        mib: memory of one micro-batch, read and not yet on the device.
    """

    seconds: Sequence[float]
    mib: float


class Job(ABC):
    """What `launch` and `fit` need to know of training. Subclasses are final.

    Attributes:
        kind: as run.json says it, and `mimkit resume` finds it.
        resumable: whether `mimkit resume` knows this kind (`mimkit.jobs`); else whatever began a run continues it.
        model: called with a batch's inputs, it returns an output with `.loss`, a mean over the samples. Losses of
            micro-batches and ranks are averaged, which is the batch's loss only where each sample counts alike. A
            child whose parameters are all frozen stays in evaluation mode and out of checkpoints: whoever builds the
            job again builds that child, and a checksum notices another one.
        train: epochs, batch size, learning rate and the like.
        samples: their number, of the training and held-out splits; `skipped_share` is a share of it.
        micro_batch: samples that a rank computes at once; "auto" leaves it to trial steps.
        skipped_share: share of the samples that may prove unreadable.
        log_every: steps that a row of the log averages over.
        compile: whether the model's blocks are compiled.
    """

    kind: ClassVar[str]
    resumable: ClassVar[bool] = False
    model: nn.Module
    train: Train
    samples: int
    micro_batch: int | Literal["auto"]
    skipped_share: float = 0.1
    log_every: int = 10
    compile: bool = False

    @property
    def needs(self) -> Sequence[str]:
        """Arguments of `mimkit.resume` that continue this job only when given again, as run.json does not hold them."""
        return ()

    @abstractmethod
    def batches(
        self, workers: int = 0, world: World = SINGLE, *, prefetch: int = 2, pin_memory: bool = False
    ) -> Batches:
        """This rank's slices of all training batches: 1 / `world.size` of each, equally large on all ranks.

        Args:
            workers: data workers; 0 reads in this process. A job that reads in no workers ignores this, as it may
                ignore `prefetch` and `pin_memory`.
            world: the ranks that share each batch; this one's is `world.rank`.
            prefetch: micro-batches that each worker reads ahead.
            pin_memory: whether batches come in pinned memory, for a GPU.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What run.json says of this job beside what it says of all, as JSON: what is needed to build it again.

        The report's tables know `settings`, `parts`, `parameters` and `data` (`path`, `train_images`,
        `held_out_images`, `classes`).
        """

    def refuse_other(self, run: Run) -> None:
        """Refuse to continue a run of another job than this one: by default, of other facts.

        Raises:
            ValueError: it is one; the message names the fact and both its values.
        """
        for name, then, now in differences(run.facts, json.loads(json.dumps(self.facts()))):
            raise ValueError(f"{run.folder} began with {name} {then}, which is {now} now")

    def evaluators(
        self, run: Run, *, device: torch.device, workers: int, world: World
    ) -> Sequence[tuple[int, Evaluator]]:
        """Pairs of (steps between evaluations, evaluator), for the run in this folder; see `Evaluator`."""
        return ()

    def scalars(self) -> dict[str, float]:
        """Further numbers for each training row of the log."""
        return {}

    def describe(self, world: World) -> list[str]:
        """A few lines that say what is about to be trained."""
        train = self.train
        return [
            f"{self.kind}: {self.samples:,} samples, {train.epochs} epochs, batch {train.batch_size}, "
            f"peak learning rate {train.peak_lr:.3g}, {train.precision}"
        ]

    def parameter_groups(self, model: nn.Module, values: Train) -> list[dict[str, Any]]:
        """The optimizer's groups for `model`, which is this job's or a sharded copy of it.

        A group's "lr_scale" multiplies its learning rate, as timm's layer decay has it.
        """
        return parameter_groups(model, values)

    # For `--micro-batch auto` and the choice of workers only: a job may leave these as they are.

    def random_inputs(self, samples: int) -> dict[str, Tensor]:
        """What the model is called with for so many samples, of the right shapes, on the CPU."""
        return {}

    def micro_batches(self, world: World) -> list[int]:
        """The sizes that a micro-batch can have, ascending; none where only the given one will do."""
        return []

    def with_micro_batch(self, samples: int, world: World) -> Self:
        """The same job with this micro-batch."""
        return self

    def request(self) -> dict[str, Any]:
        """JSON from which `mimkit.jobs` builds model and inputs in another process, for trials on a CPU; empty
        for a kind of job that it does not know."""
        return {}

    def reading(self, world: World) -> Reading | None:
        """The cost of reading; None where it is not known, or nothing can be read: training will raise the error."""
        return None


def differences(then: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where JSON values differ from earlier ones, by their keys: ("settings.epochs", 10, 20).

    Keys that only one of them has are passed over: a later version may know more, and earlier runs go on.
    """
    if isinstance(then, dict) and isinstance(now, dict):
        for key in (key for key in now if key in then):
            yield from differences(then[key], now[key], f"{name}.{key}" if name else key)
    elif then != now:
        yield name, then, now
