"""Several processes as one: the group that torchrun starts, sums over its ranks, and who may write files.

Everything here is a no-op in a single process, so that callers never ask how many there are.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nbsnn.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process among all: number `rank` of `size`, and `local_rank` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's consecutive part of a batch [B, ...]; the parts of all processes make up the whole."""
        return batch[len(batch) * self.rank // self.size : len(batch) * (self.rank + 1) // self.size]


def started_by_torchrun() -> bool:
    """Whether the environment describes a process group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    """Number of this process on its machine, as torchrun says; 0 without it."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world() -> World:
    """The group at hand; a single process is a world of one."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), local_rank())


@contextmanager
def process_group(device: torch.device | str = "cpu") -> Iterator[World]:
    """Join the group that torchrun describes, over NCCL for CUDA devices and gloo otherwise; leave it at the end.

    Raises:
        ConfigError: the other processes cannot be reached.
    """
    if not started_by_torchrun() or dist.is_initialized():
        yield world()
        return
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        # torchrun keeps its store when it revives killed processes: what their former lives left there must not be read.
        store = dist.PrefixStore(f"life {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"cannot join the processes at {where} ({reason}); start all of them with torchrun") from None
    try:
        yield world()
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """The sum of a tensor over all processes, in each of them, on `device`, where the group's messages go."""
    if world().size == 1:
        return values
    total = values.to(device, copy=True)
    dist.all_reduce(total)
    return total


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if world().size > 1:
        dist.barrier()


@torch.no_grad()
def share_buffers_(model: nn.Module) -> None:
    """Give every process the main one's buffers: the statistics of norm layers, which each takes from its own images."""
    if world().size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
