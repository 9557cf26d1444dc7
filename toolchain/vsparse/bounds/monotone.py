"""Operators that do not decrease in any of their inputs: their ends come from the ends of the inputs."""

from __future__ import annotations

from typing import TypeVar

from vsparse.bounds.ball import Box
from vsparse.bounds.rules import BoundRules, Params
from vsparse.graph.execute import apply
from vsparse.graph.ir import Node

N = TypeVar("N", bound=Node)


class Monotone(BoundRules[N]):
    """The interval of a non-decreasing operator is its own execution at both ends."""

    def interval(self, node: N, params: Params, inputs: list[Box]) -> Box:
        return apply(node, params, *(lower for lower, _ in inputs)), apply(node, params, *(upper for _, upper in inputs))
