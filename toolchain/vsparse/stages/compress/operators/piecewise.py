"""ReLU, LeakyRelu and Clip: elementwise, so that units are followed and constants have an image."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import isfinite
from typing import TypeVar

import numpy as np
from torch import Tensor

from vsparse.graph.ir import Clip, Graph, LeakyRelu, Node, Relu
from vsparse.stages.compress.exact_values import ExactValues, aligned, from_fractions
from vsparse.stages.compress.reduced_graph import Mask, ReducedGraph
from vsparse.stages.compress.rules import Constants, ExactBiases, UnitByUnit, register
from vsparse.stages.compress.running_error import NodeRun

N = TypeVar("N", bound=Node)


class _PiecewiseRules(UnitByUnit[N]):
    """f(x), elementwise."""

    def image(self, node: N, value: Fraction) -> Fraction:
        """Returns f of a number."""
        raise NotImplementedError

    def constants(self, node: N, reduced: ReducedGraph, inputs: list[Constants], dead: Mapping[str, Mask]) -> Constants:
        return [None if value is None else self.image(node, value) for value in inputs[0]]


@register(Relu)
class ReluCompression(_PiecewiseRules[Relu]):
    """max(x, 0): rounds nothing, and passes on an error or less; units that are proved to be off are zero."""

    def image(self, node: Relu, value: Fraction) -> Fraction:
        return max(value, Fraction(0))

    def constants(self, node: Relu, reduced: ReducedGraph, inputs: list[Constants], dead: Mapping[str, Mask]) -> Constants:
        found = super().constants(node, reduced, inputs, dead)
        zero = dead.get(node.name, np.zeros(len(found), dtype=bool)).tolist()
        return [Fraction(0) if proved else value for value, proved in zip(found, zero, strict=True)]

    def exact(self, node: Relu, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        (x,) = inputs
        return ExactValues(np.where(x.integers > 0, x.integers, 0), x.scale)


@register(LeakyRelu)
class LeakyReluCompression(_PiecewiseRules[LeakyRelu]):
    """max(x, slope · x), one rounding where negative."""

    def image(self, node: LeakyRelu, value: Fraction) -> Fraction:
        return value if value >= 0 else value * Fraction(node.slope)

    def exact(self, node: LeakyRelu, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        (x,), slope = inputs, Fraction(node.slope)
        integers = np.where(x.integers > 0, x.integers * slope.denominator, x.integers * slope.numerator)
        return ExactValues(integers, x.scale / slope.denominator)

    def error(self, node: LeakyRelu, run: NodeRun) -> Tensor:
        return run.errors[0] + run.arithmetic.rounding(run.output)


@register(Clip)
class ClipCompression(_PiecewiseRules[Clip]):
    """min(max(x, lowest), highest), exact."""

    def image(self, node: Clip, value: Fraction) -> Fraction:
        value = value if value >= node.lowest else Fraction(node.lowest)
        return value if value <= node.highest else Fraction(node.highest)

    def exact(self, node: Clip, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        (x,) = inputs
        for end, pick in ((node.lowest, np.maximum), (node.highest, np.minimum)):
            if isfinite(end):
                left, right, scale = aligned(x, from_fractions([Fraction(end)]))
                x = ExactValues(pick(left, right), scale)
        return x

    def error(self, node: Clip, run: NodeRun) -> Tensor:
        return run.errors[0]
