"""The ranks of a run: which of them this process is, how they meet, and what they tell each other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # public, but not exported for mypy
from torch.distributed.rendezvous import rendezvous

from pipeline.config import ConfigError
from pipeline.launched import LostRankError, is_launched


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among the ranks of a run. One process alone is a world of size 1, which tells itself everything.

    Every method but the properties is for all ranks at the same point of the program: it returns when all have come.
    What is told travels over gloo from the host's memory, also where gradients and buffers travel over NCCL.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the ranks of this host."""
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> list[Tensor]:
        """`rows` of every rank, in order of rank; on the CPU, of one shape and dtype."""
        if self.size == 1:
            return [rows]
        every = [torch.empty_like(rows) for _ in range(self.size)]
        with told_if_lost():
            dist.all_gather(every, rows.contiguous())
        return every

    def sum(self, rows: Tensor) -> Tensor:
        """The sum of `rows` over the ranks, added in order of rank: the same bits whoever asks, and whenever."""
        return reduce(torch.add, self.gather(rows))

    def greatest(self, number: float) -> float:
        """The greatest of the ranks' numbers."""
        return float(torch.stack(self.gather(torch.tensor(number, dtype=torch.float64))).max())

    def wait(self) -> None:
        """Wait for every rank to come here."""
        self.greatest(0)

    def gather_values(self, value: Any) -> list[Any]:
        """`value` of every rank, in order of rank; it is pickled."""
        if self.size == 1:
            return [value]
        every = [None] * self.size
        with told_if_lost():
            dist.all_gather_object(every, value)
        return every

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the first one's buffers (the running statistics of batch normalisation)."""
        if self.size > 1:
            with told_if_lost():
                for buffer in model.buffers():
                    dist.broadcast(buffer, src=0)


ALONE = World()
_MEET_POLL_S = 0.02


@contextmanager
def told_if_lost() -> Iterator[None]:
    """Whatever torch says of a connection that broke becomes a `LostRankError`."""
    try:
        yield
    except RuntimeError as error:
        if not _is_of_a_lost_rank(error):
            raise
        raise LostRankError("another rank has ended; what it says is the cause") from error


@contextmanager
def join_world(*, on_cuda: bool) -> Iterator[World]:
    """This process's place in the world that its launcher made; alone where there was none.

    Joins torch.distributed's default group, and leaves it with the block; a group that is there already stays.

    Raises:
        ConfigError: the launcher does not say which of this host's ranks this is, and of how many.
    """
    size = int(os.environ["WORLD_SIZE"]) if is_launched() else 1
    owned = size > 1 and not dist.is_initialized()
    if owned:
        rank, backend = int(os.environ["RANK"]), "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
        store, _, _ = next(rendezvous("env://"))
        own_store = PrefixStore(meet(store, rank, size), store)
        dist.init_process_group(backend, store=own_store, rank=rank, world_size=size)
    if not dist.is_initialized():
        yield World()
        return
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), **_place_on_host())
    finally:
        if owned:
            dist.destroy_process_group()


def meet(store: Store, rank: int, size: int) -> str:
    """A name for this start of the ranks, which only those that are in it can know; returns when all are there.

    torchrun lends a restart the store of the start before, with the addresses of ranks that are dead by now: a rank
    that is early would try to reach them. Here no rank believes what it has not got an answer to.
    """
    if rank > 0:
        own = uuid4().hex
        store.set(f"hello/{rank}", own)
        name = str(store.get(f"name for/{own}").decode())
        store.set(f"there/{name}/{rank}", "")
        return name
    name, there = uuid4().hex, {0}
    while len(there) < size:
        for other in set(range(size)) - there:
            if store.check([f"hello/{other}"]):  # of this start, or of one before: then nobody waits for the answer
                store.set(f"name for/{store.get(f'hello/{other}').decode()}", name)
            if store.check([f"there/{name}/{other}"]):
                there.add(other)
        time.sleep(_MEET_POLL_S)
    return name


def _place_on_host() -> dict[str, int]:
    missing = [name for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"the launcher has not set {' and '.join(missing)}, as torchrun does; under Slurm they are SLURM_LOCALID "
            "and the tasks of a node"
        )
    return {"local_rank": int(os.environ["LOCAL_RANK"]), "local_size": int(os.environ["LOCAL_WORLD_SIZE"])}


def _is_of_a_lost_rank(error: RuntimeError) -> bool:
    # gloo raises plain RuntimeErrors: their words are all there is to tell them by.
    words = str(error)
    return isinstance(error, dist.DistError) or "gloo" in words or "onnection" in words
