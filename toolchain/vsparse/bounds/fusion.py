"""What a runtime may compute in one sum: an affine operator and the additions that follow it.

Runtimes fuse MatMul + Add into Gemm, and Conv + residual Add into one kernel whose accumulator may start with the residual, without
touching a weight. The sum then has the terms of both, in any order, so its error is that of one longer sum (NUMERICS 2 with
n + 1 terms), which can exceed one rounding of the addition's result by a factor of n.
"""

from __future__ import annotations

from dataclasses import dataclass

from vsparse.graph.ir import Add, AddConstant, Affine, Graph, Neg, Node, Sub


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


def one_sum(graph: Graph, node: Node) -> OneSum | None:
    """Returns the terms of an addition or subtraction that a runtime may fuse with the affine operators it reads, or None.

    Only activations that nothing else reads (and that are not the output) can vanish into a fused operator.
    """
    if not isinstance(node, Add | AddConstant | Sub):
        return None
    readers = graph.consumers()
    producers = {one.name: one for one in graph.nodes}
    affine: list[Affine] = []
    values: list[str] = []
    constants: list[str] = []

    def expand(name: str) -> None:
        producer = producers.get(name)
        alone = len(readers[name]) == 1 and name != graph.output
        if alone and isinstance(producer, Affine):
            affine.append(producer)
        elif alone and isinstance(producer, Add | AddConstant | Sub):
            collect(producer)
        elif alone and isinstance(producer, Neg):
            expand(producer.inputs[0])
        else:
            values.append(name)

    def collect(addition: Add | AddConstant | Sub) -> None:
        if isinstance(addition, AddConstant):
            constants.append(addition.constant)
        for name in addition.inputs:
            expand(name)

    collect(node)
    return OneSum(tuple(affine), tuple(values), tuple(constants)) if affine else None
