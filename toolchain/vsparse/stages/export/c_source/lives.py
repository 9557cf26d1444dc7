"""Which activations share an array: fused and reshaped ones do, and each array lives from its writer to its last reader."""

from __future__ import annotations

from dataclasses import dataclass

from vsparse.graph.ir import Add, AddConstant, Affine, AveragePool, Graph, MaxPool, MulConstant, Relu, Reshape

INPUT = "input"
# Operators that can apply max(·, 0) to what they write.
TAKES_RELU = (Affine, Add, AddConstant, MulConstant, AveragePool, MaxPool)


@dataclass(frozen=True)
class Lives:
    """`roots` maps an activation to the one whose array it lies in, `spans` those to their first and last step.

    `relu` maps an operator to the ReLU that it applies, `reshaped` are the roots of which some reader sees another shape.
    """

    roots: dict[str, str]
    spans: dict[str, tuple[int, int]]
    relu: dict[str, str]
    reshaped: frozenset[str]


def fused_relus(graph: Graph) -> dict[str, str]:
    """Returns for each operator whose result only a ReLU reads the name of that ReLU; its result is then never stored without it."""
    readers = graph.consumers()
    fused = {}
    for node in graph.nodes:
        after = readers[node.name]
        if isinstance(node, TAKES_RELU) and node.name != graph.output and len(after) == 1 and isinstance(after[0], Relu):
            fused[node.name] = after[0].name
    return fused


def lives_of(graph: Graph) -> Lives:
    """Returns what shares an array, and from which step to which each array is needed; the output is needed after the last."""
    relu = fused_relus(graph)
    swallowed = {later: node for node, later in relu.items()}
    roots, reshaped = {graph.input: graph.input}, set()
    for node in graph.nodes:
        if isinstance(node, Reshape):
            roots[node.name] = roots[node.inputs[0]]
            reshaped.add(roots[node.name])
        else:
            roots[node.name] = roots[swallowed[node.name]] if node.name in swallowed else node.name
    spans = {graph.input: (-1, -1)}
    for step, node in enumerate(graph.nodes):
        for name in (node.name, *node.inputs):
            first, _ = spans.get(roots[name], (step, step))
            spans[roots[name]] = (first, step)
    own = roots[graph.output]
    spans[own] = (spans[own][0], len(graph.nodes))
    return Lives(roots, spans, relu, frozenset(reshaped))
