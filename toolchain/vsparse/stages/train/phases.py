"""A training as a list of phases, and where in it an epoch lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Phase:
    """A part of a training with one learning-rate schedule and one optimiser state.

    `ramp`: the radius grows from 0 as the recipe says; else it is full from the start. `trains`: the network's parameters, or the
    scores that a sparsifier gives them.
    """

    name: str
    epochs: int
    learning_rate: float
    ramp: bool = True
    trains: Literal["parameters", "scores"] = "parameters"


@dataclass(frozen=True)
class EpochPosition:
    """The start of an epoch: its number in the whole training, its phase, and its number in the phase, all from 0."""

    epoch: int
    index: int
    phase: Phase
    inside: int
    last: bool


def epoch_position(phases: tuple[Phase, ...], epoch: int) -> EpochPosition:
    """Returns where epoch number `epoch` lies; what is past the end is the last epoch."""
    start = 0
    for index, phase in enumerate(phases):
        last = index == len(phases) - 1
        if epoch < start + phase.epochs or last:
            return EpochPosition(epoch, index, phase, min(epoch - start, phase.epochs - 1), last)
        start += phase.epochs
    raise ValueError("a training has at least one phase")


def total_epochs(phases: tuple[Phase, ...]) -> int:
    """Returns the epochs of all phases."""
    return sum(phase.epochs for phase in phases)
