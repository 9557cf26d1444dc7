"""What every objective is given, what it returns, and how it is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from vsparse.stages.train.bounds.margins import Box, Params


@dataclass(frozen=True)
class TrainingBatch:
    """One batch and its moment: x float32 [batch, C, H, W] in [0, 1], labels int64 [batch].

    `epsilon` is the radius now and `epsilon_max` the one at the end of the ramp; `kappa` is the weight of the clean loss;
    `enclosure` asks for interval bounds of the activations, which a term of the loss will read; random draws come from `generator` alone.
    """

    x: Tensor
    labels: Tensor
    epsilon: float
    epsilon_max: float
    kappa: float
    enclosure: bool
    generator: torch.Generator


@dataclass(frozen=True)
class Loss:
    """A scalar with gradients; the batch statistics of the clean pass by parameter name (empty without batch norm); interval bounds.

    `enclosure` maps activations before the last layer to (lower, upper), with gradients, where the objective has bounded them over the
    box of `TrainingBatch.epsilon` or a part of it; None where it has not.
    """

    value: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)
    enclosure: dict[str, Box] | None = None


class Objective(Protocol):
    """Computes the loss of a batch with the parameters given, those of the graph it was made for."""

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss: ...
