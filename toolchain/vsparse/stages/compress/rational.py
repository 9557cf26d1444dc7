"""Evaluation of a graph in exact rational arithmetic, on integers with one common scale for each activation."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Graph
from vsparse.stages.compress.exact_values import from_floats
from vsparse.stages.compress.reduced_graph import apply_masks
from vsparse.stages.compress.rules import rules_of


def has_exact_values(graph: Graph) -> bool:
    """Returns whether every operator maps rational numbers to rational ones that can be told here."""
    return all(rules_of(node).has_exact_values for node in graph.nodes)


def evaluate(graph: Graph, x: NDArray[np.floating[Any]], biases: dict[str, list[Fraction]] | None = None) -> list[Fraction]:
    """Returns the exact outputs for one input x [*input_shape], floating point taken at face value.

    `biases` gives exact values for biases by parameter name, in place of the float32 ones. Cost: about 0.1 µs for each
    multiply-accumulate with a non-zero weight. InputError, which names the node, for an operator without rational values.
    """
    values = {graph.input: from_floats(x)}
    for node in apply_masks(graph, {}).nodes:
        values[node.name] = rules_of(node).exact(node, graph, biases or {}, [values[name] for name in node.inputs])
    return values[graph.output].fractions()
