"""Reads certificate/proofs.npz and evaluates what it proves (docs/proofs.md). Whatever a proof says, its bounds are true or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsparse_check.bounds import Bounds, Ints, Sample
from vsparse_check.certificate import read_arrays
from vsparse_check.model import Array, need

TYPES = {
    **dict.fromkeys(("version", "ids", "unit_start", "set_start", "lemma_start", "tree_start", "node_start"), "<i8"),
    **dict.fromkeys(("units", "lemma_unit", "lemma_set", "tree_class", "node_unit", "leaf_set"), "<i4"),
    **{"slopes": "|u1", "lemma_side": "|u1", "multipliers": "<f4"},
}


class Tree(NamedTuple):
    """The class j of its row; for each leaf its slope set and how many splits are above it; sign·(unit + 1) and β of each of these."""

    row: int
    sets: Ints
    depths: Ints
    splits: Ints
    multipliers: Array


class Proof(NamedTuple):
    """Units with slopes, slope sets [sets, units], lemmas [L, 3] (unit, side, slope set), and trees."""

    units: Ints
    slopes: Array
    lemmas: Ints
    trees: list[Tree]


def read_proofs(path: Path, units: int) -> dict[int, Proof]:
    """Returns the proofs by sample id for a network of so many ReLU units; Refused where the file is anything but what is specified."""
    arrays = read_arrays(path, TYPES, 2**28)
    at = dict.fromkeys(arrays, 0)

    def take(name: str, count: int, lowest: int, end: float) -> NDArray[Any]:
        """Returns the next `count` numbers of an array, all of them within [lowest, end)."""
        part = arrays[name][at[name] : at[name] + count]
        at[name] += count
        need(len(part) == count and ((part >= lowest) & (part < end)).all(), f"{path.name} has too few or impossible {name}")
        return part.astype(np.float64 if name == "multipliers" else np.int64)

    def counts(name: str) -> list[int]:
        start = arrays[name + "_start"]
        need(start[:1].tolist() == [0] and (np.diff(start) >= 0).all(), f"{path.name} has starts that do not increase: {name}")
        at[name + "_start"] = len(start)
        return [int(count) for count in np.diff(start)]

    need(all(value.ndim == 1 for value in arrays.values()) and take("version", 1, 1, 2) == [1], f"{path.name} is of another version")
    ids, per_proof, nodes = (
        take("ids", len(arrays["ids"]), 0, np.inf),
        [counts(n) for n in ("unit", "set", "lemma", "tree")],
        counts("node"),
    )
    need((np.diff(ids) > 0).all() and len(nodes) == sum(per_proof[3]), f"{path.name} has a sample twice, or other trees than it says")
    found, next_nodes = {}, iter(nodes)
    for sample, listed, sets, lemmas, trees in zip(ids.tolist(), *per_proof, strict=True):
        own, slopes = take("units", listed, 0, units), take("slopes", sets * listed, 0, 256).reshape(sets, listed) / 255.0
        need((np.diff(own) > 0).all(), f"{path.name} lists units out of order")
        ends = {"lemma_unit": (0, units), "lemma_side": (0, 2), "lemma_set": (-1, sets)}
        lemma = np.stack([take(name, lemmas, *span) for name, span in ends.items()], axis=1)
        made = []
        for row in take("tree_class", trees, 0, 2**31).tolist():
            most = len(arrays["multipliers"]) - at["multipliers"]
            depths, splits = _walk(take("node_unit", next(next_nodes), -1, units).tolist(), most)
            beta = take("multipliers", len(splits), 0, np.inf)
            made.append(Tree(row, take("leaf_set", len(depths), -1, sets), depths, splits, beta))
        found[sample] = Proof(own, slopes, lemma, made)
    need(at == {name: len(value) for name, value in arrays.items()}, f"{path.name} holds more than its proofs")
    return found


def _walk(nodes: list[int], most: int) -> tuple[Ints, Ints]:
    """Returns depth of each leaf and the splits above the leaves, of a tree in preorder; Refused unless it is one, with `most` splits."""
    waiting, leaves, size = [tuple[int, ...]()], list[tuple[int, ...]](), 0
    for unit in nodes:
        need(waiting, "a tree of proofs.npz has too many nodes")
        path = waiting.pop()
        need(unit + 1 not in map(abs, path), "a tree of proofs.npz splits a unit twice on one path")
        if unit < 0:
            leaves.append(path)
        else:  # first child z <= 0, second child z >= 0; each becomes at least one leaf with as many multipliers as splits
            waiting += [(*path, unit + 1), (*path, -unit - 1)]
            size += len(path) + 2
            need(size <= most, "a tree of proofs.npz has too few multipliers")
    need(not waiting, "a tree of proofs.npz has too few nodes")
    return np.array([len(path) for path in leaves]), np.array([split for path in leaves for split in path], dtype=np.int64)


def improved(rows: Array, bounds: Bounds, proof: Proof, of: Sample, label: int, margin: float) -> Array:
    """Returns the bounds `rows` [classes − 1] of z_label − z_j, those below `margin` raised to what the trees of a proof prove."""
    found, evaluation = rows.copy(), None
    for tree in proof.trees:
        place = tree.row - (tree.row > label)
        need(tree.row < bounds.classes and tree.row != label, "a tree of proofs.npz is about a row that does not exist")
        if found[place] < margin:
            evaluation = evaluation or Evaluation(bounds, proof, of)
            found[place] = max(found[place], evaluation.bound(tree, bounds.rows(label)[place]))
    return found


class Evaluation:
    """A proof applied to one sample: boxes tightened by its lemmas, and bounds of its trees."""

    def __init__(self, bounds: Bounds, proof: Proof, of: Sample) -> None:
        """Applies the lemmas: each is a bound by `Bounds.backward` with chosen slopes, true as every other; the better one is kept."""
        self.bounds, self.slopes = bounds, dict[str, Array]()
        ends = np.cumsum([0, *(of.boxes[op.inputs[0]][0].shape[-1] for op in bounds.relus)])
        self.spans = list(zip(bounds.relus, ends[:-1].tolist(), ends[1:].tolist(), strict=True))
        for op, first, end in self.spans:  # slopes of a ReLU by set, NaN: the default; the last line is that of set −1
            here = (proof.units >= first) & (proof.units < end)
            if here.any():
                self.slopes[op.output] = np.full((len(proof.slopes) + 1, end - first), np.nan)
                self.slopes[op.output][:-1, proof.units[here] - first] = proof.slopes[:, here]
        layers = np.searchsorted(ends, proof.lemmas[:, 0], side="right")
        need((np.diff(layers) >= 0).all(), "the lemmas of a proof are not in the order of the network")
        boxes = {name: (lower.copy(), upper.copy()) for name, (lower, upper) in of.boxes.items()}
        for layer in np.unique(layers).tolist():
            op, first, _ = self.spans[layer - 1]
            unit, side, sets = proof.lemmas[layers == layer].T
            bounds.tighten(op.inputs[0], unit - first, side, of._replace(boxes=boxes), self.slopes, sets)
        self.sample = of._replace(boxes=boxes, costs=bounds.costs(boxes))

    def bound(self, tree: Tree, row: Array) -> float:
        """Returns a lower bound of row · output: the smallest of the leaves', which cover the region."""
        first, lowest, step = np.cumsum([0, *tree.depths]), np.inf, self.bounds.step
        for start in range(0, len(tree.depths), step):
            end = min(start + step, len(tree.depths))
            splits, which = slice(first[start], first[end]), np.repeat(np.arange(end - start), tree.depths[start:end])
            found = self._leaves(tree.sets[start:end], which, tree.splits[splits], tree.multipliers[splits], row)
            lowest = min(lowest, float(found.min()))
        return lowest

    def _leaves(self, sets: Ints, which: Ints, splits: Ints, multipliers: Array, row: Array) -> Array:
        """Returns a bound for each leaf; split k of leaf which[k] says s·z >= 0, z the executed pre-activation of a unit.

        For β >= 0 and every point of the leaf, row·output >= row·output − Σ β·s·z (Wang et al., arXiv 2103.06624, theorem 3.1: weak
        Lagrangian duality), so a lower bound of the right side is one of the left. Boxes are cut at 0; an empty one has no points.
        """
        boxes, empty, units = dict(self.sample.boxes), np.zeros(len(sets), dtype=bool), np.abs(splits) - 1
        rows = {self.bounds.network.output: np.repeat(row[None], len(sets), axis=0)}
        for op, first, end in self.spans:
            here, name = (units >= first) & (units < end), op.inputs[0]
            if here.any():
                place, above = (which[here], units[here] - first), splits[here] > 0
                lower, upper = (np.broadcast_to(side, (len(sets), end - first)).copy() for side in boxes[name])
                lower[place] = np.where(above, np.maximum(lower[place], 0), lower[place])
                upper[place] = np.where(above, upper[place], np.minimum(upper[place], 0))
                boxes[name], empty = (lower, upper), empty | (lower > upper).any(axis=1)
                rows[name] = rows[name] if name in rows else np.zeros((len(sets), end - first))
                rows[name][place] -= multipliers[here] * np.where(above, 1, -1)
        found = self.bounds.backward(rows, self.sample._replace(boxes=boxes), self.slopes, sets)
        return np.where(empty, np.inf, found)
