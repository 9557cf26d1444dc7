"""What the steps of an epoch found: losses and norms of gradients, read back from a device in groups, so that few steps wait for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from vsparse.compute_device import reading_back

# Steps between two readings: a divergence is found at most so many steps late, and always before the epoch's checkpoint is written.
GROUP = 50


@dataclass
class StepFindings:
    """Sums up the losses of an epoch's steps; `total` is the sum of loss times samples of all that were read.

    `losses` and `norms` are those of the steps that were read, in their order.
    """

    total: float = 0.0
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor, int]] = []

    def add(self, loss: Tensor, norm: Tensor, samples: int) -> float | None:
        """Takes in one step, numbers of the group's whole batch of `samples`; returns what `read` does where it was time to read."""
        self._waiting.append((loss, norm, samples))
        if loss.device.type == "cpu" or len(self._waiting) >= GROUP:
            return self.read()
        return None

    def read(self) -> float | None:
        """Reads all steps since the last reading; returns the loss of the first whose norm is not finite, None where all are."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return None
        if len(waiting) == 1:
            with reading_back("the loss of a step"):
                losses, norms = [float(waiting[0][0])], [float(waiting[0][1])]
        else:
            with reading_back("the losses of some steps"):
                losses, norms = torch.stack([torch.stack([loss, norm]) for loss, norm, _ in waiting]).T.tolist()
        for loss, norm, (_, _, samples) in zip(losses, norms, waiting, strict=True):
            if not isfinite(norm):
                return loss
            self.total += loss * samples
            self.losses.append(loss)
            self.norms.append(norm)
        return None
