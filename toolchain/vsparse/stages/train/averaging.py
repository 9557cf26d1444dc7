"""Averages of the weights over steps: exponential (EMA) or uniform over epochs' steps (SWA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vsparse.recipe_train import Train


class Average:
    """A running average of parameters by name.

    ema: a ← decay · a + (1 − decay) · p after every step. swa: the mean of the parameters after every step since averaging began
    (Izmailov et al., UAI 2018, equation 1, with a step for a cycle). Both begin at `average_from` of the phase's epochs, with the
    parameters as they are then. Batch-norm statistics are averaged with the rest. An entry that is 0 in all of them stays exactly 0.
    """

    def __init__(self, spec: Train) -> None:
        self.spec = spec
        self.count = 0
        self.values: dict[str, Tensor] = {}

    def update(self, params: Mapping[str, Tensor], position: float, epochs: int) -> None:
        """Takes in the parameters at an epoch position of a phase."""
        if position < self.spec.average_from * epochs:
            return
        self.count += 1
        if self.count == 1 or any(self.values[name].shape != value.shape for name, value in params.items()):
            self.count = 1
            self.values = {name: value.detach().clone() for name, value in params.items()}
            return
        weight = 1 - self.spec.average_decay if self.spec.average == "ema" else 1 / self.count
        with torch.no_grad():
            for name, value in params.items():
                self.values[name].lerp_(value, weight)

    def params(self, now: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns the averaged parameters, those of `now` before averaging began."""
        return self.values if self.count else now

    def scalars(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps beside the tensors."""
        return {"count": self.count}

    def restore(self, scalars: Mapping[str, Any], values: dict[str, Tensor]) -> None:
        """Goes on from a checkpoint."""
        self.count, self.values = int(scalars.get("count", 0)), values


def make_average(spec: Train) -> Average | None:
    """Returns the average of a recipe, None where it asks for none."""
    return None if spec.average == "none" else Average(spec)
