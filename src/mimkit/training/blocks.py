"""The blocks of a model: the units of compilation, activation checkpointing (recomputation) and sharding.

Only a block's `forward` is replaced. Its weights keep their names, and hooks on its call, such as FSDP's, stay outside
of the compiled graph.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

BACKEND = "inductor"  # of torch.compile
GRAPHS = 256  # of one class of blocks at most: one for each width, grid and drop path rate (torch's limit is 8)

Forward = Callable[..., Tensor]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model: items of its lists that have several matrices, the innermost ones."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    items = {item: None for some in lists for item in some if not isinstance(item, nn.ModuleList | nn.Sequential)}
    blocks = [item for item in items if sum(parameter.ndim > 1 for parameter in item.parameters()) > 1]
    outer = {block for block in blocks for child in block.modules() if child is not block and child in blocks}
    return [block for block in blocks if block not in outer]


def prepare_blocks(model: nn.Module, *, compiled: bool = False, recomputed: bool = False) -> None:
    """Compile each block of a model at its first call, or recompute it in the backward pass, or both.

    A compiled block is recomputed compiled, so that recomputing changes no result. In `uncompiled` contexts the blocks
    run eagerly.

    Args:
        model: as it is trained, before it is sharded.
        compiled: each block is one graph, for each shape of its inputs.
        recomputed: only each block's inputs are kept for the backward pass.
    """
    for block in blocks_of(model):
        if compiled:
            block.forward = Compiled(block.forward)
        if recomputed:
            norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
            block.forward = partial(recompute_block, block.forward, norms)


class Compiled:
    """A forward pass that is compiled when it is first called; a copy of it is not compiled.

    Args:
        forward: a module's.
    """

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.compiled = torch.compile(forward, fullgraph=True, dynamic=False, backend=BACKEND)
        # DDP would cut graphs at the borders of its buckets, and a block is smaller than one.
        self.while_compiling = torch._dynamo.config.patch(recompile_limit=GRAPHS, optimize_ddp=False)

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        with self.while_compiling:
            return self.compiled(*inputs, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Forward:
        return copy.deepcopy(self.forward, memo)


def uncompiled() -> AbstractContextManager[Any]:
    """Context: nothing is compiled, and compiled blocks run eagerly: for passes of other shapes."""
    return torch.compiler.set_stance("force_eager")


def recompute_block(forward: Forward, norms: Sequence[_BatchNorm], *inputs: Any, **options: Any) -> Tensor:
    """A block's output, of which only the inputs are kept for the backward pass.

    Args:
        forward: the block's own.
        norms: in the block. The second pass leaves their running statistics alone.
    """
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)

    if norms:
        options["context_fn"] = lambda: (nullcontext(), on_copies(norms))
    return checkpoint(forward, *inputs, use_reentrant=False, **options)


@contextmanager
def on_copies(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Context: batch norms update copies of their running statistics."""
    statistics = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, statistics, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, statistics, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def require_compiler(device: torch.device, flag: str = "--compile") -> None:
    """Compile a sum, to find out early whether anything can be.

    Args:
        device: to compile for.
        flag: that requests it.

    Raises:
        ValueError: nothing can be compiled.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # slow to import

    compiled = torch.compile(lambda x: x + 1, fullgraph=True, dynamic=False, backend=BACKEND)
    try:
        compiled(torch.ones(2, device=device))
    except RuntimeError as error:
        cause = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
        said = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        needed = "a C++ compiler (CXX names it)" if device.type == "cpu" else "Triton and a C compiler"
        raise ValueError(f"{flag} needs {needed} for --device {device}: {said}") from error
