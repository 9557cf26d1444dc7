"""Reads certificate/proofs.npz: what a search found, stored so that checking needs no search.

The format is docs/proofs.md. A file with too few or too many numbers anywhere is refused as a
whole. Nothing that is read here has to be believed: trees.py evaluates it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsparse_check.arrays import FloatArray, IntArray
from vsparse_check.files import read_arrays
from vsparse_check.limits import ResourceBudget
from vsparse_check.refusal import need

MAX_BYTES = 2**28  # of all arrays together, unpacked
STARTS = ("unit_start", "set_start", "lemma_start", "tree_start", "node_start")
TYPES = {
    **dict.fromkeys(("version", "ids", *STARTS), "<i8"),
    **dict.fromkeys(("units", "lemma_unit", "lemma_set", "tree_class", "node_unit"), "<i4"),
    "leaf_set": "<i4",
    "slopes": "|u1",
    "lemma_side": "|u1",
    "multipliers": "<f4",
}
CONVERTED = {"multipliers": np.float64, "slopes": np.uint8}  # all others to int64


class SplitTree(NamedTuple):
    """A binary tree of splits of ReLU inputs, which proves one row: what its leaves say."""

    row_class: int  # the class j of the row z_label − z_j
    sets: IntArray  # [leaves]: the slope set of each, −1 for default slopes
    depths: IntArray  # [leaves]: how many splits are above each
    splits: IntArray  # of all leaves: sign·(unit + 1), sign·z >= 0
    multipliers: FloatArray  # of all leaves: β of each split


class TightenedBounds(NamedTuple):
    """Backward passes that tighten bounds of ReLU inputs ("lemmas" of the file), [L] each."""

    units: IntArray
    sides: IntArray  # 0: from below, 1: from above
    sets: IntArray  # the slope set of each, −1 for default slopes


class StoredProof(NamedTuple):
    """The proof of one claim."""

    units: IntArray  # the ReLU units for which slopes are stored
    slopes: NDArray[np.uint8]  # [sets, units]
    tightened: TightenedBounds
    trees: list[SplitTree]


class _ArrayReader:
    """Takes numbers from the front of each array, in order, and checks each."""

    def __init__(self, arrays: dict[str, NDArray[Any]], name: str) -> None:
        """Takes one-dimensional arrays by name, and the name of their file for messages."""
        self.arrays, self.name = arrays, name
        self.position = dict.fromkeys(arrays, 0)

    def take(self, name: str, count: int, lowest: int, end: float) -> NDArray[Any]:
        """Returns the next `count` numbers of an array, all of them within [lowest, end)."""
        start = self.position[name]
        part = self.arrays[name][start : start + count]
        self.position[name] += count
        need(
            len(part) == count and ((part >= lowest) & (part < end)).all(),
            f"{self.name} has too few or impossible {name}",
        )
        return part.astype(CONVERTED.get(name, np.int64))

    def lengths(self, name: str) -> list[int]:
        """Returns the lengths of the parts that an array of starts divides another one into."""
        start = self.arrays[name]
        self.position[name] = len(start)
        sorted_starts = start[:1].tolist() == [0] and (np.diff(start) >= 0).all()
        label = name.removesuffix("_start")
        need(sorted_starts, f"{self.name} has starts that do not increase: {label}")
        return [int(length) for length in np.diff(start)]

    def remaining(self, name: str) -> int:
        """Returns how many numbers of an array were not taken."""
        return len(self.arrays[name]) - self.position[name]

    def finished(self) -> bool:
        """Returns whether every number was taken."""
        return all(self.position[name] == len(array) for name, array in self.arrays.items())


def read_proofs(path: Path, units: int, budget: ResourceBudget) -> dict[int, StoredProof]:
    """Returns the proofs by sample id, of a network with so many ReLU units.

    Raises Refuted where the file is anything but what docs/proofs.md specifies.
    """
    arrays = read_arrays(path, TYPES, MAX_BYTES, budget)
    paths = arrays["node_unit"].size + arrays["multipliers"].size
    budget.spend(2_000.0 * paths + 100_000.0 * (arrays["ids"].size + arrays["tree_class"].size))
    # Paths are tuples while they are read.
    budget.hold(100.0 * paths + 16.0 * sum(value.size for value in arrays.values()))
    reader = _ArrayReader(arrays, path.name)
    one_dimensional = all(value.ndim == 1 for value in arrays.values())
    need(
        one_dimensional and reader.take("version", 1, 1, 2) == [1],
        f"{path.name} is of another version",
    )
    ids = reader.take("ids", len(arrays["ids"]), 0, np.inf)
    unit_counts = reader.lengths("unit_start")
    set_counts = reader.lengths("set_start")
    tightened_counts = reader.lengths("lemma_start")
    tree_counts = reader.lengths("tree_start")
    node_counts = reader.lengths("node_start")
    need(
        (np.diff(ids) > 0).all() and len(node_counts) == sum(tree_counts),
        f"{path.name} has a sample twice, or other trees than it says",
    )
    found, nodes = dict[int, StoredProof](), iter(node_counts)
    per_proof = zip(
        ids.tolist(), unit_counts, set_counts, tightened_counts, tree_counts, strict=True
    )
    for sample, unit_count, set_count, tightened_count, tree_count in per_proof:
        own = reader.take("units", unit_count, 0, units)
        slopes = reader.take("slopes", set_count * unit_count, 0, 256)
        slopes = slopes.reshape(set_count, unit_count)
        need((np.diff(own) > 0).all(), f"{path.name} lists units out of order")
        tightened = TightenedBounds(
            reader.take("lemma_unit", tightened_count, 0, units),
            reader.take("lemma_side", tightened_count, 0, 2),
            reader.take("lemma_set", tightened_count, -1, set_count),
        )
        classes = reader.take("tree_class", tree_count, 0, 2**31).tolist()
        trees = [_read_tree(reader, row, next(nodes), units, set_count) for row in classes]
        found[sample] = StoredProof(own, slopes, tightened, trees)
    need(reader.finished(), f"{path.name} holds more than its proofs")
    return found


def _read_tree(
    reader: _ArrayReader, row_class: int, nodes: int, units: int, sets: int
) -> SplitTree:
    """Reads the next tree: β >= 0 finite for each split, leaf sets within [−1, sets).

    docs/proofs.md, "The file".
    """
    most = reader.remaining("multipliers")
    paths = leaf_paths(reader.take("node_unit", nodes, -1, units).tolist(), most)
    depths = np.array([len(path) for path in paths])
    splits = np.array([split for path in paths for split in path], dtype=np.int64)
    multipliers = reader.take("multipliers", len(splits), 0, np.inf)
    return SplitTree(
        row_class, reader.take("leaf_set", len(depths), -1, sets), depths, splits, multipliers
    )


def leaf_paths(nodes: list[int], most: int) -> list[tuple[int, ...]]:
    """Returns the splits above each leaf of a tree in preorder: sign·(unit + 1), root first.

    Every inner node has both its children, z <= 0 first and z >= 0 second, so that the leaves
    cover the region. Raises Refuted unless the nodes are one tree, with at most `most` splits in
    all and no unit twice on a path.
    """
    waiting, leaves, size = [tuple[int, ...]()], list[tuple[int, ...]](), 0
    for unit in nodes:
        need(waiting, "a tree of proofs.npz has too many nodes")
        path = waiting.pop()
        need(
            unit + 1 not in map(abs, path),
            "a tree of proofs.npz splits a unit twice on one path",
        )
        if unit < 0:
            leaves.append(path)
            continue
        # Each child becomes at least one leaf, with as many multipliers as splits.
        waiting += [(*path, unit + 1), (*path, -unit - 1)]
        size += len(path) + 2
        need(size <= most, "a tree of proofs.npz has too few multipliers")
    need(not waiting, "a tree of proofs.npz has too few nodes")
    return leaves
