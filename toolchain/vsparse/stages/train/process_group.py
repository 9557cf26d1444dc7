"""The processes that train one network together: each takes its shard of every batch, and all hold the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vsparse.compute_device import to_host
from vsparse.errors import GateError


@dataclass(frozen=True)
class ProcessGroup:
    """This process's `rank` in a group of `size` processes; a group of one communicates with nobody and changes no bit."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> ProcessGroup:
        """Returns torch's default process group where one has been initialised, else a group of one."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else cls()

    @property
    def is_rank_0(self) -> bool:
        """Whether this is the process that evaluates, writes checkpoints and reports."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """Returns which of `count` samples this process takes: shards that differ by at most one sample, in order of rank."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def all_reduce(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Replaces each tensor by the sum over the processes of `weight` times it, in place and to the same bits everywhere."""
        if self.size == 1:
            return
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).mul_(weight)
            dist.all_reduce(flat)
            start = 0
            for tensor in tensors:
                tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
                start += tensor.numel()

    def broadcast(self, values: Iterable[float]) -> list[float]:
        """Returns the values of rank 0, in every process."""
        sent = torch.tensor(list(values), dtype=torch.float64)
        if self.size > 1:
            dist.broadcast(sent, 0)
        return [float(value) for value in sent]

    def require_equal(self, params: Mapping[str, Tensor]) -> None:
        """Raises GateError, in every process, unless all hold the same parameters to the bit."""
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for name in sorted(params):
            digest.update(name.encode() + to_host(params[name]).contiguous().numpy().tobytes())
        low = torch.tensor([int.from_bytes(digest.digest()[:7], "big")])
        high = low.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        if int(low) != int(high):
            raise GateError(
                "the processes that train together no longer hold the same weights, so their processors or libraries do not compute alike; "
                "train on one kind of machine, or with train.processes = 1"
            )
