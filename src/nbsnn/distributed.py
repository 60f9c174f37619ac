"""The process group of torchrun, sums over its ranks, and which process writes files.

Everything here is a no-op in a single process, so callers need not check the number of processes.
"""

import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nbsnn.errors import ConfigError, LostPeerError, NbsnnError

# How messages of gloo and NCCL about a lost peer begin.
_LOST = ("gloo", "Connection closed by peer", "NCCL", "ProcessGroup")


@dataclass(frozen=True)
class World:
    """This process among all: number `rank` of `size`, and `local_rank` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints messages: rank 0."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's consecutive part of a batch [B, ...]; concatenated over processes they give the batch."""
        return batch[len(batch) * self.rank // self.size : len(batch) * (self.rank + 1) // self.size]


def started_by_torchrun() -> bool:
    """Whether the environment describes a process group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank_in_environment() -> int:
    """Rank of this process as set by torchrun, also without a process group; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Rank of this process on its machine, as set by torchrun; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world() -> World:
    """The current process group; a single process is a group of size 1."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), local_rank())


@contextmanager
def process_group(device: torch.device | str = "cpu") -> Iterator[World]:
    """Join the group that torchrun describes, over NCCL for CUDA devices and gloo otherwise; leave it at the end.

    Raises:
        ConfigError: the other processes cannot be reached.
        LostPeerError: another process ended while this one waited for it.
    """
    if not started_by_torchrun() or dist.is_initialized():
        yield world()
        return
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        # torchrun keeps its store when it revives killed processes: keys of their earlier processes must not be read.
        store = dist.PrefixStore(_name_this_life(store, rank, size), store)  # type: ignore[attr-defined]
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"cannot join the processes at {where} ({reason}); start all of them with torchrun") from None
    try:
        yield world()
    except RuntimeError as error:
        if isinstance(error, NbsnnError) or not any(word in str(error) for word in _LOST):
            raise
        raise LostPeerError("another process ended while this one waited for it; see its message") from error
    dist.destroy_process_group()  # after an error it could wait for processes that have ended


def _name_this_life(store: Any, rank: int, size: int) -> str:
    """A name that all processes of a group agree on, and that no earlier group of theirs had.

    torchrun's count of restarts is not enough: it does not change on machines whose processes did not fail. So rank 0 draws a
    name and answers each greeting with it until all have confirmed; answers to processes that have ended are lost.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", own)
        name: str = store.get(f"answer/{own}").decode()
        store.set(f"here/{name}/{rank}", "")
        return name
    missing, deadline = set(range(1, size)), time.monotonic() + store.timeout.total_seconds()
    while missing:
        for other in [other for other in missing if store.check([f"hello/{other}"])]:
            store.set(f"answer/{store.get(f'hello/{other}').decode()}", own)
            if store.check([f"here/{own}/{other}"]):
                missing.discard(other)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(missing)} of {size} processes did not come")
        time.sleep(0.01)
    return own


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in each of them; a new tensor, where `values` is."""
    return _reduce(values, dist.ReduceOp.SUM)


def max_over_ranks(values: Tensor) -> Tensor:
    """The largest of a tensor's values over all processes, in each of them; a new tensor, where `values` is."""
    return _reduce(values, dist.ReduceOp.MAX)


def _reduce(values: Tensor, how: Any) -> Tensor:
    if world().size == 1:
        return values.clone()
    where = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    total = values.to(where, copy=True)
    dist.all_reduce(total, how)
    return total.to(values.device)


def is_revived() -> bool:
    """Whether torchrun restarted any of the processes after one died. All processes must call this function."""
    return bool(max_over_ranks(torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))))


def warn(logger: logging.Logger, text: str, *values: object) -> None:
    """Log a warning in rank 0 only, for what all processes see."""
    if world().is_main:
        logger.warning(text, *values)


def wait_for_all() -> None:
    """Wait until every process has reached this call."""
    if world().size > 1:
        dist.barrier()


@torch.no_grad()
def broadcast_buffers_(model: nn.Module) -> None:
    """Broadcast rank 0's buffers: the statistics of norm layers, which each process takes from its own images."""
    if world().size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
