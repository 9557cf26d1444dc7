"""Bounds of linear rows of the output from the box of the last hidden activation: last-layer folding.

Folding the rows of a property into the last affine operator, before interval arithmetic, keeps what its outputs have in common (Gowal
et al., arXiv 1810.12715, section 3). On networks trained with interval bounds this is often tighter than CROWN with adaptive slopes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.crown import crown
from vsparse.bounds.rounding import Rounding
from vsparse.bounds.rules import Params, rules_of
from vsparse.graph.ir import Graph, Node


def last_layers(graph: Graph) -> Graph:
    """Returns the longest chain of linear operators of one input that ends in the output, as a graph of its own."""
    chain: list[Node] = []
    name = graph.output
    producers = {node.name: node for node in graph.nodes}
    while name in producers and rules_of(producers[name]).linear and len(producers[name].inputs) == 1:
        chain.append(producers[name])
        name = producers[name].inputs[0]
    return Graph(name, graph.shape_of(name), tuple(reversed(chain)), graph.output, graph.params)


def last_layer_folding(graph: Graph, params: Params, rows: Tensor, boxes: Mapping[str, Box], rounding: Rounding | None = None) -> Tensor:
    """Returns lower bounds [batch, R] of rows · output for all activations within `boxes`, by interval arithmetic on the folded rows.

    `rows` and `rounding` are as for `crown`, and so are the errors; `boxes` is an enclosure of every activation.
    """
    end = last_layers(graph)
    return crown(end, params, boxes[end.input], rows, boxes, rounding, stored=True)
