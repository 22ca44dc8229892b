"""Ranks that train one model together: process group, collectives, DDP and FSDP.

`torchrun` starts them. Each computes the loss of its slice of every batch; gradients are averaged, which is the whole
batch's gradient, as the slices are equal. Plain values are exchanged over gloo, which waits for no device.
"""

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mimkit.training.blocks import blocks_of

Parallel = Literal["ddp", "fsdp"]
Value = TypeVar("Value")

TIMEOUT = timedelta(hours=2)  # the other ranks wait while the main process evaluates; one that dies is noticed at once


@dataclass(frozen=True, eq=False)
class World:
    """The ranks that train together, and which one this is. Rank 0, the main process, writes files and prints.

    Args:
        rank: of this process.
        size: number of ranks.
        parallel: ddp: each holds the whole model; fsdp: each holds a shard of every parameter.
    """

    rank: int = 0
    size: int = 1
    parallel: Parallel = "ddp"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each rank holds only a shard of each parameter."""
        return self.size > 1 and self.parallel == "fsdp"

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank has it set."""
        if self.size == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes]

    def gather(self, value: Value) -> list[Value]:
        """Each rank's value, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[[], Value]) -> Value:
        """The result of `work`, which only the main process does. All ranks return it, or raise what it raised."""
        if self.size == 1:
            return work()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = work()
            except Exception as error:  # whatever it is, the other ranks wait for an answer
                box[1] = portable(error)
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def mean(self, value: Tensor) -> Tensor:
        """A tensor's mean over all ranks, computed on its device."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value


SINGLE = World()


def portable(error: Exception) -> Exception:
    """The error, or a RuntimeError with its message if it cannot be copied, and so not be sent to other ranks."""
    try:
        copy.copy(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def process_group(device: torch.device, parallel: Parallel = "ddp") -> Iterator[World]:
    """Inside, the processes that torchrun started form a `World`; without torchrun it is `SINGLE`."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield SINGLE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=fresh_store(store, rank, size), rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield World(rank, size, parallel)
    finally:
        with contextlib.suppress(RuntimeError):  # after a failure of another rank there may be no group left
            dist.destroy_process_group()


def fresh_store(store: dist.Store, rank: int, size: int) -> dist.Store:
    """The store under a new prefix, without what an earlier start of this job has left in it.

    torchrun keeps its store when it restarts processes, and with it the addresses of those that died. So the main
    process makes up a prefix and answers each rank that asks, under a name of that rank's own, until all have it.

    Raises:
        ConnectionError: some ranks have not asked within the store's timeout.
    """
    mine = uuid4().hex
    if rank:
        store.set(f"mimkit/ask/{rank}", mine)
        name = store.get(f"mimkit/answer/{mine}").decode()
        store.set(f"mimkit/heard/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    others = set(range(1, size))
    deadline = time.monotonic() + store.timeout.total_seconds()  # type: ignore[attr-defined]
    while others:
        if time.monotonic() > deadline:
            raise ConnectionError(f"of {size} processes, these have not come: {', '.join(map(str, sorted(others)))}")
        for other in sorted(others):
            if store.check([f"mimkit/ask/{other}"]):
                store.set(f"mimkit/answer/{store.get(f'mimkit/ask/{other}').decode()}", mine)
            if store.check([f"mimkit/heard/{mine}/{other}"]):
                others.remove(other)
        time.sleep(0.01)
    return dist.PrefixStore(mine, store)


def torchrun_job() -> str | None:
    """The id of the torchrun job that this process belongs to, the same after a restart; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name in (None, "none") else name


def parallelized(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The model in DDP or FSDP; its parameters stay the model's own.

    Args:
        model: on its device, with one tensor as its output, which DDP and FSDP hang their hooks on. With fsdp its
            parameters are replaced by shards, and its blocks gathered one at a time.
        world: the ranks.
        device: the model's.
    """
    if world.size == 1:
        return model
    if not world.sharded:
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    mesh = init_device_mesh(device.type, (world.size,))
    for module in (*blocks_of(model), model):
        fully_shard(module, mesh=mesh)
    return model


def gradient_sync(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Around the forward and backward pass of one micro-batch: ranks exchange gradients in a batch's last one only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    return model.no_sync() if not last and isinstance(model, DistributedDataParallel) else nullcontext()


def full_tensor(value: Tensor) -> Tensor:
    """A tensor gathered from its shards; all ranks must call."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_tensor(value: Tensor) -> Tensor:
    """This rank's shard of a tensor, which is all of it unless it is sharded."""
    return value.to_local() if isinstance(value, DTensor) else value


def placed_like(value: Tensor, other: Tensor) -> Tensor:
    """A full tensor on the other's device and, where the other is sharded, this rank's shard of it."""
    value = value.to(other.device)
    if isinstance(other, DTensor) and value.shape == other.shape:
        return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
    return value
