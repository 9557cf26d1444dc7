"""A tree of splits under construction, and the proof that its leaves make."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vsparse.bounds.proof import NO_SET, BoundProof, BoundTree


@dataclass
class Leaf:
    """What proves one part of the region: slopes as bytes [U] of the search's units, and one multiplier for each split on the path."""

    slopes: NDArray[np.uint8]
    multipliers: NDArray[np.float32]


@dataclass
class Growing:
    """A tree whose nodes are numbered as they come, the root 0; `split` holds (unit, first child), the second child is the next number."""

    split: dict[int, tuple[int, int]] = field(default_factory=dict)
    leaves: dict[int, Leaf] = field(default_factory=dict)
    size: int = 1

    def grow(self, node: int, unit: int) -> tuple[int, int]:
        """Splits a node and returns its two children."""
        first = self.size
        self.split[node] = (unit, first)
        self.size += 2
        return first, first + 1

    def preorder(self) -> tuple[NDArray[np.int32], list[int]]:
        """Returns (the unit of each node in preorder, -1 for a leaf; the numbers of the leaves in that order)."""
        units: list[int] = []
        leaves: list[int] = []
        waiting = [0]
        while waiting:
            node = waiting.pop()
            if node in self.split:
                unit, first = self.split[node]
                units.append(unit)
                waiting += [first + 1, first]
            else:
                units.append(-1)
                leaves.append(node)
        return np.array(units, np.int32), leaves


def assemble(base: BoundProof, units: NDArray[np.int32], trees: dict[int, Growing]) -> BoundProof:
    """Returns a proof with the tightened bounds of `base` and one tree for each row; leaves store slopes of `units`, some of the base's.

    Slope sets that are equal are stored once.
    """
    columns = np.searchsorted(base.units, units)
    sets = [row.tobytes() for row in base.slopes]
    number = {key: index for index, key in reversed(list(enumerate(sets)))}
    made: list[BoundTree] = []
    for row, growing in sorted(trees.items()):
        node_unit, order = growing.preorder()
        leaf_set = np.full(len(order), NO_SET, np.int32)
        multipliers: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
        for index, node in enumerate(order):
            leaf = growing.leaves[node]
            full = np.zeros(len(base.units), np.uint8)
            full[columns] = leaf.slopes
            key = full.tobytes()
            if key not in number:
                number[key] = len(sets)
                sets.append(key)
            leaf_set[index] = number[key]
            multipliers.append(leaf.multipliers)
        made.append(BoundTree(row, node_unit, leaf_set, np.concatenate(multipliers)))
    slopes = np.frombuffer(b"".join(sets), np.uint8).reshape(len(sets), len(base.units))
    return BoundProof(base.units, slopes, base.tightened_unit, base.tightened_side, base.tightened_set, tuple(made))
