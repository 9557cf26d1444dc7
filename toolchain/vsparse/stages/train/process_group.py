"""The processes that train one network together: each takes its shard of every batch, and all hold the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from vsparse.compute_device import device_label, to_host
from vsparse.errors import GateError, InputError

PROCESSOR = torch.device("cpu")


@dataclass(frozen=True)
class ProcessGroup:
    """This process's `rank` in a group of `size` processes; a group of one communicates with nobody and changes no bit."""

    rank: int = 0
    size: int = 1
    cards: dist.ProcessGroup | None = None

    @classmethod
    def current(cls, device: torch.device = PROCESSOR) -> ProcessGroup:
        """Returns torch's default process group, which is gloo's, where one has been initialised, else a group of one.

        Where they train on `device`s that are cards, these sum over NCCL (`cards`). InputError, in every process, where some train on
        another kind of device.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        group = cls(dist.get_rank(), dist.get_world_size())
        group._require_same(device)
        return group if device.type == "cpu" else replace(group, cards=dist.new_group(backend="nccl"))

    def _require_same(self, device: torch.device) -> None:
        label = device_label(device)
        if not self._agree(int.from_bytes(hashlib.sha256(label.encode()).digest()[:7], "big")):
            raise InputError(
                f"the processes of this training are on different devices (this one, of rank {self.rank}, on {label}); set train.device to "
                "one that all have, such as cpu"
            )

    def _agree(self, value: int) -> bool:
        low = torch.tensor([value])
        high = low.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        return int(low) == int(high)

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
            dist.all_reduce(flat, group=self.cards)
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
        if not self._agree(int.from_bytes(digest.digest()[:7], "big")):
            raise GateError(
                "the processes that train together no longer hold the same weights, so their processors or libraries do not compute alike; "
                "train on one kind of machine, or with train.processes = 1"
            )
