"""The scale of a regression's answers: trained in standard deviations of the training targets, deployed in the targets' own unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph.ir import Gemm, Graph


@dataclass(frozen=True)
class AnswerScale:
    """Mean and standard deviation of the training split's targets."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, train: Dataset) -> AnswerScale | None:
        """Returns the scale of a training split; None for one of classes, InputError where all targets are the same."""
        if train.targets is None:
            return None
        mean, deviation = float(np.mean(train.targets)), float(np.std(train.targets))
        if not deviation > 0:
            raise InputError(f"all {len(train)} training samples have the target {mean:g}, so that there is nothing to predict")
        return cls(mean, deviation)

    def standardised(self, targets: NDArray[np.float64]) -> Tensor:
        """Returns targets [n] as float32 in standard deviations from the mean."""
        return torch.from_numpy(((targets - self.mean) / self.deviation).astype(np.float32))

    def undone(self, graph: Graph) -> Graph:
        """Returns the network whose answers are in the targets' unit: the scale goes into the last layer, and zeros stay zeros."""
        last = last_layer(graph)
        arrays = dict(graph.params)
        weight, bias = arrays[last.weight].astype(np.float64), arrays[str(last.bias)].astype(np.float64)
        arrays[last.weight] = (weight * self.deviation).astype(np.float32)
        arrays[str(last.bias)] = (bias * self.deviation + self.mean).astype(np.float32)
        return graph.with_params(arrays)


def last_layer(graph: Graph) -> Gemm:
    """Returns the linear layer that a network of regression ends in; InputError where it does not end in one with one output and a bias."""
    last, shape = graph.node(graph.output), graph.shape_of(graph.output)
    if not isinstance(last, Gemm) or last.bias is None or tuple(shape) != (1,):
        raise InputError(
            f"regression wants a network that ends in a linear layer with one output and a bias; this one ends in {type(last).__name__} "
            f"with {list(shape)}; end it in torch.nn.Linear(units, 1)"
        )
    shared = sum(last.weight in _parameters(node) or last.bias in _parameters(node) for node in graph.nodes)
    if shared > 1:
        raise InputError("regression wants a last layer whose weights no other layer shares; give it its own")
    return last


def _parameters(node: object) -> tuple[object, ...]:
    return tuple(getattr(node, name, None) for name in ("weight", "bias"))
