"""Sigmoid and Tanh: without rational values, and their units are not followed."""

from __future__ import annotations

from torch import Tensor

from vsparse.graph.ir import Node, Sigmoid, Tanh
from vsparse.stages.compress.rules import CompressionRules, register
from vsparse.stages.compress.running_error import NodeRun


@register(Sigmoid, Tanh)
class SigmoidalCompression(CompressionRules[Node]):
    """Slopes are at most 1."""

    has_exact_values = False

    def error(self, node: Node, run: NodeRun) -> Tensor:
        return run.errors[0] + run.arithmetic.function_error
