"""Builds a graph node by node, with names made unique and shapes computed; both readers use it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph.core import Graph, Node, QuantisedParameter, Shape
from vsparse.graph.shapes import output_shape, show

# 1 GiB of float32: a weight that many nodes of a small file read in another layout must not fill the memory.
MAX_PARAMETERS = 2**28


class Builder:
    """Collects nodes in the order in which they are computed."""

    def __init__(self, input_name: str, input_shape: Shape) -> None:
        self.input, self.input_shape = input_name, input_shape
        self.shapes: dict[str, Shape] = {input_name: input_shape}
        self.nodes: list[Node] = []
        self.made: dict[str, Node] = {}
        self.params: dict[str, NDArray[np.float32]] = {}
        self.integers: dict[str, QuantisedParameter] = {}
        self.total = 0
        self.suffix: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """Returns `name`, or `name_2`, `name_3`, … where it is taken by an activation or a parameter."""
        candidate = name
        while candidate in self.shapes or candidate in self.params:
            # Remembered, so that a weight read by all nodes of a large file does not cost the square of their number.
            self.suffix[name] = self.suffix.get(name, 1) + 1
            candidate = f"{name}_{self.suffix[name]}"
        return candidate

    def param(self, name: str, value: NDArray[np.float32]) -> str:
        """Stores a parameter under a name of its own and returns that name; raises InputError when it holds NaN or infinity."""
        self.total += value.size
        if self.total > MAX_PARAMETERS:
            raise InputError(f"the network has more than {MAX_PARAMETERS} parameters; use a smaller one")
        if not np.isfinite(value).all():
            raise InputError(f'the weight "{show(name)}" holds NaN or infinity; retrain, or export the network again')
        name = self.unique(name)
        self.params[name] = np.asarray(value)
        return name

    def add(self, node: Node) -> str:
        """Appends a node, with its shape computed from its inputs (`Reshape` brings its own), and returns its name."""
        sizes = {name: self.params[name].shape for name in node.params if name in self.params}
        shape = output_shape(node, [self.shapes[name] for name in node.inputs], sizes)
        self.nodes.append(replace(node, shape=shape))
        self.made[node.name] = self.nodes[-1]
        self.shapes[node.name] = shape
        return node.name

    def graph(self, output: str) -> Graph:
        """Returns the graph of the nodes that `output` depends on, with only the parameters they use."""
        wanted, kept = {output}, []
        for node in reversed(self.nodes):
            if node.name in wanted:
                wanted.update(node.inputs)
                kept.append(node)
        used = {name for node in kept for name in node.params}
        params = {name: value for name, value in self.params.items() if name in used}
        integers = {name: value for name, value in self.integers.items() if name in used}
        return Graph(self.input, self.input_shape, tuple(reversed(kept)), output, params, integers)
