"""Which static array each activation lies in: fused and reshaped ones share it, and it is used again when nothing reads it any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vsparse.graph.ir import Add, AddConstant, Affine, AveragePool, Graph, MaxPool, MulConstant, Relu, Reshape

INPUT = "input"
# Operators that can apply max(·, 0) to what they write.
TAKES_RELU = (Affine, Add, AddConstant, MulConstant, AveragePool, MaxPool)


@dataclass(frozen=True)
class Buffers:
    """`arrays` maps an activation to the C name of its array, `sizes` an array to its floats, `relu` an operator to the ReLU it applies."""

    arrays: dict[str, str]
    sizes: dict[str, int]
    relu: dict[str, str]


def fused_relus(graph: Graph) -> dict[str, str]:
    """Returns for each operator whose result only a ReLU reads the name of that ReLU; its result is then never stored without it."""
    readers = graph.consumers()
    fused = {}
    for node in graph.nodes:
        after = readers[node.name]
        if isinstance(node, TAKES_RELU) and node.name != graph.output and len(after) == 1 and isinstance(after[0], Relu):
            fused[node.name] = after[0].name
    return fused


def plan_buffers(graph: Graph, extents: Mapping[str, int]) -> Buffers:
    """Places every activation; `extents` gives the floats that some reader may read of an activation, where that is more than it has."""
    relu = fused_relus(graph)
    nodes = {node.name: node for node in graph.nodes}
    swallowed = {later: node for node, later in relu.items()}

    def root(name: str) -> str:
        node = nodes.get(name)
        return root(node.inputs[0]) if isinstance(node, Reshape) else swallowed.get(name, name)

    roots = {name: root(name) for name in [graph.input, *nodes]}
    need: dict[str, int] = {}
    for name, own in roots.items():
        size = int(extents.get(name, 0))
        size = max(size, nodes[name].size if name in nodes else 0)
        need[own] = max(need.get(own, 0), size)
    last = dict.fromkeys(roots.values(), 0)
    for step, node in enumerate(graph.nodes):
        for name in (node.name, *node.inputs):
            last[roots[name]] = step
    last[roots[graph.output]] = len(graph.nodes)
    arrays: dict[str, str] = {graph.input: INPUT}
    sizes: dict[str, int] = {}
    free: list[str] = []
    living: list[str] = []
    for step, node in enumerate(graph.nodes):
        for name in [name for name in living if last[name] < step]:
            living.remove(name)
            free.append(arrays[name])
        own = roots[node.name]
        if own != node.name or own in arrays:
            continue
        # The free array that has to grow least, or wastes least where none has to grow.
        best = min(free, key=lambda array: (max(need[own] - sizes[array], 0), sizes[array]), default=None)
        if best is None:
            best = f"b{len(sizes)}"
            sizes[best] = 0
        else:
            free.remove(best)
        arrays[own], sizes[best] = best, max(sizes[best], need[own])
        living.append(own)
    return Buffers({name: arrays[own] for name, own in roots.items()}, sizes, relu)
