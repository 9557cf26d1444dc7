"""What a runtime may compute in one sum: an affine operator and the additions that follow it.

Runtimes fuse MatMul + Add into Gemm, and Conv + residual Add into one kernel whose accumulator may start with the residual, without
touching a weight. The sum then has the terms of both, in any order, so its error is that of one longer sum (docs/numerics.md, section 3.3),
which can exceed one rounding of the addition's result by a factor of n.
"""

from __future__ import annotations

from collections.abc import Mapping

from vsparse.bounds.error_model import OneSum
from vsparse.bounds.rules import rules_of
from vsparse.errors import InputError
from vsparse.graph.ir import Graph, Node
from vsparse.graph.shapes import show

# Each of n additions in a row is charged with all terms before it, so that long rows would cost the square of their length.
MOST_TERMS = 256


def one_sums(graph: Graph) -> dict[str, OneSum]:
    """Returns by name the additions and subtractions that a runtime may fuse with the affine operators they read, with all terms.

    Only activations that nothing else reads (and that are not the output) can vanish into a fused operator.
    Raises InputError for a sum of more than `MOST_TERMS` terms.
    """
    alone = {name for name, readers in graph.consumers().items() if len(readers) == 1 and name != graph.output}
    producers = {node.name: node for node in graph.nodes}
    sums = {node.name: _one_sum(node, producers, alone) for node in graph.nodes if rules_of(node).in_sums == "adds"}
    return {name: terms for name, terms in sums.items() if terms is not None}


def _one_sum(addition: Node, producers: Mapping[str, Node], alone: set[str]) -> OneSum | None:
    affine: list[Node] = []
    values: list[str] = []
    constants: list[str] = []
    pending: list[Node] = [addition]
    while pending:
        node = pending.pop()
        constants += node.params
        for name in node.inputs:
            producer = producers.get(name) if name in alone else None
            part = None if producer is None else rules_of(producer).in_sums
            if producer is None or part is None:
                values.append(name)
            elif part == "starts":
                affine.append(producer)
            else:
                pending.append(producer)
        if affine and len(affine) + len(values) + len(constants) > MOST_TERMS:
            raise InputError(
                f'node "{show(addition.name)}" ({type(addition).__name__}) adds up more than {MOST_TERMS} terms that a runtime may compute '
                "as one sum; add constants up before, and put a Concat and one layer in place of the additions"
            )
    return OneSum(tuple(affine), tuple(values), tuple(constants)) if affine else None
