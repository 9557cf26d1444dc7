"""What a graph costs: weights, multiply-accumulates, bytes, for the whole and for each layer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from vsparse.graph.core import Graph, Node, Shape
from vsparse.graph.operators.affine import Affine, Conv


@dataclass(frozen=True)
class LayerCost:
    """One row of the layer table; `shape` is the output's, `bytes` those of the parameters as stored in float32."""

    name: str
    type: str
    shape: Shape
    weights: int
    parameters: int
    macs: int
    bytes: int


def weight_count(graph: Graph, nonzero: bool = False) -> int:
    """Returns the number of weights of Conv and Gemm nodes, biases left out; with `nonzero` only those that are not zero."""
    names = {node.weight for node in graph.nodes if isinstance(node, Affine)}
    return sum(int((graph.params[name] != 0).sum()) if nonzero else graph.params[name].size for name in names)


def parameter_count(graph: Graph) -> int:
    """Returns the number of all stored parameters: weights, biases, constants, statistics."""
    return sum(graph.params[name].size for name in {name for node in graph.nodes for name in node.params})


def parameter_bytes(graph: Graph) -> int:
    """Returns the bytes of all stored parameters in float32."""
    return 4 * parameter_count(graph)


def macs(graph: Graph) -> int:
    """Returns the multiply-accumulates of Conv and Gemm nodes for one sample, padded positions included, as is customary."""
    return sum(_macs(node, graph) for node in graph.nodes)


def layer_table(graph: Graph) -> list[LayerCost]:
    """Returns one row for each node that has parameters or multiply-accumulates, in order of execution."""
    rows = []
    for node in graph.nodes:
        if not node.params:
            continue
        parameters = sum(graph.params[name].size for name in node.params)
        weights = graph.params[node.weight].size if isinstance(node, Affine) else 0
        rows.append(LayerCost(node.name, type(node).__name__, node.shape, weights, parameters, _macs(node, graph), 4 * parameters))
    return rows


def _macs(node: Node, graph: Graph) -> int:
    if not isinstance(node, Affine):
        return 0
    weight = graph.params[node.weight]
    return weight.size * (prod(node.shape[1:]) if isinstance(node, Conv) else 1)
