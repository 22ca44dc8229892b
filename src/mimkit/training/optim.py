"""Training values, the learning rate schedule that they define, and the optimizer."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mimkit.errors import flag
from mimkit.training.adamw_bf16 import AdamWBF16
from mimkit.typed import check_types


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a method is trained; each recipe carries its paper's values.

    Args:
        epochs: passes over the training images.
        batch_size: images per step, over all processes and accumulated micro-batches.
        base_lr: the peak learning rate, for lr_batch images per step: it is multiplied by batch_size / lr_batch.
        warmup_epochs: linear warm-up, step by step.
        min_lr: where the half cosine after it ends, likewise for lr_batch images.
        warmup_lr: where the warm-up begins, likewise.
        milestones: epochs at which the learning rate falls to a tenth; with any, they replace the cosine (SimMIM's long
            run).
        betas, weight_decay: AdamW's. One-dimensional parameters are not decayed.
        decay_tokens: decay class and mask tokens too, as MAE's code does.
        decay_positions: decay learned positions and relative position biases too, as SimMIM's code does to Swin's.
        clip_grad: largest gradient norm; None leaves gradients alone.
        precision: "bf16" autocast over float32 weights; "bf16-pure": weights, gradients, optimizer state and
            activations in bfloat16, 10 bytes a weight, its remainder included, instead of 16; "fp32" throughout.
        ema_decay: decay per step of an exponential moving average of the weights, which is then what is evaluated and
            exported; None keeps none.

    Raises:
        ValueError: a value of another type, such as epochs that are no whole number, or out of bounds.
    """

    epochs: int
    batch_size: int
    base_lr: float
    lr_batch: int = 256
    warmup_epochs: float = 40
    min_lr: float = 0.0
    warmup_lr: float = 0.0
    milestones: tuple[float, ...] = ()
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    decay_tokens: bool = True
    decay_positions: bool = False
    clip_grad: float | None = None
    precision: Literal["bf16", "bf16-pure", "fp32"] = "bf16"
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        check_types(self, ema_decay="ema")
        for name in ("epochs", "batch_size", "base_lr", "lr_batch", "clip_grad"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{flag(name)} must be above 0, got {value}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"--ema must lie between 0 and 1, got {self.ema_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"--betas must be at least 0 and below 1, got {self.betas}")
        if self.weight_decay < 0:
            raise ValueError(f"--weight-decay must be at least 0, got {self.weight_decay}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"--warmup-epochs must be at least 0 and below --epochs {self.epochs}, got {self.warmup_epochs:g}"
            )
        for name in ("warmup_lr", "min_lr"):
            if not 0 <= getattr(self, name) <= self.base_lr:
                raise ValueError(f"{flag(name)} {getattr(self, name):g} must lie in 0 .. --base-lr {self.base_lr:g}")

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.scale

    @property
    def scale(self) -> float:
        return self.batch_size / self.lr_batch

    def lr(self, epoch: float) -> float:
        """Learning rate `epoch` epochs into the run: linear warm-up, then half a cosine (MAE §A.1), or milestones."""
        if epoch < self.warmup_epochs:
            start = self.warmup_lr * self.scale
            return start + (self.peak_lr - start) * epoch / self.warmup_epochs
        if self.milestones:
            return self.peak_lr * 0.1 ** sum(epoch >= drop for drop in self.milestones)
        progress = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        end = self.min_lr * self.scale
        return end + (self.peak_lr - end) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(
    groups: Iterable[Any], precision: str, *, lr: float, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.Optimizer:
    """AdamW for parameters, or groups of them, of a model prepared by `for_training`."""
    if precision == "bf16-pure":
        return AdamWBF16(groups, lr=lr, betas=betas)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together, summed in float32 where they are bfloat16."""
    norms = torch._foreach_norm(gradients, 2, dtype=torch.promote_types(gradients[0].dtype, torch.float32))
    return torch.linalg.vector_norm(torch.stack(norms))


def parameter_groups(model: nn.Module, values: Train) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decayed, biases, norms and other vectors not, tokens and positions as the values say."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1
            if name.endswith("_token"):
                decayed = values.decay_tokens
            elif name.rpartition(".")[2].startswith(("pos_embed", "relative_position_bias_table")):
                decayed = values.decay_positions
            groups[decayed].append(parameter)
    decays = {True: values.weight_decay, False: 0.0}
    return [{"params": group, "weight_decay": decays[decayed]} for decayed, group in groups.items() if group]
