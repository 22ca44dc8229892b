"""Training in bfloat16 alone: what is cast to it, and an AdamW whose small steps do not vanish in rounding.

A bfloat16 number has 8 significant bits: a step below 1/512 of a weight leaves the weight as it is, and a running mean
that moves by 1/1000 of itself stands still. So each weight has a remainder, also bfloat16, and AdamW updates
their sum; remainders and moments are rounded stochastically, which makes them right on average. All arithmetic between
loading and storing is float32.

Shapes: n numbers of a chunk of parameters laid end to end.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mimkit.randomness import scramble
from mimkit.training.distributed import local_tensor

CHUNK = {"cpu": 1 << 17}  # numbers that are updated at once: on a CPU as many as its cache holds
CHUNK_ELSEWHERE = 1 << 22


class AdamWBF16(torch.optim.Optimizer):
    """AdamW for bfloat16 weights, with bfloat16 moments and remainders: 10 bytes a weight, gradient included, of 16.

    A step is a function of weights, gradients and optimizer state: its random numbers derive from the step's number. It
    works through chunks of parameters laid end to end, whatever their number and sizes. Parameters in float32 are
    updated in float32. Those without a gradient are skipped; all others are taken to have had the same number of steps.

    Args:
        groups: parameter groups, each with its "weight_decay".
        lr: learning rate; it may change from step to step.
        betas: of the moments.
        eps: added to the root of the second moment.

    Attributes:
        found_inf: a number on the device, or None; where it is not zero, a step changes nothing.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[Any], *, lr: float, betas: tuple[float, float], eps: float = 1e-8) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for dtype in sorted({p.dtype for p in parameters}, key=str):
                self.advance([p for p in parameters if p.dtype == dtype], group)

    def advance(self, parameters: Sequence[Tensor], values: dict[str, Any]) -> None:
        """Update parameters of one group and dtype."""
        for parameter in parameters:
            if not self.state[parameter]:
                slots = {name: torch.zeros_like(parameter) for name in ("remainder", "exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | slots
        states = [self.state[parameter] for parameter in parameters]
        bad = self.found_inf
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1.0 if bad is None else 1.0 - bad)
        step = steps[0] if bad is None else steps[0].clamp(min=1.0)

        (first_beta, second_beta), lr = values["betas"], values["lr"]
        scale, second_scale = lr / (1 - first_beta**step), 1 / (1 - second_beta**step)
        chunk = CHUNK.get(step.device.type, CHUNK_ELSEWHERE)
        noise = random_bits(step, min(chunk, sum(local_tensor(p).numel() for p in parameters)))
        columns = [
            [local_tensor(p) for p in parameters],
            *([local_tensor(state[name]) for state in states] for name in ("remainder", "exp_avg", "exp_avg_sq")),
            [local_tensor(p.grad) for p in parameters if p.grad is not None],
        ]
        for rows in chunks(columns, chunk):
            before = [torch.cat(column) for column in zip(*rows, strict=True)]
            weight, remainder, first, second, gradient = (tensor.float() for tensor in before)
            weight += remainder
            first.mul_(first_beta).add_(gradient, alpha=1 - first_beta)
            second.mul_(second_beta).addcmul_(gradient, gradient, value=1 - second_beta)
            weight *= 1 - lr * values["weight_decay"]
            root = torch.mul(second, second_scale, out=gradient).sqrt_().add_(values["eps"])
            weight -= torch.div(first, root, out=root).mul_(scale)

            dtype = before[0].dtype
            nearest = weight.to(dtype, copy=True)
            weight -= nearest
            rest = zip((weight, first, second), noise, strict=True)
            after = [nearest, *(round_stochastically(x, dtype, bits) for x, bits in rest)]
            sizes = [len(row[0]) for row in rows]
            for column, new, old in zip(list(zip(*rows, strict=True))[:4], after, before, strict=False):
                torch._foreach_copy_(column, (new if bad is None else where_bits(new, old, bad)).split(sizes))


def chunks(columns: Sequence[Sequence[Tensor]], most: int) -> Iterator[list[tuple[Tensor, ...]]]:
    """Columns of tensors, cut alike and laid end to end: lists of rows of flat pieces, `most` numbers long each."""
    rows: list[tuple[Tensor, ...]] = []
    room = most
    for tensors in zip(*columns, strict=True):
        for row in zip(*(tensor.view(-1).split(most) for tensor in tensors), strict=True):
            if rows and len(row[0]) > room:
                yield rows
                rows, room = [], most
            rows.append(row)
            room -= len(row[0])
    if rows:
        yield rows


def random_bits(step: Tensor, count: int) -> Tensor:
    """Sixteen random bits for three times so many numbers, int32 [3, count], a function of the step."""
    numbers = torch.arange(3 * count, device=step.device).view(3, count)
    return (scramble(scramble(step.long()) + numbers) & 0xFFFF).int()


def round_stochastically(values: Tensor, dtype: torch.dtype, noise: Tensor) -> Tensor:
    """Float32 numbers [n], which are overwritten, in the dtype that stores them; float32 stays as it is.

    For bfloat16, random bits (int32, n or more) are added to the 16 bits that it lacks, and a carry rounds up.
    """
    if dtype == torch.bfloat16:
        values.view(torch.int32).add_(noise[: len(values)]).bitwise_and_(-0x10000)
    return values.to(dtype)


def where_bits(new: Tensor, old: Tensor, bad: Tensor) -> Tensor:
    """The new numbers, or the old ones if `bad` is not zero. Selected by their bits: the new ones may be NaN."""
    integers = torch.int16 if new.dtype == torch.bfloat16 else torch.int32
    before = old.view(integers)
    new.view(integers).bitwise_xor_(before).bitwise_and_(-(bad == 0).to(integers)).bitwise_xor_(before)
    return new
