"""Which share is this process's? The ranks of a job that `torchrun` started, and how they agree.

A job of one process has one rank, 0 of 1; then everything here gives back what it was given, and there is no process
group.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from tarflow.config import ConfigError

Value = TypeVar("Value")
LAUNCHER_LOOKS_SECONDS = 1.0  # within which torchrun, which looks ten times a second, has seen that a process ended


class FirstRankFailed(Exception):
    """Rank 0 failed at what all wait for, and says why; this process has nothing to add."""


class RankLost(RuntimeError):
    """The connection to another process of the job broke: it was killed, or ended by an error of its own."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the job.

    Attributes:
        rank, size: 0 … size-1, over all nodes. local_rank, local_size: among those of this node.
        host: the process group in which the hosts talk to each other, by tensors on the CPU (None is the default one).
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    host: Any = None

    @classmethod
    def from_environment(cls) -> Ranks:
        """What `torchrun` says of this process; one of one where nothing started it. ConfigError names what is off."""
        if "WORLD_SIZE" not in os.environ:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        values = []
        for name in names:
            text = os.environ.get(name, "")
            if not text.isdecimal():
                raise ConfigError(f"{name}: expected a number, as torchrun sets it beside WORLD_SIZE, got {text!r}")
            values.append(int(text))
        ranks = cls(*values)
        if not (ranks.rank < ranks.size and ranks.local_rank < ranks.local_size <= ranks.size):
            given = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            raise ConfigError(f"{given}: expected a rank below the number of ranks; start the job with torchrun")
        return ranks

    def within(self, host: Any) -> Ranks:
        """The same rank, with its host group."""
        return dataclasses.replace(self, host=host)

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that writes files and reports."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The neighbours among 0 … count-1 that are this rank's. Each is in one share; shares differ by one at most.

        >>> [Ranks(rank, 3).share(7) for rank in range(3)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
        """
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, values: Sequence[Tensor], host: bool = False) -> list[Tensor]:
        """Each tensor summed over the ranks, in one message of float64; in the dtypes that came.

        Args:
            values: of the same shapes on all ranks; on the device, or on the CPU where `host` says so.
        """
        if self.alone:
            return list(values)
        message = torch.cat([value.detach().double().flatten() for value in values])
        torch.distributed.all_reduce(message, group=self.host if host else None)
        parts = message.split([value.numel() for value in values])
        return [part.view_as(value).to(value.dtype) for part, value in zip(parts, values, strict=True)]

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers; nobody goes on before all have come here."""
        if self.alone:
            return number
        message = torch.tensor(number, device="cpu", dtype=torch.int64)
        torch.distributed.all_reduce(message, torch.distributed.ReduceOp.MAX, group=self.host)
        return int(message)

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order, on every rank. They are pickled: our own processes made them."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value, group=self.host)
        return found

    def on_first(self, function: Callable[[], Value]) -> Value:
        """What `function` gives on rank 0, which alone calls it, on every rank; nobody goes on before it is done.

        Raises what it raises on rank 0, and `FirstRankFailed` on the others.
        """
        if self.alone:
            return function()
        message: list[Any] = [None, None]
        error: BaseException | None = None
        if self.first:
            try:
                message[0] = function()
            except Exception as raised:
                error, message[1] = raised, f"{type(raised).__name__}: {raised}"
        torch.distributed.broadcast_object_list(message, src=0, group=self.host)
        if error is not None:
            raise error
        if message[1] is not None:
            raise FirstRankFailed(message[1])
        return message[0]

    @contextlib.contextmanager
    def connection(self) -> Iterator[None]:
        """Raise RankLost where the connection between the ranks breaks within it.

        A survivor cannot tell which rank is gone. `torchrun` reports the first process whose end it sees, and its exit
        code; so survivors stay until it has looked.
        """
        try:
            yield
        except RuntimeError as error:  # torch's own of communication, or gloo's, which name a file of it
            broken = not self.alone and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower())
            if not broken:
                raise
            time.sleep(LAUNCHER_LOOKS_SECONDS)
            raise RankLost(
                f"rank {self.rank} of {self.size} lost the connection to another rank, which is gone"
            ) from error

    def check_same(self, what: str, value: object) -> None:
        """Raise ConfigError on every rank where `value`, called `what`, is not the same on all."""
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ConfigError(f"{what}: expected the same on every rank, but rank {rank} has others than rank 0")


ALONE = Ranks()
"""A job of one process."""
