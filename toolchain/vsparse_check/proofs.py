"""Reads certificate/proofs.npz and evaluates what it proves (docs/proofs.md). Whatever a proof says, its bounds are true or refused."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsparse_check.bounds import Bounds, Slopes
from vsparse_check.certificate import read_arrays
from vsparse_check.limits import Budget
from vsparse_check.op import Array, Ints, Op
from vsparse_check.refusal import need
from vsparse_check.rounding import Box

MAX_BYTES = 2**28  # of all arrays together, unpacked
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
    slopes: NDArray[np.uint8]
    lemmas: Ints
    trees: list[Tree]


def read_proofs(path: Path, units: int, budget: Budget) -> dict[int, Proof]:
    """Returns the proofs by sample id for a network of so many ReLU units; Refused where the file is anything but what is specified."""
    arrays = read_arrays(path, TYPES, MAX_BYTES, budget)
    at, nodes_and_paths = dict.fromkeys(arrays, 0), arrays["node_unit"].size + arrays["multipliers"].size
    budget.spend(2_000.0 * nodes_and_paths + 100_000.0 * (arrays["ids"].size + arrays["tree_class"].size))
    budget.hold(100.0 * nodes_and_paths + 16.0 * sum(value.size for value in arrays.values()))  # paths are tuples while they are read

    def take(name: str, count: int, lowest: int, end: float) -> NDArray[Any]:
        """Returns the next `count` numbers of an array, all of them within [lowest, end)."""
        part = arrays[name][at[name] : at[name] + count]
        at[name] += count
        need(len(part) == count and ((part >= lowest) & (part < end)).all(), f"{path.name} has too few or impossible {name}")
        return part.astype({"multipliers": np.float64, "slopes": np.uint8}.get(name, np.int64))

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
        own, slopes = take("units", listed, 0, units), take("slopes", sets * listed, 0, 256).reshape(sets, listed)
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


def improve(bounds: Bounds, proof: Proof, label: int, margin: float, rows: Array, found: Array) -> Array:
    """Returns bounds `found` of the rows, those below `margin` raised to what the trees of a proof prove; `bounds` gets its lemmas.

    A lemma is a bound by `Bounds.backward` with chosen slopes, true as every other; the better one is kept.
    """
    spans, slopes, start = list[tuple[Op, int, int]](), Slopes(), 0
    for op in [op for op in bounds.network.ops if op.kind == "relu"]:
        spans.append((op, start, start + prod(op.shape)))
        here = (proof.units >= start) & (proof.units < start + prod(op.shape))
        listed = np.zeros(prod(op.shape), dtype=bool)
        listed[proof.units[here] - start] = True
        slopes[op.output] = listed, proof.slopes[:, here]
        start += prod(op.shape)
    layers = np.searchsorted([end for _, _, end in spans], proof.lemmas[:, 0], side="right")
    need((np.diff(layers) >= 0).all(), "the lemmas of a proof are not in the order of the network")
    bounds.budget.spend(4 * bounds.network.work(1))
    for layer in np.unique(layers).tolist() if found.min() < margin else []:
        unit, side, sets = proof.lemmas[layers == layer].T
        bounds.tighten(spans[layer][0].inputs[0], unit - spans[layer][1], side, slopes, sets)
    bounds.pay(*bounds.network.ops)
    for tree in proof.trees:
        place = tree.row - (tree.row > label)
        need(place < len(rows) and tree.row != label, "a tree of proofs.npz is about a row that does not exist")
        if found[place] < margin:
            parts = [slice(start, start + bounds.step) for start in range(0, len(tree.sets), bounds.step)]
            found[place] = max(found[place], min(float(_leaves(bounds, spans, tree, part, rows[place], slopes).min()) for part in parts))
    return found


def _leaves(bounds: Bounds, spans: list[tuple[Op, int, int]], tree: Tree, part: slice, row: Array, slopes: Slopes) -> Array:
    """Returns a bound of row · output for each leaf of a part of a tree; a split says s·z >= 0, z the executed input of a ReLU unit.

    For β >= 0 and every point of the leaf, row·output >= row·output − Σ β·s·z (Wang et al., arXiv 2103.06624, theorem 3.1: weak
    Lagrangian duality), so a lower bound of the right side is one of the left. Boxes are cut at 0; an empty one has no points.
    """
    depths, sets = tree.depths[part], tree.sets[part]
    count, begin = len(sets), int(tree.depths[: part.start].sum())
    splits, beta = tree.splits[begin : begin + depths.sum()], tree.multipliers[begin : begin + depths.sum()]
    which, units, cut, empty = np.repeat(np.arange(count), depths), np.abs(splits) - 1, dict[str, Box](), np.zeros(count, dtype=bool)
    rows = {bounds.network.output: np.repeat(row[None], count, axis=0)}
    for op, first, end in spans:
        here, name = (units >= first) & (units < end), op.inputs[0]
        if here.any():
            place, above = (which[here], units[here] - first), splits[here] > 0
            lower, upper = (np.broadcast_to(side, (count, end - first)).copy() for side in cut.get(name, bounds.boxes[name]))
            lower[place] = np.where(above, np.maximum(lower[place], 0), lower[place])
            upper[place] = np.where(above, upper[place], np.minimum(upper[place], 0))
            cut[name], empty = (lower, upper), empty | (lower > upper).any(axis=1)
            rows[name] = rows[name] if name in rows else np.zeros((count, end - first))
            rows[name][place] -= beta[here] * np.where(above, 1, -1)
    found = np.where(empty, np.inf, bounds.backward(rows, cut=cut, slopes=slopes, sets=sets))
    _allow_the_sample(bounds, spans, splits, which, found, row)
    return found


def _allow_the_sample(bounds: Bounds, spans: list[tuple[Op, int, int]], splits: Ints, which: Ints, found: Array, row: Array) -> None:
    """Leaves unchecked, as a contradiction, a bound of a leaf that the sample itself certainly lies in and contradicts.

    Split k stands above leaf which[k].
    """
    outside, units = np.zeros(len(found), dtype=bool), np.abs(splits) - 1
    for op, first, end in spans:
        here = (units >= first) & (units < end)
        certain = bounds.executed.lies(op.inputs[0], units[here] - first, np.sign(splits[here]))
        outside[which[here][~certain]] = True
    inside = np.where(outside, -np.inf, found)
    bounds.executed.above(bounds.network.output, np.repeat(row[None], len(found), axis=0), inside, np.zeros(len(found), dtype=np.int64))
