"""MaxPool and AveragePool: the maximum or mean of one value is that value; padding never wins and the mean has none."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vsparse.graph.execute import apply
from vsparse.graph.ir import AveragePool, Graph, MaxPool
from vsparse.stages.compress.exact_values import ExactValues, IntegerArray, padded, window
from vsparse.stages.compress.reduced_graph import Mask, ReducedGraph
from vsparse.stages.compress.rules import Constants, ExactBiases, UnitByUnit, register
from vsparse.stages.compress.running_error import NodeRun, gamma

N = TypeVar("N", MaxPool, AveragePool)


class _PoolRules(UnitByUnit[N]):
    """A pool, channel by channel."""

    def constants(self, node: N, reduced: ReducedGraph, inputs: list[Constants], dead: Mapping[str, Mask]) -> Constants:
        return inputs[0]


def _windows(node: MaxPool | AveragePool, x: IntegerArray) -> list[IntegerArray]:
    return [window(x, row, column, node.stride, node.shape[1:]) for row in range(node.kernel[0]) for column in range(node.kernel[1])]


@register(MaxPool)
class MaxPoolCompression(_PoolRules[MaxPool]):
    """The maximum of a window: rounds nothing, and passes the largest error on."""

    def exact(self, node: MaxPool, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        (x,) = inputs
        total, *others = _windows(node, padded(x.integers, node.pads, x.integers.min()))
        for other in others:
            total = np.maximum(total, other)
        return ExactValues(total, x.scale)


@register(AveragePool)
class AveragePoolCompression(_PoolRules[AveragePool]):
    """The mean of a window."""

    def exact(self, node: AveragePool, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        (x,) = inputs
        total, *others = _windows(node, x.integers)
        for other in others:
            total = total + other
        return ExactValues(total, x.scale / prod(node.kernel))

    def error(self, node: AveragePool, run: NodeRun) -> Tensor:
        rounding = gamma(torch.tensor(float(prod(node.kernel))) + 1, run.arithmetic.unit_roundoff)
        return apply(node, {}, run.errors[0]) + rounding * apply(node, {}, run.inputs[0].abs()) + run.arithmetic.smallest_normal
