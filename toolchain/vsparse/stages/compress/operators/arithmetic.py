"""Sums, differences, negation, products and quotients with constants."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.graph.ir import Add, AddConstant, DivConstant, Graph, MulConstant, Neg, Node, Shape, Sub
from vsparse.stages.compress.exact_values import ExactValues, from_floats, from_fractions
from vsparse.stages.compress.reduced_graph import Mask, ReducedGraph
from vsparse.stages.compress.rules import CompressionRules, Constants, ExactBiases, UnitByUnit, per_unit, register
from vsparse.stages.compress.running_error import NodeRun

N = TypeVar("N", bound=Node)


class _RoundedOnce(CompressionRules[N]):
    """The errors of the inputs add up, with one rounding of the result."""

    def carried(self, node: N, run: NodeRun) -> Tensor:
        """Returns what the errors of the inputs become."""
        total = run.errors[0]
        for error in run.errors[1:]:
            total = total + error
        return total

    def error(self, node: N, run: NodeRun) -> Tensor:
        return self.carried(node, run) + run.arithmetic.rounding(run.output)


@register(Add)
class AddCompression(_RoundedOnce[Add], UnitByUnit[Add]):
    """a + b."""

    def constants(self, node: Add, reduced: ReducedGraph, inputs: list[Constants], dead: Mapping[str, Mask]) -> Constants:
        return [None if a is None or b is None else a + b for a, b in zip(*inputs, strict=True)]

    def exact(self, node: Add, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        return inputs[0] + inputs[1]


@register(Sub)
class SubCompression(_RoundedOnce[Sub], UnitByUnit[Sub]):
    """a − b."""

    def constants(self, node: Sub, reduced: ReducedGraph, inputs: list[Constants], dead: Mapping[str, Mask]) -> Constants:
        return [None if a is None or b is None else a - b for a, b in zip(*inputs, strict=True)]

    def exact(self, node: Sub, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        return inputs[0] + -inputs[1]


@register(Neg)
class NegCompression(UnitByUnit[Neg]):
    """−x, exact."""

    def constants(self, node: Neg, reduced: ReducedGraph, inputs: list[Constants], dead: Mapping[str, Mask]) -> Constants:
        return [None if value is None else -value for value in inputs[0]]

    def exact(self, node: Neg, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        return -inputs[0]

    def error(self, node: Neg, run: NodeRun) -> Tensor:
        return run.errors[0]


@register(AddConstant)
class AddConstantCompression(_RoundedOnce[AddConstant], UnitByUnit[AddConstant]):
    """x + c."""

    def constants(self, node: AddConstant, reduced: ReducedGraph, inputs: list[Constants], dead: Mapping[str, Mask]) -> Constants:
        added = per_unit(reduced.graph.params[node.constant], node.shape)
        return [None if a is None or b is None else a + b for a, b in zip(inputs[0], added, strict=True)]

    def pack(
        self, node: AddConstant, graph: Graph, alive: Mask, alive_in: Mask, params: dict[str, NDArray[np.float32]], exact: ExactBiases
    ) -> AddConstant:
        params[node.constant] = _sliced(params[node.constant], node.shape, alive)
        return node

    def exact(self, node: AddConstant, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        return (inputs[0] + from_floats(graph.params[node.constant])).reshape(node.shape)


@register(MulConstant)
class MulConstantCompression(_RoundedOnce[MulConstant], UnitByUnit[MulConstant]):
    """x · c."""

    def constants(self, node: MulConstant, reduced: ReducedGraph, inputs: list[Constants], dead: Mapping[str, Mask]) -> Constants:
        factors = per_unit(reduced.graph.params[node.constant], node.shape)
        pairs = zip(inputs[0], factors, strict=True)
        return [Fraction(0) if a == 0 else None if a is None or b is None else a * b for a, b in pairs]

    def pack(
        self, node: MulConstant, graph: Graph, alive: Mask, alive_in: Mask, params: dict[str, NDArray[np.float32]], exact: ExactBiases
    ) -> MulConstant:
        params[node.constant] = _sliced(params[node.constant], node.shape, alive)
        return node

    def exact(self, node: MulConstant, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        return (inputs[0] * from_floats(graph.params[node.constant])).reshape(node.shape)

    def carried(self, node: MulConstant, run: NodeRun) -> Tensor:
        return run.errors[0] * torch.tensor(run.params[node.constant]).double().abs()


@register(DivConstant)
class DivConstantCompression(_RoundedOnce[DivConstant]):
    """x / c; units are not followed."""

    def exact(self, node: DivConstant, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        divisors = graph.params[node.constant]
        factors = from_fractions([1 / Fraction(value) for value in divisors.astype(np.float64).reshape(-1).tolist()])
        return (inputs[0] * factors.reshape(divisors.shape)).reshape(node.shape)

    def carried(self, node: DivConstant, run: NodeRun) -> Tensor:
        return run.errors[0] / torch.tensor(run.params[node.constant]).double().abs()


def _sliced(constant: NDArray[np.float32], shape: Shape, alive: Mask) -> NDArray[np.float32]:
    """Returns the constant of the units that are left."""
    axis = constant.ndim - len(shape)  # the axis of the units: constants are aligned from the right
    if axis < 0 or constant.shape[axis] == 1:
        return constant
    return np.compress(alive, constant, axis=axis)
