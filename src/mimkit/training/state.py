"""What a training step changes, and so what a checkpoint holds: weights, optimizer state, generators, counters."""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from mimkit.training.distributed import SINGLE, World, full_tensor, local_tensor, placed_like
from mimkit.training.optim import Train, adamw, norm_of, parameter_groups
from mimkit.training.precision import frozen_children, in_float32, widened


@dataclass(frozen=True)
class NonFinite:
    """A step whose loss or gradient norm was not finite: how many steps ago, and how many there were in a row."""

    ago: int
    loss: float
    norm: float
    in_a_row: int


class State:
    """The state of a model in training.

    Args:
        model: on its device, see `for_training`; its parameters may be sharded.
        values: see `Train`.
        world: the ranks that train it.
        groups: the optimizer's parameter groups. A group's "lr_scale" multiplies its learning rate.
    """

    def __init__(
        self,
        model: nn.Module,
        values: Train,
        world: World = SINGLE,
        *,
        groups: Callable[[nn.Module, Train], list[dict[str, Any]]] = parameter_groups,
    ) -> None:
        self.model, self.values, self.world = model, values, world
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = dict(zip(self.trained, widened(self.trained.values()), strict=True)) if values.ema_decay else {}
        self.optimizer = adamw(groups(model, values), values.precision, lr=0.0, betas=values.betas)
        self.step = 0  # steps done before this process started
        self.window: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of each step since the last flush
        self.skipped: set[str] = set()
        self.nonfinite = 0  # steps in a row, up to the last flush
        # Frozen children are left out of checkpoints: their checksums detect other weights after a resume.
        self.frozen = {name: self.digest(name) for name in frozen_children(model)}
        if world.rank:
            self.reseed()

    def update(self, loss: Tensor, lr: float) -> Tensor:
        """One optimizer step, skipped unless loss and gradient norm are finite. Returns the norm.

        Whether they are finite is decided on the device: nothing here waits for it.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = norm_of([local_tensor(p.grad) for p in parameters if p.grad is not None])
        if self.world.sharded:
            norm = (self.world.mean(norm.square()) * self.world.size).sqrt()
        if self.values.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.values.clip_grad, norm)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # how GradScaler skips a fused step
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.values.ema_decay is not None:
            averages = [local_tensor(average) for average in self.averages.values()]
            steps = widened(local_tensor(p) for p in self.trained.values())
            torch._foreach_sub_(steps, averages)
            torch._foreach_mul_(steps, (1 - self.values.ema_decay) * finite.float())
            torch._foreach_add_(averages, steps)
        self.window.append((loss, norm))
        return norm

    def flush_window(self) -> tuple[dict[str, float], list[NonFinite]]:
        """Mean loss and gradient norm of the finite steps since the last flush, and the non-finite steps.

        Without a finite step there are no means. Waits for the device.
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
                bad.append(NonFinite(ago, loss, norm, self.nonfinite))
        means = [float(torch.tensor(column, dtype=torch.float64).mean()) for column in zip(*finite, strict=True)]
        return dict(zip(("loss", "grad_norm"), means, strict=False)), bad

    def without_gradient(self) -> list[str]:
        """Names of trainable parameters that have no gradient after a backward pass."""
        return [name for name, parameter in self.trained.items() if parameter.grad is None]

    @contextmanager
    def eval_weights(self, model: nn.Module, *, on_all_ranks: bool = False) -> Iterator[None]:
        """Inside, the main process's `model` has the weights to evaluate: full, float32, the moving average if kept.

        Args:
            model: the one in training, or an unsharded copy of it where that one is sharded.
            on_all_ranks: every rank's `model` has them.
        """
        if self.world.sharded:
            self.copy_to(model, averaged=True, on_all_ranks=on_all_ranks)
            yield
            return
        with in_float32(model):
            self.swap()
            try:
                yield
            finally:
                self.swap()

    def copy_to(self, model: nn.Module, *, averaged: bool = False, on_all_ranks: bool = False) -> None:
        """Copy full weights into the main process's `model`, or every rank's."""
        tensors = {**self.model.state_dict(), **(self.averages if averaged else {})}
        weights = self.gather_full(tensors, on_all_ranks=on_all_ranks)
        if self.world.is_main or on_all_ranks:
            model.load_state_dict(weights)

    def swap(self) -> None:
        """Exchange the trained weights with their moving averages, if they are kept."""
        for name, average in self.averages.items():
            parameter = self.trained[name]
            parameter.data, self.averages[name] = average, parameter.data

    def gather_full(self, tensors: dict[str, Tensor], *, on_all_ranks: bool = False) -> dict[str, Tensor]:
        """Full tensors on the main process, or on every rank. All ranks must call."""
        if not self.world.sharded:
            return tensors
        found = {}
        for name, tensor in tensors.items():  # one by one: together they may be too large for the device
            value = full_tensor(tensor).detach()
            if self.world.is_main or on_all_ranks:
                found[name] = value.cpu()
        return found

    def checkpoint(self, *, sharded: bool = False) -> Checkpoint:
        """The state but for frozen children, in full on the main process, or as each rank's shards. All must call."""

        def collect(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return tensors if sharded else self.gather_full(tensors)

        weights, averages = self.model.state_dict(), self.averages
        weights = {name: value for name, value in weights.items() if name.partition(".")[0] not in self.frozen}
        training = collect(optimizer_tensors(self.optimizer, self.model))
        # Evaluation and export read the weights, so these are the moving averages; training continues from trained/.
        training |= collect({f"trained/{name}": weights[name] for name in averages})
        weights = collect({**weights, **averages})
        if sharded and not self.world.is_main:  # buffers may differ, as batch statistics do: rank 0's are kept
            weights = {name: value for name, value in weights.items() if name not in dict(self.model.named_buffers())}
        for rank, generators in enumerate(self.world.gather(self.generators())):
            training |= {name_for(rank, name): state for name, state in generators.items()}
        window = [[float(loss), float(norm)] for loss, norm in self.window]
        state = {"window": window, "skipped": sorted(self.skipped), "nonfinite": self.nonfinite}
        if self.frozen:
            state["frozen"] = self.frozen
        return Checkpoint(weights, training, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """The inverse of `checkpoint`, for any number of ranks that wrote it.

        Raises:
            ValueError: a frozen child, which the checkpoint leaves out, has other weights than when it was written.
        """
        for name, digest in checkpoint.state.get("frozen", {}).items():
            if self.frozen.get(name) != digest:
                raise ValueError(
                    f"the frozen {name} has other weights now (checksum {self.frozen.get(name, 'none')}) than "
                    f"the run was trained with ({digest})"
                )
        saved, now = checkpoint.training, self.model.state_dict()
        trained = {key.removeprefix("trained/"): value for key, value in saved.items() if key.startswith("trained/")}
        kept = {
            name: value for name, value in now.items() if name.partition(".")[0] in checkpoint.state.get("frozen", {})
        }
        weights = {**kept, **checkpoint.weights, **trained}
        self.model.load_state_dict({k: placed_like(v, now[k]) if k in now else v for k, v in weights.items()})
        for name in self.averages:
            local_tensor(self.averages[name]).copy_(
                local_tensor(placed_like(checkpoint.weights[name], self.averages[name]))
            )
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

    def digest(self, child: str) -> str:
        """A checksum of a child's tensors, the same on all ranks, which must all call."""
        tensors = {name: value for name, value in self.model.state_dict().items() if name.partition(".")[0] == child}
        full = self.gather_full(tensors)

        def hashed() -> str:
            sums = hashlib.sha256()
            for name in sorted(full):
                sums.update(name.encode())
                sums.update(full[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            return sums.hexdigest()[:16]

        return self.world.on_main(hashed)

    def generators(self) -> dict[str, Tensor]:
        """The states of torch's generators in this process."""
        device = next(self.model.parameters()).device
        states = {"generator/cpu": torch.get_rng_state()}
        if device.type == "cuda":
            states["generator/cuda"] = torch.cuda.get_rng_state(device)
        return states

    def reseed(self) -> None:
        """Seed each rank differently, from what the main process's generator would draw next."""
        drawn = int(torch.randint(2**62, (), generator=torch.Generator().set_state(torch.get_rng_state())))
        torch.manual_seed(drawn + self.world.rank)


def name_for(rank: int, name: str) -> str:
    """A generator's name in a checkpoint; that of rank 0 has no number."""
    return name if rank == 0 else f"{name}/{rank}"
