"""Rows [channels, n] of 1-D layers kept as maps of height 1 from layer to layer, which moves no element and rounds nothing."""

from __future__ import annotations

from dataclasses import replace

from vsparse.graph.core import Graph, Node, Shape, Unary
from vsparse.graph.operators.arithmetic import Add, Sub
from vsparse.graph.operators.reshape import Reshape


def rows_as_maps(graph: Graph) -> Graph:
    """Returns a graph that computes the same, to the bit, without the Reshape nodes between 1-D layers.

    A 1-D layer is read as a map of height 1 between two Reshapes. What is elementwise, and additions and differences of two such rows, are
    then computed on the maps, so that Conv, Relu and pools follow each other as in a 2-D network; the last Reshape joins a flatten.
    A Reshape whose result nobody reads any more goes, and so does a parameter.
    """
    if not any(_lifts(node, graph.shape_of(node.inputs[0])) for node in graph.nodes if isinstance(node, Reshape)):
        return graph
    maps: dict[str, str] = {}  # rows, by the map of height 1 that has the same elements
    renamed: dict[str, str] = {}
    made: dict[str, Node] = {}
    taken = {graph.input, *(node.name for node in graph.nodes)}
    for old in graph.nodes:
        node = replace(old, inputs=tuple(renamed.get(name, name) for name in old.inputs))
        source = maps.get(node.inputs[0], node.inputs[0])
        if isinstance(node, Reshape):
            before = made[source].shape if source in made else graph.input_shape
            if node.shape == before and source != graph.input and node.name != graph.output:
                renamed[node.name] = source
                continue
            node = replace(node, inputs=(source,))
            if len(node.shape) == 2 and before == (node.shape[0], 1, node.shape[1]):
                maps[node.name] = source
        elif isinstance(node, Unary | Add | Sub) and node.name != graph.output and all(name in maps for name in node.inputs):
            lifted = (node.shape[0], 1, node.shape[1])
            made[node.name] = replace(node, inputs=tuple(maps[name] for name in node.inputs), shape=lifted)
            row = _free(f"{node.name}.row", taken)
            maps[row], renamed[node.name] = node.name, row
            node = Reshape(name=row, inputs=(node.name,), shape=node.shape)
        made[node.name] = node
    return _without_unread(replace(graph, nodes=tuple(made.values())))


def _lifts(node: Reshape, source: Shape) -> bool:
    return len(source) == 2 and node.shape == (source[0], 1, source[1])


def _free(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def _without_unread(graph: Graph) -> Graph:
    wanted, kept = {graph.output}, []
    for node in reversed(graph.nodes):
        if node.name in wanted:
            wanted.update(node.inputs)
            kept.append(node)
    used = {name for node in kept for name in node.params}
    params = {name: value for name, value in graph.params.items() if name in used}
    integers = {name: value for name, value in graph.integers.items() if name in used}
    return replace(graph, nodes=tuple(reversed(kept)), params=params, integers=integers)
