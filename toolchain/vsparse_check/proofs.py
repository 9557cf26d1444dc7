"""Reads certificate/proofs.npz and evaluates what it proves (docs/proofs.md). Whatever a proof says, its bounds are true or refused."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsparse_check.bounds import Bounds, Sample
from vsparse_check.certificate import read_arrays
from vsparse_check.model import Array, Refused

Ints = NDArray[np.int64]
TYPES = {
    **dict.fromkeys(("version", "ids", "unit_start", "set_start", "lemma_start", "tree_start", "node_start"), "<i8"),
    **dict.fromkeys(("units", "lemma_unit", "lemma_set", "tree_class", "node_unit", "leaf_set"), "<i4"),
    **{"slopes": "|u1", "lemma_side": "|u1", "multipliers": "<f4"},
}
MAX_PROOFS = 2**28  # bytes, unpacked


@dataclass(frozen=True)
class Tree:
    """Leaves [F] in order: slope sets, how many splits are above each; and for each split of each leaf sign·(unit + 1) and β."""

    row: int
    sets: Ints
    depths: Ints
    splits: Ints
    multipliers: Array


@dataclass(frozen=True)
class Proof:
    """A proof: units with slopes, slope sets [sets, units], lemmas [L, 3] (unit, side, slope set), and trees."""

    units: Ints
    slopes: Array
    lemmas: Ints
    trees: list[Tree]


def read_proofs(path: Path, units: int) -> dict[int, Proof]:
    """Returns the proofs by sample id for a network of so many ReLU units; Refused where the file is anything but what is specified."""
    a = read_arrays(path, TYPES, MAX_PROOFS)

    def need(holds: object) -> None:
        if not holds:
            raise Refused(f"{path.name} is not of the format of proofs")

    def parts(name: str, count: int, total: int | None) -> list[slice]:
        start = a[name]
        need(len(start) == count + 1 and start[0] == 0 and (np.diff(start) >= 0).all() and total in (None, int(start[-1])))
        return [slice(*pair) for pair in zip(start.tolist()[:-1], start.tolist()[1:], strict=True)]

    def within(values: NDArray[np.generic], lowest: int, end: int) -> Ints:
        found = values.astype(np.int64)
        need(not found.size or (found.min() >= lowest and found.max() < end))
        return found

    count, lemmas = len(a["ids"]), [len(a[name]) for name in ("lemma_unit", "lemma_side", "lemma_set")]
    need(all(value.ndim == 1 for value in a.values()) and a["version"].tolist() == [1] and (np.diff(a["ids"]) > 0).all())
    need(min(lemmas) == max(lemmas) and np.isfinite(a["multipliers"]).all() and (a["multipliers"] >= 0).all())
    unit_parts, set_parts = parts("unit_start", count, len(a["units"])), parts("set_start", count, None)
    lemma_parts, tree_parts = parts("lemma_start", count, lemmas[0]), parts("tree_start", count, len(a["tree_class"]))
    node_parts = parts("node_start", len(a["tree_class"]), len(a["node_unit"]))
    within(a["node_unit"], -1, units)
    found, slope, leaf, multiplier = {}, 0, 0, 0
    for p, sample_id in enumerate(a["ids"].tolist()):
        listed, sets = within(a["units"][unit_parts[p]], 0, units), set_parts[p].stop - set_parts[p].start
        need((np.diff(listed) > 0).all() and sets * len(listed) <= len(a["slopes"]) - slope)
        slopes = a["slopes"][slope : slope + sets * len(listed)].reshape(sets, len(listed)) / 255.0
        slope += slopes.size
        columns = (("lemma_unit", 0, units), ("lemma_side", 0, 2), ("lemma_set", -1, sets))
        lemma = np.stack([within(a[name][lemma_parts[p]], lowest, end) for name, lowest, end in columns], axis=1)
        trees = []
        for t in range(tree_parts[p].start, tree_parts[p].stop):
            depths, splits = _walk(a["node_unit"][node_parts[t]].tolist(), len(a["multipliers"]) - multiplier)
            leaf_sets = within(a["leaf_set"][leaf : leaf + len(depths)], -1, sets)
            beta = a["multipliers"][multiplier : multiplier + len(splits)].astype(np.float64)
            need(len(leaf_sets) == len(depths))
            trees.append(Tree(int(a["tree_class"][t]), leaf_sets, depths, splits, beta))
            leaf, multiplier = leaf + len(depths), multiplier + len(splits)
        found[sample_id] = Proof(listed, slopes, lemma, trees)
    need([slope, leaf, multiplier] == [len(a[name]) for name in ("slopes", "leaf_set", "multipliers")])
    return found


def _walk(nodes: list[int], most: int) -> tuple[Ints, Ints]:
    """Returns depth of each leaf and the splits above the leaves, of a tree in preorder; Refused unless it is one, with `most` splits."""
    depths, splits, path, above = array("q"), array("q"), list[int](), set[int]()
    for place, unit in enumerate(nodes):
        if unit >= 0:
            if unit in above:
                raise Refused(f"a tree of proofs.npz splits unit {unit} twice on a path")
            path.append(-unit - 1)
            above.add(unit)
            continue
        splits.extend(path)
        depths.append(len(path))
        while path and path[-1] > 0:  # both children of the last split are done
            above.remove(path.pop() - 1)
        if bool(path) == (place == len(nodes) - 1) or len(splits) > most:
            break
        if path:
            path[-1] = -path[-1]
    else:
        if nodes and not path:
            return np.array(depths, dtype=np.int64), np.array(splits, dtype=np.int64)
    raise Refused("a tree of proofs.npz has too many or too few nodes or multipliers")


class Evaluation:
    """What a proof proves about one sample; `tightened` has the boxes after its lemmas."""

    def __init__(self, bounds: Bounds, proof: Proof, of: Sample) -> None:
        """Applies the lemmas: each is a bound by `Bounds.backward` with chosen slopes, true as every other; the better one is kept."""
        self.bounds, self.proof = bounds, proof
        ends = np.cumsum([0, *(of.boxes[op.inputs[0]][0].size for op in bounds.relus)])
        self.spans = list(zip(bounds.relus, ends[:-1].tolist(), ends[1:].tolist(), strict=True))
        self.tables = {}
        for op, first, end in self.spans:  # slopes of a ReLU by set, NaN: the default; the last line is that of set −1
            here = (proof.units >= first) & (proof.units < end)
            if here.any():
                self.tables[op.output] = np.full((len(proof.slopes) + 1, end - first), np.nan)
                self.tables[op.output][:-1, proof.units[here] - first] = proof.slopes[:, here]
        boxes = {name: (lower.copy(), upper.copy()) for name, (lower, upper) in of.boxes.items()}
        self.sample = replace(of, boxes=boxes)
        layers = np.searchsorted(ends, proof.lemmas[:, 0], side="right")
        if (np.diff(layers) < 0).any():
            raise Refused("the lemmas of a proof are not in the order of the network")
        for op, first, end in self.spans:
            unit, side, sets = proof.lemmas[(proof.lemmas[:, 0] >= first) & (proof.lemmas[:, 0] < end)].T
            bounds.tighten(op.inputs[0], unit - first, side, self.sample, partial(self._part, sets))
        arrays = {name: (lower[None], upper[None]) for name, (lower, upper) in boxes.items()}
        costs = bounds.costs(arrays)
        self.sample = replace(of, boxes=boxes, costs={name: cost[0] for name, cost in costs.items()})

    def _part(self, sets: Ints, part: slice) -> dict[str, Array]:
        return self.slopes(sets[part])

    def slopes(self, sets: Ints) -> dict[str, Array]:
        """Returns the lower slopes [len(sets), size] of each ReLU that has some."""
        return {name: table[sets] for name, table in self.tables.items()}

    def bound(self, tree: Tree, row: Array) -> float:
        """Returns a lower bound of row · output: the smallest of the leaves', which cover the region."""
        first, lowest = np.concatenate([[0], np.cumsum(tree.depths)]), np.inf
        for start in range(0, len(tree.depths), self.bounds.step):
            leaves = slice(start, min(start + self.bounds.step, len(tree.depths)))
            splits = slice(first[leaves.start], first[leaves.stop])
            which = np.repeat(np.arange(leaves.stop - leaves.start), tree.depths[leaves])
            found = self._leaves(tree.sets[leaves], which, tree.splits[splits], tree.multipliers[splits], row)
            lowest = min(lowest, float(found.min()))
        return lowest

    def _leaves(self, sets: Ints, which: Ints, splits: Ints, multipliers: Array, row: Array) -> Array:
        """Returns a bound for each leaf; split k of leaf which[k] says s·z >= 0, z the executed pre-activation of a unit.

        For β >= 0 and every point of the leaf, row·output >= row·output − Σ β·s·z (Wang et al., arXiv 2103.06624, theorem 3.1: weak
        Lagrangian duality), so a lower bound of the right side is one of the left. Boxes are cut at 0; an empty one has no points.
        """
        count, boxes, empty = len(sets), dict(self.sample.boxes), np.zeros(len(sets), dtype=bool)
        rows = {self.bounds.network.output: np.repeat(row[None], count, axis=0)}
        units, signs = np.abs(splits) - 1, np.sign(splits)
        for op, first, end in self.spans:
            here, name = (units >= first) & (units < end), op.inputs[0]
            if here.any():
                leaf, unit, sign = which[here], units[here] - first, signs[here]
                lower, upper = (np.broadcast_to(side, (count, end - first)).copy() for side in boxes[name])
                np.maximum.at(lower, (leaf[sign > 0], unit[sign > 0]), 0.0)
                np.minimum.at(upper, (leaf[sign < 0], unit[sign < 0]), 0.0)
                boxes[name], empty = (lower, upper), empty | (lower > upper).any(axis=1)
                rows.setdefault(name, np.zeros((count, end - first)))
                np.subtract.at(rows[name], (leaf, unit), multipliers[here] * sign)
        found = self.bounds.backward(rows, replace(self.sample, boxes=boxes), self.slopes(sets))
        return np.where(empty, np.inf, found)


def improved(rows: Array, bounds: Bounds, proof: Proof, of: Sample, label: int, margin: float) -> Array:
    """Returns the bounds `rows` [classes − 1] raised to those of the trees of a proof, where they are not above `margin` already."""
    found, open_rows = rows.copy(), {j for j in range(bounds.classes) if j != label}
    needed = {j for j, row in zip(sorted(open_rows), rows, strict=True) if row < margin}
    if needed:
        evaluation, all_rows = Evaluation(bounds, proof, of), bounds.rows(label)
        for tree in proof.trees:
            place = tree.row - (tree.row > label)
            if tree.row in needed and found[place] < margin:
                found[place] = max(found[place], evaluation.bound(tree, all_rows[place]))
    return found
