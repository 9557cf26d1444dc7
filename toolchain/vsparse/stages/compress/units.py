"""Units that stand and fall together: channels and neurons tied through residual additions, element-wise operators and reshapes.

A unit is one index of the first axis of an activation: a channel of [C, H, W], a neuron of [N]. `Conv` (one group) and
`Gemm` cut the ties, since their weight has an axis of its own for inputs and outputs; everything else carries unit i of
its input to unit i of its output. Two units of one class are removed together or not at all (the coupling of residual
branches described by Fang et al., DepGraph, CVPR 2023, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import (
    Add,
    AddConstant,
    AveragePool,
    Clip,
    Conv,
    Gemm,
    Graph,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Node,
    Relu,
    Reshape,
    Sub,
)

# Operators that carry unit i of an input to unit i of the output, and whose outputs liveness knows to be constant where their inputs are.
UNIT_BY_UNIT = Add | Sub | AddConstant | MulConstant | Neg | Relu | LeakyRelu | Clip | MaxPool | AveragePool


def is_reader(node: Node) -> bool:
    """Whether the node mixes all units of its input, so that input and output units are independent: `Gemm` and one-group `Conv`."""
    return isinstance(node, Gemm) or (isinstance(node, Conv) and node.groups == 1)


def is_depthwise(node: Node, in_units: int) -> bool:
    """Whether the node is a convolution with one group for each input channel (and more than one group)."""
    return isinstance(node, Conv) and node.groups > 1 and node.groups == in_units


class _UnionFind:
    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def find(self, item: int) -> int:
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def union(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)


@dataclass(frozen=True)
class Units:
    """The classes: `classes[activation]` holds the class of each unit; `pinned[class]` says that a class must stay."""

    classes: dict[str, NDArray[np.int64]]
    pinned: NDArray[np.bool_]

    @property
    def count(self) -> int:
        """Number of classes."""
        return len(self.pinned)


def _reshape_pairs(source: tuple[int, ...], target: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """Returns the distinct pairs (unit before, unit after) that share an element of a row-major reshape."""
    element = np.arange(size)
    pairs = np.stack([element // (size // source[0]), element // (size // target[0])])
    return np.unique(pairs, axis=1)


def find_units(graph: Graph) -> Units:
    """Returns the classes of units of a graph; input, output, general grouped convolutions and every operator through which
    units are not followed (curves without exact values, moves of data) are pinned."""
    names = [graph.input, *(node.name for node in graph.nodes)]
    counts = {name: graph.shape_of(name)[0] for name in names}
    offset = dict(zip(names, np.cumsum([0, *list(counts.values())[:-1]]).tolist(), strict=True))
    ties = _UnionFind(sum(counts.values()))
    kept = [graph.input, graph.output]
    for node in graph.nodes:
        if is_reader(node):
            continue
        for name in node.inputs:
            if isinstance(node, Reshape):
                for before, after in _reshape_pairs(graph.shape_of(name), node.shape, node.size).T.tolist():
                    ties.union(offset[name] + before, offset[node.name] + after)
            elif not isinstance(node, UNIT_BY_UNIT) and not is_depthwise(node, counts[name]):
                kept += [name, node.name]
            else:
                multiplier = counts[node.name] // counts[name]
                for unit in range(counts[node.name]):
                    ties.union(offset[name] + unit // multiplier, offset[node.name] + unit)
    roots = np.array([ties.find(item) for item in range(len(ties.parent))], dtype=np.int64)
    _, labels = np.unique(roots, return_inverse=True)
    classes = {name: labels[offset[name] : offset[name] + counts[name]].astype(np.int64) for name in names}
    pinned = np.zeros(int(labels.max()) + 1, dtype=bool)
    for name in kept:
        pinned[classes[name]] = True
    return Units(classes, pinned)
