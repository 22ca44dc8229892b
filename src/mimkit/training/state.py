"""What a training step changes, and so what a checkpoint holds: weights, optimizer moments, generators, counters."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mimkit.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from mimkit.training.distributed import ALONE, World, like, local, whole
from mimkit.training.optim import Train, adamw, norm_of, parameter_groups
from mimkit.training.precision import in_float32, widened


@dataclass(frozen=True)
class Bad:
    """A step whose loss or gradient norm was not finite: how many steps ago, and how many there were in a row."""

    ago: int
    loss: float
    norm: float
    in_a_row: int


class State:
    """The state of a model in training.

    Args:
        model: on its device, see `for_training`; its parameters may lie in shares.
        values: see `Train`.
        world: the processes that train it.
    """

    def __init__(self, model: nn.Module, values: Train, world: World = ALONE) -> None:
        self.model, self.world, self.clip_grad, self.decay = model, world, values.clip_grad, values.ema
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = dict(zip(self.trained, widened(self.trained.values()), strict=True)) if values.ema else {}
        self.optimizer = adamw(parameter_groups(model, values), values.precision, lr=0.0, betas=values.betas)
        self.step = 0  # steps done when this process took over
        self.window: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of steps that no row has told yet
        self.skipped: set[str] = set()
        self.nonfinite = 0  # steps in a row, up to the last row
        if world.rank:
            self.reseed()

    def update(self, loss: Tensor, lr: float) -> Tensor:
        """One AdamW step with the gradients that are there, unless something is not finite. Returns their norm.

        Whether it is finite is decided on the device, for which nothing here waits.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = norm_of([local(p.grad) for p in parameters if p.grad is not None])
        if self.world.sharded:
            norm = (self.world.mean(norm.square()) * self.world.size).sqrt()
        if self.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad, norm)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # how GradScaler skips a fused step
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.decay is not None:
            averages = [local(average) for average in self.averages.values()]
            steps = widened(local(p) for p in self.trained.values())
            torch._foreach_sub_(steps, averages)
            torch._foreach_mul_(steps, (1 - self.decay) * finite.float())
            torch._foreach_add_(averages, steps)
        self.window.append((loss, norm))
        return norm

    def told(self) -> tuple[dict[str, float], list[Bad]]:
        """Mean loss and gradient norm over the finite steps since the last call, if there were any, and the others.

        Waits for the device.
        """
        if not self.window:
            return {}, []
        pairs = torch.stack([torch.stack(pair) for pair in self.window]).cpu().tolist()
        self.window.clear()
        finite, bad = [], []
        for ago, (loss, norm) in zip(reversed(range(len(pairs))), pairs, strict=True):
            if math.isfinite(loss) and math.isfinite(norm):
                self.nonfinite = 0
                finite.append((loss, norm))
            else:
                self.nonfinite += 1
                bad.append(Bad(ago, loss, norm, self.nonfinite))
        means = [float(torch.tensor(column, dtype=torch.float64).mean()) for column in zip(*finite, strict=True)]
        return dict(zip(("loss", "grad_norm"), means, strict=False)), bad

    def without_gradient(self) -> list[str]:
        """Names of parameters that should have one after a backward pass, and have none."""
        return [name for name, parameter in self.trained.items() if parameter.grad is None]

    @contextmanager
    def shown_in(self, model: nn.Module) -> Iterator[None]:
        """While inside, the first process's `model` has the weights to be looked at: whole, float32, maybe averaged.

        Args:
            model: the one in training, or a whole copy of it where that one lies in shares.
        """
        if self.world.sharded:
            self.copy_to(model, averaged=True)
            yield
            return
        with in_float32(model):
            self.swap()
            try:
                yield
            finally:
                self.swap()

    def copy_to(self, model: nn.Module, *, averaged: bool = False) -> None:
        """Put whole weights into the first process's `model`."""
        weights = self.put_together({**self.model.state_dict(), **(self.averages if averaged else {})})
        if self.world.leads:
            model.load_state_dict(weights)

    def swap(self) -> None:
        """Exchange the trained weights with their averages, if there are."""
        for name, average in self.averages.items():
            parameter = self.trained[name]
            parameter.data, self.averages[name] = average, parameter.data

    def put_together(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors for the first process, nothing for the others, all of which must ask."""
        if not self.world.sharded:
            return tensors
        found = {}
        for name, tensor in tensors.items():  # one after another: together they may be too large for the device
            value = whole(tensor).detach()
            if self.world.leads:
                found[name] = value.cpu()
        return found

    def checkpoint(self, *, shares: bool = False) -> Checkpoint:
        """All of it, for the first process to write, or in each process its `shares`; all processes must ask."""

        def collect(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return tensors if shares else self.put_together(tensors)

        weights, averages = self.model.state_dict(), self.averages
        training = collect(optimizer_tensors(self.optimizer, self.model))
        # What is used later stands among the weights, what training goes on with beside them.
        training |= collect({f"trained/{name}": weights[name] for name in averages})
        weights = collect({**weights, **averages})
        if shares and not self.world.leads:  # buffers may differ, as statistics of batches do: the first one's are kept
            weights = {name: value for name, value in weights.items() if name not in dict(self.model.named_buffers())}
        for rank, generators in enumerate(self.world.gather(self.generators())):
            training |= {name_for(rank, name): state for name, state in generators.items()}
        window = [[float(loss), float(norm)] for loss, norm in self.window]
        state = {"window": window, "skipped": sorted(self.skipped), "nonfinite": self.nonfinite}
        return Checkpoint(weights, training, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """The inverse of `checkpoint`, with however many processes it was written."""
        saved, now = checkpoint.training, self.model.state_dict()
        trained = {key.removeprefix("trained/"): value for key, value in saved.items() if key.startswith("trained/")}
        weights = {**checkpoint.weights, **trained}
        self.model.load_state_dict({k: like(v, now[k]) if k in now else v for k, v in weights.items()})
        for name in self.averages:
            local(self.averages[name]).copy_(local(like(checkpoint.weights[name], self.averages[name])))
        restore_optimizer(self.optimizer, self.model, saved)
        device = next(self.model.parameters()).device
        torch.set_rng_state(saved["generator/cpu"])
        if name_for(self.world.rank, "generator/cpu") in saved:
            torch.set_rng_state(saved[name_for(self.world.rank, "generator/cpu")])
        else:
            self.reseed()
        if device.type == "cuda" and name_for(self.world.rank, "generator/cuda") in saved:
            torch.cuda.set_rng_state(saved[name_for(self.world.rank, "generator/cuda")], device)
        window = torch.tensor(checkpoint.state["window"], device=device).view(-1, 2)
        self.window = [(loss, norm) for loss, norm in window]
        self.step, self.nonfinite = checkpoint.state["step"], checkpoint.state["nonfinite"]
        self.skipped = set(checkpoint.state["skipped"])

    def generators(self) -> dict[str, Tensor]:
        """The states of torch's generators in this process."""
        device = next(self.model.parameters()).device
        states = {"generator/cpu": torch.get_rng_state()}
        if device.type == "cuda":
            states["generator/cuda"] = torch.cuda.get_rng_state(device)
        return states

    def reseed(self) -> None:
        """Other random numbers for each process, from those that the first one is about to draw."""
        drawn = int(torch.randint(2**62, (), generator=torch.Generator().set_state(torch.get_rng_state())))
        torch.manual_seed(drawn + self.world.rank)


def name_for(rank: int, name: str) -> str:
    """A generator's name in a checkpoint; the first process's has no number."""
    return name if rank == 0 else f"{name}/{rank}"
