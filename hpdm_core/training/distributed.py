"""One process or many: who we are, how the family is wrapped, and the few things ranks tell each other.

torchrun sets the environment; nothing here starts processes. All wrapping happens from outside the family.
"""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hpdm_core.errors import HpdmError, RankLost
from hpdm_core.families.base import Family
from hpdm_core.nn.devices import pick_device

TIMEOUT = timedelta(minutes=30)
"""Longest wait for another rank: the slowest thing between two collectives is rank 0 hashing a checkpoint."""

_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What collectives say when the process at the other end has died."""


@dataclass
class World:
    """This process among `size` ranks, and the device it computes on.

    `writers` are the same ranks for the thread that writes checkpoints; None where there is one rank, and once
    `joined_world` has left.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    writers: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this rank writes logs and checkpoints' small files."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over all ranks, on the device."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any rank; the same answer on all."""
        if self.size == 1:
            return flag
        votes = torch.tensor([float(flag)])
        dist.all_reduce(votes)
        return bool(votes.item())

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order of rank; the same list on each."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def barrier(self, group: dist.ProcessGroup | None = None) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            # On the CPU, so that waiting for rank 0's disk does not run into the accelerator's watchdog.
            dist.all_reduce(torch.zeros(1), group=group)


@contextmanager
def joined_world(device: str | None) -> Iterator[World]:
    """The world that torchrun's environment describes; joins and leaves its process group.

    Raises RankLost where the block failed because another rank did.
    """
    target = pick_device(device)
    if target.type == "cuda":
        torch.cuda.set_device(target)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(target)
        return
    backend = "cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    world = World(target, dist.get_rank(), dist.get_world_size())
    try:
        world.writers = cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=TIMEOUT))
        yield world
        world.barrier()  # no rank takes the connections down while another still uses them
    except HpdmError as error:
        traceback.clear_frames(error.__traceback__)  # they hold the model, and it the process group
        raise
    except RuntimeError as error:
        if not any(words in str(error) for words in _GONE):
            raise
        raise RankLost(
            f"rank {world.rank} lost the connection to another rank, whose message says why",
            hint="run the same command again to continue",
        ) from error
    finally:
        _leave(world)


def _leave(world: World) -> None:
    """Destroy the process groups, and with them gloo's threads.

    A group ends its threads only when nothing refers to it any more. One that still runs when the interpreter shuts
    down may want the interpreter's lock to free a tensor: before Python 3.14 that ends the process with SIGABRT.
    """
    world.writers = None
    gc.collect()  # DDP holds its group in a cycle
    dist.destroy_process_group()
    time.sleep(0.2)  # caches of DTensor keep the group of sharded weights: its threads find the lock free meanwhile


def distribute(
    family: Family,
    world: World,
    parallel: Literal["ddp", "fsdp"],
    num_roles: int,
    *,
    keep_weights: bool = False,
) -> nn.Module:
    """The callable that computes losses with gradients shared over the ranks.

    The family keeps its parameter names: DDP holds it inside, FSDP2 shards its parameters in place.
    keep_weights: of FSDP2's units, from forward to backward.
    """
    if world.size == 1:
        return family
    if parallel == "fsdp":
        if not isinstance(family, FSDPModule):  # a later phase finds it sharded already
            for unit in family.compile_units():
                fully_shard(unit, reshard_after_forward=not keep_weights)
            fully_shard(family)
            family.sharded = True
        return family
    # With several roles each backward pass reaches only some of the parameters.
    return DistributedDataParallel(family, find_unused_parameters=num_roles > 1, gradient_as_bucket_view=True)


def gradient_sync(module: nn.Module, last: bool) -> Any:
    """Context for one micro-batch: gradients are exchanged only in the `last` one of a step."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered on every rank; a whole one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
