"""Evaluates what a proof proves: tightened bounds, and trees of splits (docs/proofs.md).

Whatever a proof says, its bounds are true: slopes lie in [0, 1] and multipliers are not negative
by the way they are stored, and the leaves of a binary tree cover the region. A bad proof is weak.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vsparse_check.arrays import BoolArray, FloatArray, IntArray, Interval
from vsparse_check.backward import RowsByName
from vsparse_check.bounds import Bounds
from vsparse_check.op import Op
from vsparse_check.proofs import SplitTree, StoredProof
from vsparse_check.refusal import need
from vsparse_check.rules import ChosenSlopes, SlopeTable


class NumberedRelu(NamedTuple):
    """A ReLU operator, and the numbers [first, end) of its units; proofs count through all."""

    op: Op
    first: int
    end: int

    def holds(self, units: IntArray) -> BoolArray:
        """Returns which units are its own."""
        return (units >= self.first) & (units < self.end)


class LeafSplits(NamedTuple):
    """The splits above some leaves of a tree, all in one list: split k is above leaf leaf[k]."""

    leaves: int  # how many
    sets: IntArray  # [leaves]: the slope set of each leaf
    leaf: IntArray
    units: IntArray
    signs: IntArray  # sign·z >= 0, z what the unit's ReLU reads
    multipliers: FloatArray


class ProofEvaluation:
    """One proof, evaluated over the bounds of its sample."""

    def __init__(self, bounds: Bounds, proof: StoredProof) -> None:
        """Takes bounds of one sample, which `tighten` will tighten."""
        self.bounds, self.proof = bounds, proof
        self.relus = list(numbered_relus(bounds.model.ops))
        self.tables = {relu.op.output: self._table(relu) for relu in self.relus}

    def _table(self, relu: NumberedRelu) -> SlopeTable:
        """Returns the stored slopes of one ReLU operator; units are sorted, and so are columns."""
        here = relu.holds(self.proof.units)
        listed = np.zeros(relu.op.size, dtype=bool)
        listed[self.proof.units[here] - relu.first] = True
        return SlopeTable(listed, self.proof.slopes[:, here])

    def improved(
        self, label: int, margin: float, rows: FloatArray, found: FloatArray
    ) -> FloatArray:
        """Returns bounds of the rows z_label − z_j: `found`, or better ones by trees.

        Only rows below `margin` are improved. A tree's bound is the least of its leaves' bounds, a
        row's the largest of those of its trees and of `found`.
        """
        bounds = self.bounds
        layers = self._layers()
        bounds.model.budget.spend(4 * bounds.model.work(1))
        if found.min() < margin:
            self._tighten(layers)
        for op in bounds.model.ops:  # E once more, from the boxes as they are now
            bounds.charge(op)
        best = found.copy()
        for tree in self.proof.trees:
            index = tree.row_class - (tree.row_class > label)
            need(
                index < len(rows) and tree.row_class != label,
                "a tree of proofs.npz is about a row that does not exist",
            )
            if best[index] < margin:
                best[index] = max(best[index], self._tree_bound(tree, rows[index]))
        return best

    def _layers(self) -> IntArray:
        """Returns for each tightened bound the number of the ReLU whose input it is about."""
        ends = [relu.end for relu in self.relus]
        layers = np.searchsorted(ends, self.proof.tightened.units, side="right")
        need(
            (np.diff(layers) >= 0).all(),
            "the tightened bounds of a proof are not in the order of the network",
        )
        return layers

    def _tighten(self, layers: IntArray) -> None:
        """Tightens the inputs of ReLUs in order, by backward passes with the slopes of the proof.

        True as every other pass; of two bounds the better one is kept. Those of one operator do
        not depend on each other, those of later operators use the earlier ones.
        """
        tightened = self.proof.tightened
        for layer in np.unique(layers).tolist():
            relu, here = self.relus[layer], layers == layer
            slopes = ChosenSlopes(self.tables, tightened.sets[here])
            units, sides = tightened.units[here] - relu.first, tightened.sides[here]
            self.bounds.tighten(relu.op.inputs[0], units, sides, slopes)

    def _tree_bound(self, tree: SplitTree, row: FloatArray) -> float:
        """Returns the least bound of row·output over the leaves, which cover the region."""
        starts = range(0, len(tree.sets), self.bounds.step)
        parts = (splits_of(tree, start, start + self.bounds.step) for start in starts)
        return min(float(self.leaf_bounds(part, row).min()) for part in parts)

    def leaf_bounds(self, splits: LeafSplits, row: FloatArray) -> FloatArray:
        """Returns a lower bound of row·output in each leaf; inf where a leaf has no points.

        A split says s·z >= 0. For β >= 0 and every point of the leaf row·output >= row·output −
        Σ β·s·z (Wang et al., arXiv 2103.06624, theorem 3.1: weak Lagrangian duality), so that a
        lower bound of the right side is one of the left. docs/proofs.md, "The bound of a leaf".
        """
        cut = self._cut_boxes(splits)
        empty = np.zeros(splits.leaves, dtype=bool)
        for box in cut.values():
            empty = empty | (box.lower > box.upper).any(axis=1)
        rows = self._with_multipliers(splits, row)
        slopes = ChosenSlopes(self.tables, splits.sets)
        found = np.where(empty, np.inf, self.bounds.backward(rows, cut, slopes))
        self._check_the_sample(splits, row, found)
        return found

    def _cut_boxes(self, splits: LeafSplits) -> dict[str, Interval]:
        """Returns the boxes [leaves, size] of what split ReLUs read, cut at 0 by the splits."""
        cut = dict[str, Interval]()
        for relu in self.relus:
            here, name = relu.holds(splits.units), relu.op.inputs[0]
            if not here.any():
                continue
            at = (splits.leaf[here], splits.units[here] - relu.first)
            active = splits.signs[here] > 0
            shape = (splits.leaves, relu.op.size)
            before = cut.get(name, self.bounds.boxes[name])
            lower, upper = (np.broadcast_to(end, shape).copy() for end in before)
            lower[at] = np.where(active, np.maximum(lower[at], 0), lower[at])
            upper[at] = np.where(active, upper[at], np.minimum(upper[at], 0))
            cut[name] = Interval(lower, upper)
        return cut

    def _with_multipliers(self, splits: LeafSplits, row: FloatArray) -> RowsByName:
        """Returns the row at the output, and −β·s at what split ReLUs read, [leaves, size]."""
        rows: RowsByName = {self.bounds.model.output: np.repeat(row[None], splits.leaves, axis=0)}
        for relu in self.relus:
            here, name = relu.holds(splits.units), relu.op.inputs[0]
            if not here.any():
                continue
            if name not in rows:
                rows[name] = np.zeros((splits.leaves, relu.op.size))
            at = (splits.leaf[here], splits.units[here] - relu.first)
            rows[name][at] -= splits.multipliers[here] * splits.signs[here]
        return rows

    def _check_the_sample(self, splits: LeafSplits, row: FloatArray, found: FloatArray) -> None:
        """Raises Unchecked, as a contradiction, for the bound of a leaf that the sample refutes.

        That is a leaf in which the sample certainly lies (docs/numerics.md, section 4.4).
        """
        executed, output = self.bounds.executed, self.bounds.model.output
        outside = np.zeros(splits.leaves, dtype=bool)
        for relu in self.relus:
            here = relu.holds(splits.units)
            certain = executed.certainly_on_side(
                relu.op.inputs[0], splits.units[here] - relu.first, splits.signs[here]
            )
            outside[splits.leaf[here][~certain]] = True
        rows = np.repeat(row[None], splits.leaves, axis=0)
        inside = np.where(outside, -np.inf, found)
        executed.check_rows(output, rows, inside, np.zeros(splits.leaves, dtype=np.int64))


def numbered_relus(ops: list[Op]) -> Iterator[NumberedRelu]:
    """Returns the ReLU operators in order, their units counted through all of them."""
    start = 0
    for op in ops:
        if op.kind == "relu":
            yield NumberedRelu(op, start, start + op.size)
            start += op.size


def splits_of(tree: SplitTree, start: int, end: int) -> LeafSplits:
    """Returns the splits above the leaves [start, end) of a tree."""
    depths, sets = tree.depths[start:end], tree.sets[start:end]
    begin = int(tree.depths[:start].sum())
    part = slice(begin, begin + int(depths.sum()))
    splits = tree.splits[part]
    return LeafSplits(
        leaves=len(sets),
        sets=sets,
        leaf=np.repeat(np.arange(len(sets)), depths),
        units=np.abs(splits) - 1,
        signs=np.sign(splits),
        multipliers=tree.multipliers[part],
    )
