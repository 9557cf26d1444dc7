"""Moves of data: what is exact follows from where their elements come from (`bounds.element_moves`)."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds.element_moves import element_sources, move_rules
from vsparse.graph.ir import Graph, Move, Node, Reshape
from vsparse.stages.compress.exact_values import ExactValues, aligned, from_fractions
from vsparse.stages.compress.reduced_graph import Mask, ReducedGraph
from vsparse.stages.compress.rules import CompressionRules, Constants, ExactBiases, register
from vsparse.stages.compress.running_error import NodeRun

N = TypeVar("N", bound=Node)


@register(Move)
class MoveCompression(CompressionRules[N]):
    """A move whose units are not followed."""

    def exact(self, node: N, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        sources = element_sources(node, [graph.shape_of(name) for name in node.inputs]).numpy()
        # The constant comes last, where −1 counts from behind.
        one = ExactValues(np.zeros(0, dtype=object), inputs[0].scale)
        for other in (*inputs, from_fractions([Fraction(move_rules(node).constant(node))])):
            left, right, scale = aligned(one, other)
            one = ExactValues(np.concatenate([left, right.reshape(-1)]), scale)
        return ExactValues(one.integers[sources].reshape(node.shape), one.scale)

    def error(self, node: N, run: NodeRun) -> Tensor:
        return move_rules(node).moved(node, 0.0, *run.errors)


@register(Reshape)
class ReshapeCompression(CompressionRules[Reshape]):
    """Units that share an element before and after stand and fall together."""

    def ties(self, node: Reshape, graph: Graph, name: str) -> NDArray[np.int64]:
        source, element = graph.shape_of(name), np.arange(node.size)
        pairs = np.stack([element // (node.size // source[0]), element // (node.size // node.shape[0])])
        return np.unique(pairs, axis=1)

    def constants(self, node: Reshape, reduced: ReducedGraph, inputs: list[Constants], dead: Mapping[str, Mask]) -> Constants:
        (values,), source = inputs, reduced.graph.shape_of(node.inputs[0])
        before, after = prod(source) // source[0], prod(source) // node.shape[0]
        result: Constants = []
        for unit in range(node.shape[0]):
            parts = {values[part] for part in range(unit * after // before, ((unit + 1) * after - 1) // before + 1)}
            result.append(parts.pop() if len(parts) == 1 else None)
        return result

    def exact(self, node: Reshape, graph: Graph, biases: ExactBiases, inputs: list[ExactValues]) -> ExactValues:
        return inputs[0].reshape(node.shape)
