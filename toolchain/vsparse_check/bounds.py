"""Lower bounds of margins over a region, for every execution within a numeric contract; float64, its own rounding included.

The executed value of every activation is the variable. So ReLU acts exactly, a branch z <= 0 or z >= 0 is exact, and each operator
costs |A|·E for a row A that passes it (NUMERICS.md, section 3).
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsparse_check.model import Array, Network, Op
from vsparse_check.region import Regions
from vsparse_check.rounding import FLOOR, Box, Rounding, largest

WORKING_SET = 2**26  # bytes of one array of rows: small enough for caches, large enough to be fast
Boxes = dict[str, Box]
Ints = NDArray[np.int64]


class Sample(NamedTuple):
    """What is known about sample i: boxes of all activations, [1 or rows, size], and what a unit of coefficient costs in each."""

    boxes: Boxes
    costs: dict[str, Array]
    regions: Regions
    i: int


def dot(a: Array, b: Array) -> Array:
    """Returns the products [r] of rows a [r, size] with b [1, size] or [r, size]."""
    return np.asarray(a @ b[0] if len(b) == 1 else np.einsum("ps,ps->p", a, b))


class Bounds:
    """Bounds for one network under a contract (its fields as in a certificate)."""

    def __init__(self, network: Network, contract: dict[str, str]) -> None:
        self.network, self.rounding = network, Rounding(network, contract)
        self.made, self.g, sizes = self.rounding.made, self.rounding.g, [prod(network.shape), *(prod(op.shape) for op in network.ops)]
        self.step, self.total = max(1, WORKING_SET // (8 * max(sizes))), sum(sizes)
        self.relus = [op for op in network.ops if op.kind == "relu"]
        self.units = sum(prod(op.shape) for op in self.relus)
        self.pooled = {op.inputs[0] for op in network.ops if op.kind == "maxpool"}
        self.relaxed = self.pooled | {op.inputs[0] for op in self.relus}
        self.last_hidden = self._before(network.output, ("sum", "pool", "shift", "scale"))
        self.classes = self.made[network.output].shape[0] if network.ops else network.shape[0]

    def _before(self, name: str, forms: tuple[str, ...]) -> str:
        """Returns what the longest chain of linear operators of these forms that ends in an activation reads."""
        while name in self.made and (self.made[name].kind == "same" or self.made[name].form in forms):
            name = self.made[name].inputs[0]
        return name

    def _refinable(self, op: Op, regions: Regions) -> bool:
        """Whether the interval of an operator's output can be improved: not where it is exact, one sum after a box."""
        first = self._before(op.inputs[0], ("shift", "scale")) == self.network.input and op.kind != "add"
        return op.output in self.relaxed and op.kind != "relu" and not (first and regions.is_box)

    def _propagate(self, op: Op, boxes: Boxes) -> Box:
        """Returns the box of an operator's exact output on executed inputs.

        Interval arithmetic (Gowal et al., arXiv 1810.12715, section 3): W maps the centre, |W| the radius; monotone operators map ends.
        """
        lower, upper = boxes[op.inputs[0]]
        if op.kind == "linear":
            centre = op.forward(op.weight, (lower + upper) * 0.5) + op.bias
            radius = op.forward(np.abs(op.weight), (upper - lower) * 0.5)
            return centre - radius, centre + radius
        if op.kind == "maxpool":
            lower, upper = (np.max(op.views(end, -np.inf), axis=0).reshape(len(end), -1) for end in (lower, upper))
        elif op.kind == "add":
            lower, upper = lower + boxes[op.inputs[1]][0], upper + boxes[op.inputs[1]][1]
        return (np.maximum(lower, 0), np.maximum(upper, 0)) if op.kind == "relu" else (lower, upper)

    @staticmethod
    def _widened(box: Box, error: Array) -> Box:
        """Returns the box with both ends moved out by `error`; (−inf, inf) where nothing is known."""
        lower, upper = box[0] - error, box[1] + error
        known = np.isfinite(lower) & np.isfinite(upper)
        return np.where(known, lower, -np.inf), np.where(known, upper, np.inf)

    def costs(self, boxes: Boxes) -> dict[str, Array]:
        """Returns what a unit of coefficient costs at each activation so far: E, and g·m for adding up coefficients of several readers."""
        errors = {self.network.input: self.rounding.stored_input(boxes[self.network.input])}
        errors |= {op.output: self.rounding.error(op, boxes, boxes[op.output]) for op in self.network.ops if op.output in boxes}
        return {name: error + self.g * largest(boxes[name]) for name, error in errors.items()}

    def samples(self, boxes: Boxes, regions: Regions) -> list[Sample]:
        """Returns what is known about each sample; its boxes are views, which `tighten` writes to."""
        costs, each = self.costs(boxes), [slice(i, i + 1) for i in range(len(regions.x))]
        return [
            Sample({k: (l[i], u[i]) for k, (l, u) in boxes.items()}, {k: cost[i] for k, cost in costs.items()}, regions, i.start)
            for i in each
        ]

    def boxes(self, regions: Regions, refine: bool) -> Boxes:
        """Returns a box [n, size] of the executed value of every activation.

        With `refine` the inputs of ReLU that may have either sign, and all inputs of max-pools, are bounded by `backward` as well,
        in order; both bounds hold, so their intersection does.
        """
        boxes = {self.network.input: self._widened(regions.box, self.rounding.stored_input(regions.box))}
        for op in self.network.ops:
            box = self._propagate(op, boxes)
            error = self.rounding.error(op, boxes, box)
            boxes[op.output] = self._widened(box, error if op.kind in ("linear", "add") else 0 * error)
            for of in self.samples(boxes, regions) if refine and self._refinable(op, regions) else []:
                lower, upper = of.boxes[op.output]
                units = np.flatnonzero((lower < 0) & (upper > 0) | (op.output in self.pooled))
                self.tighten(op.output, np.tile(units, 2), np.repeat([0, 1], len(units)), of)
        return boxes

    def tighten(
        self, name: str, units: Ints, sides: Ints, of: Sample, slopes: dict[str, Array] | None = None, sets: Ints | None = None
    ) -> None:
        """Bounds units [p] of an activation from below (side 0) or above (1) by `backward`, and keeps the better bound, in place."""
        lower, upper = (end[0] for end in of.boxes[name])
        for start in range(0, len(units), self.step):
            part = slice(start, start + self.step)
            unit, side = units[part], sides[part]
            rows = np.zeros((len(unit), len(lower)))
            rows[np.arange(len(unit)), unit] = 1 - 2 * side
            found = self.backward({name: rows}, of, slopes, None if sets is None else sets[part])
            np.maximum.at(lower, unit[side == 0], found[side == 0])
            np.minimum.at(upper, unit[side == 1], -found[side == 1])

    def backward(
        self, rows: dict[str, Array], of: Sample, slopes: dict[str, Array] | None = None, sets: Ints | None = None, stop: str = ""
    ) -> Array:
        """Returns lower bounds [r] of the sum of rows[name] · z_name, z the executed activations of a sample; rows are [r, size].

        `slopes` gives tables of lower slopes by ReLU, of which row k uses line sets[k]; NaN for the default. With `stop`, the one
        activation that everything after it depends on, the row that arrives there is bounded over its box.
        Backward linear bounds (CROWN: Zhang et al., arXiv 1811.00866, theorem 3.2; on graphs: Xu et al., arXiv 2002.12920).
        """
        pending, constant = dict(rows), np.zeros(1)
        # What adding up coefficients may lose at first; later each reader pays for what it passes on.
        absolute: Array = sum((dot(np.abs(a), largest(of.boxes[name])) for name, a in rows.items()), np.zeros(1))
        for op in reversed(self.network.ops):
            if op.output not in pending or op.output == stop:
                continue
            a = pending.pop(op.output)
            terms, parts = [-dot(np.abs(a), of.costs[op.output])], [a] * len(op.inputs)
            if op.kind == "linear":
                parts, terms = [op.backward(a)], [*terms, a @ op.bias]
                absolute = absolute + np.abs(a) @ np.abs(op.bias)
            elif op.kind == "relu":
                chosen = slopes[op.output][sets] if slopes and op.output in slopes else None
                parts, terms = [self._relu(a, of.boxes[op.inputs[0]], chosen, terms)], terms
            elif op.kind == "maxpool":
                parts, terms = [self._maxpool(op, a, of.boxes[op.inputs[0]], terms)], terms
            constant, absolute = constant + sum(terms), absolute + sum(map(np.abs, terms))
            for source, part in zip(op.inputs, parts, strict=True):
                pending[source] = pending[source] + part if source in pending else part
        for name, a in pending.items():  # the input, or `stop`
            lower, upper = of.boxes[name]
            radius = (upper - lower) * 0.5 * (1 + 1e-12) + FLOOR
            absolute = absolute + dot(np.abs(a), of.costs[name] + largest(of.boxes[name]) + radius)
            over_box = dot(a, (lower + upper) * 0.5) - dot(np.abs(a), radius)
            inside = of.regions.least(of.i, a, self.g) if name == self.network.input else over_box
            constant = constant - dot(np.abs(a), of.costs[name]) + inside
        bound = constant - self.g * (absolute + np.abs(constant)) * 1.01 - FLOOR
        return np.asarray(np.where(np.isfinite(bound) & (absolute < 1e100), bound, -np.inf))

    @staticmethod
    def _relu(a: Array, box: Box, chosen: Array | None, terms: list[Array]) -> Array:
        """Relaxes ReLU on [l, u], l < 0 < u: α·x <= ReLU(x) <= s·x + t; any α in [0, 1], by default 1 if u > −l else 0; s = u / (u − l).

        t is raised until the line, with s as computed, is above ReLU at l and at u; ReLU is convex, so it is above it between them.
        """
        lower, upper = box
        unstable, active = (lower < 0) & (upper > 0), (lower >= 0).astype(np.float64)
        span = np.where(unstable, upper - lower, 1)
        slope = np.where(unstable, np.clip(upper / span, 0, 1), active)
        intercept = np.where(unstable, np.maximum(-slope * lower, upper - slope * upper) + 1e-15 * span, 0)
        alpha = np.where(unstable, upper > -lower, active)
        if chosen is not None:
            alpha = np.where(unstable & ~np.isnan(chosen), chosen, alpha)
        below = np.minimum(a, 0)
        terms.append(dot(below, intercept))
        return np.asarray((a - below) * alpha + below * slope)

    @staticmethod
    def _maxpool(op: Op, a: Array, box: Box, terms: list[Array]) -> Array:
        """Relaxes a maximum: at least the input with the highest lower bound; at most that one if no other can exceed it, else max u."""
        ends = box[0].min(axis=0), box[1].max(axis=0)  # of all rows
        lows, highs = (np.stack(op.views(end, -np.inf)).reshape(prod(op.kernel), -1) for end in ends)
        choice, top = lows.argmax(axis=0), highs.max(axis=0)
        others = np.where(np.arange(len(lows))[:, None] == choice, -np.inf, highs).max(axis=0)
        below = np.where(lows.max(axis=0) >= others, 0, np.minimum(a, 0))
        terms += [below @ np.maximum(top, 0), below @ np.minimum(top, 0)]
        return op.scattered((np.where(choice == place, a - below, 0) for place in range(len(lows))), len(a))

    def rows(self, label: int) -> Array:
        """Returns the rows z_label − z_j of all classes j ≠ label, in order, [classes − 1, classes]."""
        rows = -np.delete(np.eye(self.classes), label, axis=0)
        rows[:, label] = 1
        return rows

    def margins(self, of: Sample, label: int, fold_only: bool) -> Array:
        """Returns lower bounds [classes − 1] of `rows`: folded into the last linear operators; unless `fold_only`, also of a whole pass."""
        rows = {self.network.output: self.rows(label)}
        found = self.backward(rows, of, stop=self.last_hidden)
        return found if fold_only else np.maximum(found, self.backward(rows, of))
