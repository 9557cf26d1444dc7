"""Averages of the weights over steps: exponential (EMA) or uniform over epochs' steps (SWA)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vsparse.graph import run
from vsparse.graph.ir import BatchNorm, Graph
from vsparse.recipe_train import Train


class Average:
    """A running average of parameters by name.

    ema: a ← decay · a + (1 − decay) · p after every step. swa: the mean of the parameters after every step since averaging began
    (Izmailov et al., UAI 2018, algorithm 1, with a step for a cycle). Both begin with the parameters as they are after the first step
    that they are given, at `average_from` of the phase's epochs or later: the trainer gives them only steps whose network may be
    the result, so at full radius, with final masks, packed if it is to be packed. An entry that is 0 in all of these stays exactly 0.
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
        if self.count == 1:
            self.values = {name: value.detach().clone() for name, value in params.items()}
            return
        weight = 1 - self.spec.average_decay if self.spec.average == "ema" else 1 / self.count
        with torch.no_grad():
            for name, value in params.items():
                self.values[name].lerp_(value, weight)

    def scalars(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps beside the tensors."""
        return {"count": self.count}

    def restore(self, scalars: Mapping[str, Any], values: dict[str, Tensor]) -> None:
        """Restores what a checkpoint holds."""
        self.count, self.values = int(scalars.get("count", 0)), values


def make_average(spec: Train) -> Average | None:
    """Returns the average of a recipe, None where it asks for none."""
    return None if spec.average == "none" else Average(spec)


def with_statistics(graph: Graph, params: Mapping[str, Tensor], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Returns the parameters with batch-norm statistics of their own: the mean of those of the batches, weighted by samples.

    Running statistics are those of other weights than an average of weights (Izmailov et al., UAI 2018, section 3.2). Without batch
    norm no batch is looked at.
    """
    sums: dict[str, Tensor] = {}
    if not any(isinstance(node, BatchNorm) for node in graph.nodes):
        return dict(params)
    samples = 0
    with torch.no_grad():
        for x in batches:
            found: dict[str, Tensor] = {}
            run(graph, params, x, batch_statistics=found)
            samples += len(x)
            sums = {name: len(x) * value + sums.get(name, 0) for name, value in found.items()}
    return {**params, **{name: value / samples for name, value in sums.items()}}


def with_population_statistics(graph: Graph, params: Mapping[str, Tensor], batches: Callable[[], Iterable[Tensor]]) -> dict[str, Tensor]:
    """Returns the parameters with the batch-norm statistics of all samples taken as one batch: mean and (biased) variance of each channel.

    A batch norm reads what those before it make with their own population statistics, so there is one pass over the batches (the same
    ones at every call of `batches`) for each, through the layers before it; sums are in float64. Batches of any size give the same,
    up to rounding, which `with_statistics` does not: the mean of variances within batches leaves out how the batches' means differ.
    """
    found = dict(params)
    with torch.no_grad():
        for index, node in enumerate(graph.nodes):
            if not isinstance(node, BatchNorm):
                continue
            before = replace(graph, nodes=graph.nodes[:index], output=node.inputs[0])
            parts, count = [], 0
            for x in batches():
                values = run(before, found, x).double().transpose(0, 1).flatten(1)
                parts.append(torch.stack([values.sum(1), values.square().sum(1)]))
                count += values.shape[1]
            mean, square = (torch.stack(parts).sum(0) / count).unbind()
            variance = (square - mean.square()).clamp_min(0)
            found[node.mean], found[node.variance] = mean.to(params[node.mean]), variance.to(params[node.variance])
    return found
