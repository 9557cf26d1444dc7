"""Proofs of searched bounds: slopes, tightened intermediate bounds and split trees, evaluated in float64 (docs/proofs.md).

A search chooses; this file decides. Nothing that a proof may contain makes a bound false: it can only make it weak.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.choices import Choices
from vsparse.bounds.crown import GIBIBYTE, crown
from vsparse.bounds.executions import Executions
from vsparse.bounds.operators.piecewise import relu_relaxation
from vsparse.bounds.region import Region
from vsparse.bounds.rounding import Rounding
from vsparse.compute_device import to_host
from vsparse.errors import InputError
from vsparse.graph.ir import Graph, Relu

LEVELS = 255
NO_SET = -1


@dataclass(frozen=True)
class ReluUnits:
    """The ReLU units of a graph, numbered: its ReLU nodes in order, the elements of each row-major, counted on through all of them."""

    nodes: tuple[Relu, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, graph: Graph) -> ReluUnits:
        """Returns the numbering of a graph."""
        nodes = tuple(node for node in graph.nodes if isinstance(node, Relu))
        return cls(nodes, tuple(int(n) for n in np.cumsum([0, *(node.size for node in nodes)])))

    @property
    def count(self) -> int:
        """How many there are."""
        return self.starts[-1]

    def layer(self, unit: int) -> int:
        """Returns the position of the ReLU node that a unit belongs to."""
        return int(np.searchsorted(self.starts, unit, side="right")) - 1


@dataclass(frozen=True)
class BoundTree:
    """A tree of splits that proves one row: `row` names it (a class, or a position among the rows of a property).

    `node_unit` int32 [N], in preorder: the unit that is split, first child z <= 0, second child z >= 0, or -1 for a leaf. `leaf_set` int32
    [F]: slope set of each leaf in preorder, or -1. `multipliers` float32: for the leaves in preorder one β >= 0 for each split on the
    path, root first.
    """

    row: int
    node_unit: NDArray[np.int32]
    leaf_set: NDArray[np.int32]
    multipliers: NDArray[np.float32]

    @cached_property
    def paths(self) -> list[list[tuple[int, int]]]:
        """The splits (unit, sign) above each leaf, root first; InputError where the nodes are no tree, or a path splits a unit twice."""
        paths: list[list[tuple[int, int]]] = []
        waiting: list[list[tuple[int, int]]] = [[]]
        for unit in self.node_unit.tolist():
            if not waiting:
                raise InputError(f"the tree of row {self.row} goes on after its last leaf; search for the proof again")
            path = waiting.pop()
            if unit < 0:
                paths.append(path)
            else:
                if any(unit == above for above, _ in path):
                    raise InputError(f"the tree of row {self.row} splits unit {unit} twice on one path; search for the proof again")
                waiting += [[*path, (unit, 1)], [*path, (unit, -1)]]
        if waiting:
            raise InputError(f"the tree of row {self.row} ends before its last leaf; search for the proof again")
        return paths

    def leaves_at(self, pre_activations: Tensor) -> Iterator[tuple[int, int]]:
        """Yields (leaf, point) for every leaf whose splits hold at a point, for pre-activations [points, units] of all ReLU units."""
        units = self.node_unit.tolist()
        second: dict[int, int] = {}
        open_: list[int] = []
        numbers: dict[int, int] = {}
        for node, unit in enumerate(units):
            if unit >= 0:
                open_.append(node)
                continue
            numbers[node] = len(numbers)
            if open_:
                second[open_.pop()] = node + 1
        for point in range(len(pre_activations)):
            waiting = [0]
            while waiting:
                node = waiting.pop()
                if units[node] < 0:
                    yield numbers[node], point
                    continue
                value = float(pre_activations[point, units[node]])
                waiting += [child for child, holds in ((node + 1, value <= 0), (second[node], value >= 0)) if holds]


@dataclass(frozen=True)
class BoundProof:
    """What proves the rows of one claim (docs/proofs.md).

    `units` int32 [U], increasing; `slopes` uint8 [S, U], one slope set a line; tightened intermediate bounds as three arrays of one length:
    unit int32, side uint8 (0: from below, 1: from above) and slope set int32, -1 for the default slopes. Files call these three `lemma_…`.
    """

    units: NDArray[np.int32]
    slopes: NDArray[np.uint8]
    tightened_unit: NDArray[np.int32]
    tightened_side: NDArray[np.uint8]
    tightened_set: NDArray[np.int32]
    trees: tuple[BoundTree, ...]

    def check(self, graph: Graph) -> None:
        """Raises InputError where the proof is not one about this graph: numbers out of range, trees that are none."""
        count, sets = ReluUnits.of(graph).count, len(self.slopes)
        if self.slopes.ndim != 2 or self.slopes.shape[1] != len(self.units):
            raise InputError("a proof has slope sets of another length than its list of units; search for it again")
        if len(self.units) and not (self.units[0] >= 0 and self.units[-1] < count and bool((np.diff(self.units) > 0).all())):
            raise InputError("the units of a proof are not increasing numbers of the network's ReLU units; search for it again")
        if not len(self.tightened_unit) == len(self.tightened_side) == len(self.tightened_set):
            raise InputError("the tightened bounds of a proof have arrays of several lengths; search for it again")
        numbers: list[tuple[NDArray[Any], int, int]] = [
            (self.tightened_unit, 0, count),
            (self.tightened_side, 0, 2),
            (self.tightened_set, NO_SET, sets),
        ]
        for tree in self.trees:
            numbers += [(tree.node_unit, -1, count), (tree.leaf_set, NO_SET, sets)]
        for array, lowest, end in numbers:
            if array.size and not (int(array.min()) >= lowest and int(array.max()) < end):
                raise InputError("a proof names a unit or a slope set that does not exist; search for it again")
        for tree in self.trees:
            paths = tree.paths
            if len(paths) != len(tree.leaf_set) or sum(map(len, paths)) != len(tree.multipliers):
                raise InputError(f"the tree of row {tree.row} has other numbers of leaves or multipliers than nodes; search for it again")
            if not bool((tree.multipliers >= 0).all()):
                raise InputError(f"a multiplier of the tree of row {tree.row} is negative or no number; search for it again")


def default_slopes(box: Box) -> Tensor:
    """Returns the lower slopes of ReLU on a box where none are chosen: 1 if u > -l, else 0."""
    return relu_relaxation(*box, True)[0]


def slope_choices(
    graph: Graph, boxes: Mapping[str, Box], units: NDArray[np.int32], slopes: NDArray[np.uint8], sets: NDArray[np.int32]
) -> Choices:
    """Returns the slopes of one sample for rows that use the given slope sets: float64 [1, rows, *shape] for each ReLU that has some."""
    numbering = ReluUnits.of(graph)
    chosen: dict[str, Tensor] = {}
    named = torch.from_numpy(np.flatnonzero(sets != NO_SET))
    for layer, node in enumerate(numbering.nodes):
        first, last = np.searchsorted(units, numbering.starts[layer : layer + 2])
        if first == last or not len(named):
            continue
        value = default_slopes(boxes[node.inputs[0]]).flatten(1).repeat(len(sets), 1)
        device = value.device
        positions = torch.from_numpy(units[first:last].astype(np.int64) - numbering.starts[layer])
        part = torch.from_numpy(slopes[sets[sets != NO_SET], first:last].astype(np.float64)) / LEVELS
        value[named.to(device).unsqueeze(1), positions.to(device).unsqueeze(0)] = part.to(device)
        chosen[node.name] = value.view(1, len(sets), *node.shape)
    return Choices(slopes=chosen)


def tighten(
    graph: Graph,
    rounding: Rounding,
    box: Box | Region,
    boxes: Mapping[str, Box],
    proof: BoundProof,
    memory_limit_bytes: int = GIBIBYTE,
    executions: Executions | None = None,
) -> dict[str, Box]:
    """Returns the boxes [1, …] with the tightened bounds of a proof applied in their order, each as executed under the contract.

    `boxes` are true for every input in `box`, both of one sample (batch 1). Boxes between the pre-activations stay as they are.
    InputError where they are not in the order of the network, SoundnessError where one of the `executions` (of points of `box`) lies
    outside of a box made so.
    """
    boxes = dict(boxes)
    numbering = ReluUnits.of(graph)
    layers = np.searchsorted(numbering.starts, proof.tightened_unit, side="right") - 1
    if len(layers) and bool((np.diff(layers) < 0).any()):
        raise InputError("the tightened bounds of a proof are not in the order of the network; search for it again")
    for layer in np.unique(layers).tolist():
        node = numbering.nodes[layer]
        name = node.inputs[0]
        step = max(1, memory_limit_bytes // (64 * numbering.count))
        # Bounds of one layer do not depend on each other, so they are one call; the boxes it reads are those from before.
        found = []
        chosen = np.flatnonzero(layers == layer)
        for start in range(0, len(chosen), step):
            positions = chosen[start : start + step]
            columns = torch.from_numpy(proof.tightened_unit[positions].astype(np.int64) - numbering.starts[layer])
            sign = 1.0 - 2.0 * torch.from_numpy(proof.tightened_side[positions].astype(np.float64))
            rows = torch.zeros(len(positions), node.size, dtype=torch.float64)
            rows[torch.arange(len(positions)), columns] = sign
            choices = slope_choices(graph, boxes, proof.units, proof.slopes, proof.tightened_set[positions])
            rows = rows.to(rounding.device)
            lower = crown(graph, rounding.params, box, rows, boxes, rounding, choices, name, memory_limit_bytes)[0]
            found.append((columns, sign, lower))
        ends = [end.flatten(1).clone() for end in boxes[name]]
        for columns, sign, lower in found:
            for end, of, reduced in ((0, sign > 0, "amax"), (1, sign < 0, "amin")):
                mine = of.nonzero().flatten()
                value = lower[mine.to(lower.device)]
                ends[end][0].scatter_reduce_(0, columns[mine].to(lower.device), value if end == 0 else -value, reduced)
        boxes[name] = (ends[0].view_as(boxes[name][0]), ends[1].view_as(boxes[name][1]))
        if executions is not None:
            executions.check({name: boxes[name]}, "tightened bounds")
    return boxes


def leaf_bounds(
    graph: Graph,
    rounding: Rounding,
    box: Box | Region,
    boxes: Mapping[str, Box],
    proof: BoundProof,
    tree: BoundTree,
    row: Tensor,
    memory_limit_bytes: int = GIBIBYTE,
    executions: Executions | None = None,
) -> Tensor:
    """Returns for each leaf [F] a lower bound of row · output on its part of the region, +inf where the part is empty; on the processor.

    `boxes` are those of the whole region, tightened by the proof; `row` is float64 [outputs]. Wang et al., arXiv 2103.06624, theorem 3.1.
    SoundnessError where one of the `executions` (of points of `box`) satisfies a leaf's splits and lies below its bound.
    """
    numbering = ReluUnits.of(graph)
    paths = tree.paths
    bounds = torch.full((len(paths),), inf, dtype=torch.float64)
    ends = (
        [to_host(torch.cat([boxes[node.inputs[0]][side].flatten() for node in numbering.nodes])).numpy() for side in (0, 1)]
        if numbering.nodes
        else []
    )
    firsts = np.cumsum([0, *map(len, paths)])
    live = [
        leaf for leaf, path in enumerate(paths) if not any((ends[1][unit] < 0) if sign > 0 else (ends[0][unit] > 0) for unit, sign in path)
    ]
    step = max(1, memory_limit_bytes // (128 * max(1, numbering.count)))
    for start in range(0, len(live), step):
        leaves = live[start : start + step]
        chosen = slope_choices(graph, boxes, proof.units, proof.slopes, tree.leaf_set[leaves])
        at = [(i, unit, sign, firsts[leaf] + k) for i, leaf in enumerate(leaves) for k, (unit, sign) in enumerate(paths[leaf])]
        which, units, signs, positions = (np.array(column, dtype=np.int64) for column in (zip(*at, strict=True) if at else ((),) * 4))
        layers = np.searchsorted(numbering.starts, units, side="right") - 1
        splits: dict[str, Tensor] = {}
        multipliers: dict[str, Tensor] = {}
        for layer in np.unique(layers).tolist():
            node, here = numbering.nodes[layer], layers == layer
            index = torch.from_numpy(which[here]), torch.from_numpy(units[here] - numbering.starts[layer])
            split = torch.zeros(len(leaves), node.size, dtype=torch.float64)
            split[index] = torch.from_numpy(signs[here].astype(np.float64))
            value = torch.zeros_like(split)
            value[index] = torch.from_numpy(tree.multipliers[positions[here]].astype(np.float64) * signs[here])
            splits[node.name] = split.view(1, len(leaves), *node.shape).to(rounding.device)
            multipliers[node.name] = value.view(1, len(leaves), *node.shape).to(rounding.device)
        choices = Choices(chosen.slopes, splits, multipliers)
        rows = row.expand(1, len(leaves), -1)
        found = crown(graph, rounding.params, box, rows, boxes, rounding, choices, None, memory_limit_bytes)[0]
        bounds[leaves] = to_host(found)
    if executions is not None and len(executions):
        _check_leaves(numbering, tree, bounds, row, executions)
    return bounds


def _check_leaves(numbering: ReluUnits, tree: BoundTree, bounds: Tensor, row: Tensor, executions: Executions) -> None:
    """Raises SoundnessError for an execution in a leaf, an empty one perhaps, whose bound is above the row's value there."""
    values = [executions.values[node.inputs[0]].flatten(1) for node in numbering.nodes]
    at = to_host(torch.cat(values, dim=1)) if values else torch.zeros(len(executions), 0)
    pairs = list(tree.leaves_at(at))
    leaves, points = (torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in (0, 1))
    inside, proved = replace(executions[points.to(executions.device)], samples=None), bounds[leaves].unsqueeze(1)
    inside.check_rows(row.unsqueeze(0), proved.to(executions.device), f"leaves of the tree of row {tree.row}")


def tree_bounds(
    graph: Graph,
    rounding: Rounding,
    box: Box | Region,
    boxes: Mapping[str, Box],
    proof: BoundProof,
    rows: Mapping[int, Tensor],
    memory_limit_bytes: int = GIBIBYTE,
    executions: Executions | None = None,
) -> dict[int, float]:
    """Returns for each row that the proof has a tree for a lower bound of row · output over all inputs in `box` (batch 1).

    `boxes` is the refined enclosure (of the method `crown`), before they are tightened; `rows` holds a float64 row [outputs] for each tree.
    InputError where the proof is not one about this graph or these rows, SoundnessError where one of the `executions` (of points of `box`)
    contradicts a tightened bound or a leaf.
    """
    proof.check(graph)
    boxes = tighten(graph, rounding, box, boxes, proof, memory_limit_bytes, executions)
    bounds: dict[int, float] = {}
    for tree in proof.trees:
        if tree.row not in rows:
            raise InputError(f"a proof has a tree for row {tree.row}, which does not exist; search for it again")
        found = leaf_bounds(graph, rounding, box, boxes, proof, tree, rows[tree.row], memory_limit_bytes, executions)
        bounds[tree.row] = max(bounds.get(tree.row, -inf), float(found.min()))
    return bounds
