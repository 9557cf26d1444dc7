"""What a runtime may compute in one sum: an affine operator and the additions that follow it.

Runtimes fuse MatMul + Add into Gemm, and Conv + residual Add into one kernel whose accumulator may start with the residual, without
touching a weight. The sum then has the terms of both, in any order, so its error is that of one longer sum (docs/numerics.md, section 3.3),
which can exceed one rounding of the addition's result by a factor of n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vsparse.errors import InputError
from vsparse.graph.ir import Add, AddConstant, Affine, Graph, Neg, Node, Sub
from vsparse.graph.shapes import show

# Each of n additions in a row is charged with all terms before it, so that long rows would cost the square of their length.
MOST_TERMS = 256


@dataclass(frozen=True)
class OneSum:
    """The terms of a sum that may be computed at once: affine operators, activations and constants, added or subtracted."""

    affine: tuple[Affine, ...]
    values: tuple[str, ...]
    constants: tuple[str, ...]

    @property
    def added(self) -> int:
        """How many terms are added beside the affine operators' own."""
        return len(self.values) + len(self.constants)


def one_sums(graph: Graph) -> dict[str, OneSum]:
    """Returns by name the additions and subtractions that a runtime may fuse with the affine operators they read, with all terms.

    Only activations that nothing else reads (and that are not the output) can vanish into a fused operator.
    Raises InputError for a sum of more than `MOST_TERMS` terms.
    """
    alone = {name for name, readers in graph.consumers().items() if len(readers) == 1 and name != graph.output}
    producers = {node.name: node for node in graph.nodes}
    sums = {node.name: _one_sum(node, producers, alone) for node in graph.nodes if isinstance(node, Add | AddConstant | Sub)}
    return {name: terms for name, terms in sums.items() if terms is not None}


def _one_sum(addition: Add | AddConstant | Sub, producers: Mapping[str, Node], alone: set[str]) -> OneSum | None:
    affine: list[Affine] = []
    values: list[str] = []
    constants: list[str] = []
    pending: list[Node] = [addition]
    while pending:
        node = pending.pop()
        if isinstance(node, AddConstant):
            constants.append(node.constant)
        for name in node.inputs:
            producer = producers.get(name)
            if name not in alone or not isinstance(producer, Affine | Add | AddConstant | Sub | Neg):
                values.append(name)
            elif isinstance(producer, Affine):
                affine.append(producer)
            else:
                pending.append(producer)
        if affine and len(affine) + len(values) + len(constants) > MOST_TERMS:
            raise InputError(
                f'node "{show(addition.name)}" ({type(addition).__name__}) adds up more than {MOST_TERMS} terms that a runtime may compute '
                "as one sum; add constants up before, and put a Concat and one layer in place of the additions"
            )
    return OneSum(tuple(affine), tuple(values), tuple(constants)) if affine else None
