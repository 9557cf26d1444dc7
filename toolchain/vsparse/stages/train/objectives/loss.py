"""What every objective returns, and how it is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from vsparse.stages.train.objectives.margins import Params


@dataclass(frozen=True)
class Loss:
    """A scalar with gradients, and the batch statistics of the clean pass by parameter name (empty without batch norm)."""

    value: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """Computes the loss of a batch: x [batch, C, H, W] in [0, 1], labels int64 [batch], weights of the clean loss and the regulariser."""

    def __call__(self, params: Params, x: Tensor, labels: Tensor, epsilon: float, kappa: float, regulariser: float) -> Loss: ...
