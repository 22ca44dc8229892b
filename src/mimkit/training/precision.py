"""The precision to train in: which one a device computes fast in, and a model prepared for it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mimkit.training.distributed import local_tensor

Precision = Literal["bf16", "bf16-pure", "fp32"]


def for_training(model: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """The model, on its device, in training mode, and in "bf16-pure" with weights and buffers in bfloat16.

    Batch norms stay float32: their statistics move by small steps, and torch requires their weights in the same dtype.
    Targets and losses, which have no weights of their own, are computed in float32; norms, softmax and matrix products
    accumulate in float32.
    """
    train_mode(model.to(device))
    if precision == "bf16-pure":
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        kept = {tensor for norm in norms for tensor in tensors_of(norm)}
        for tensor in tensors_of(model):
            if tensor.dtype == torch.float32 and tensor not in kept:
                tensor.data = tensor.data.bfloat16()
    return model


def train_mode(model: nn.Module) -> None:
    """Training mode, but evaluation mode where all parameters are frozen, which matters to batch norms and dropout."""
    model.train()
    for module in model.modules():
        if is_frozen(module):
            module.eval()


def is_frozen(module: nn.Module) -> bool:
    """Whether it has parameters, and none is trainable."""
    parameters = [*module.parameters()]
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def frozen_children(model: nn.Module) -> list[str]:
    """Names of a model's direct children whose parameters are all frozen, such as an encoder under a linear head."""
    return [name for name, child in model.named_children() if is_frozen(child)]


def refuse_batch_norms(model: nn.Module, processes: int) -> None:
    """Ranks exchange gradients of one dtype only.

    Raises:
        ValueError: the model has batch norms.
    """
    count = sum(isinstance(module, _BatchNorm) for module in model.modules())
    if count:
        raise ValueError(
            f"--precision bf16-pure keeps {count} batch norms in float32, which {processes} processes cannot train "
            "together: use --precision bf16"
        )


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Context: bfloat16 tensors are float32 inside, as they will be when loaded, and restored after."""
    kept = {tensor: tensor.data for tensor in tensors_of(model) if tensor.dtype == torch.bfloat16}
    for tensor, values in kept.items():
        tensor.data = values.float()
    try:
        yield
    finally:
        for tensor, values in kept.items():
            tensor.data = values


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def widened(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies of tensors, in float32 where they are bfloat16."""
    given = [tensor.detach() for tensor in tensors]
    copies = [torch.empty_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in given]
    torch._foreach_copy_([local_tensor(copy) for copy in copies], [local_tensor(tensor) for tensor in given])
    return copies


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast for a forward pass. Casts of weights are not cached: a step uses each weight once."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def choose_precision(device: torch.device) -> Precision:
    """bf16 on GPUs and on CPUs that multiply it in hardware, float32 elsewhere."""
    if device.type != "cpu":
        return "bf16"
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.9 cannot tell
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
