"""The network while it is being reduced: float32 weights that only ever lose entries, and biases kept as exact rationals."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph.ir import Affine, BatchNorm, Graph, Node

Mask = NDArray[np.bool_]


def apply_masks(graph: Graph, masks: dict[str, Mask]) -> Graph:
    """Returns the graph with zeros where a mask is False.

    Raises InputError for a mask of an unknown parameter, of another shape or type, for batch norm that was not folded,
    and for parameters that are not finite.
    """
    for node in graph.nodes:
        if isinstance(node, BatchNorm):
            raise InputError(f"{node.name} is a batch norm, which compression does not read; fold it first (fold_batch_norm)")
    params = dict(graph.params)
    for name, mask in masks.items():
        if name not in params:
            raise InputError(f"there is a mask for {name}, which the network does not have; masks go by the names of weights")
        if mask.dtype != np.bool_ or mask.shape != params[name].shape:
            raise InputError(f"the mask of {name} is {mask.dtype} {mask.shape}; give bool {params[name].shape}")
        params[name] = np.where(mask, params[name], np.float32(0))
    for name, value in params.items():
        if not np.isfinite(value).all():
            raise InputError(f"parameter {name} holds a value that is not finite; train again, or repair the model")
    return graph.with_params(params)


class ReducedGraph:
    """A graph whose affine weights and biases are being zeroed: `weight[node]` float32, `bias[node]` a list of Fractions."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.weight: dict[str, NDArray[np.float32]] = {}
        self.bias: dict[str, list[Fraction]] = {}
        for node in self.affine():
            self.weight[node.name] = graph.params[node.weight].copy()
            values = [0.0] * node.shape[0] if node.bias is None else graph.params[node.bias].tolist()
            self.bias[node.name] = [Fraction(value) for value in values]

    def affine(self) -> list[Affine]:
        """Returns the affine nodes in order."""
        return [node for node in self.graph.nodes if isinstance(node, Affine)]

    def zero_rows(self, node: Affine, rows: NDArray[np.bool_]) -> None:
        """Sets whole output units, bias included, to zero."""
        self.weight[node.name][rows] = 0
        for row in np.flatnonzero(rows).tolist():
            self.bias[node.name][row] = Fraction(0)

    def graph_now(self) -> tuple[Graph, dict[str, list[Fraction]]]:
        """Returns the reduced graph in its old shapes, and its exact biases by parameter name.

        A bias is rounded to float32 here, which changes nothing where no constant was folded into it. Raises InputError
        where a folded bias leaves the range of float32.
        """
        params = dict(self.graph.params)
        exact: dict[str, list[Fraction]] = {}
        nodes: list[Node] = []
        for node in self.graph.nodes:
            if isinstance(node, Affine):
                params[node.weight] = self.weight[node.name]
                bias = self.bias[node.name]
                if node.bias is None and any(bias):
                    name = f"{node.name}.bias"
                    while name in params:
                        name += "_"
                    node = replace(node, bias=name)
                if node.bias is not None:
                    with np.errstate(over="ignore"):
                        params[node.bias] = np.array([float(value) for value in bias], dtype=np.float32)
                    if not np.isfinite(params[node.bias]).all():
                        raise InputError(f"the constants folded into the bias of {node.name} leave the range of float32; train again")
                    exact[node.bias] = list(bias)
            nodes.append(node)
        return replace(self.graph, nodes=tuple(nodes), params=params), exact
