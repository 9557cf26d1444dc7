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

from vsparse.graph.ir import Graph
from vsparse.stages.compress.rules import rules_of


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
class UnitClasses:
    """The classes: `classes[activation]` holds the class of each unit; `pinned[class]` says that a class must stay."""

    classes: dict[str, NDArray[np.int64]]
    pinned: NDArray[np.bool_]

    @property
    def count(self) -> int:
        """Number of classes."""
        return len(self.pinned)


def find_units(graph: Graph) -> UnitClasses:
    """Returns the classes of units of a graph; input, output, general grouped convolutions and every operator through which
    units are not followed (curves without exact values, moves of data) are pinned."""
    names = [graph.input, *(node.name for node in graph.nodes)]
    counts = {name: graph.shape_of(name)[0] for name in names}
    offset = dict(zip(names, np.cumsum([0, *list(counts.values())[:-1]]).tolist(), strict=True))
    ties = _UnionFind(sum(counts.values()))
    kept = [graph.input, graph.output]
    for node in graph.nodes:
        rules = rules_of(node)
        if rules.mixes(node):
            continue
        for name in node.inputs:
            pairs = rules.ties(node, graph, name)
            if pairs is None:
                kept += [name, node.name]
                continue
            for before, after in pairs.T.tolist():
                ties.union(offset[name] + before, offset[node.name] + after)
    roots = np.array([ties.find(item) for item in range(len(ties.parent))], dtype=np.int64)
    _, labels = np.unique(roots, return_inverse=True)
    classes = {name: labels[offset[name] : offset[name] + counts[name]].astype(np.int64) for name in names}
    pinned = np.zeros(int(labels.max()) + 1, dtype=bool)
    for name in kept:
        pinned[classes[name]] = True
    return UnitClasses(classes, pinned)
