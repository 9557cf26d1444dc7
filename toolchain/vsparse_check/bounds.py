"""Lower bounds of margins over a region, for every execution within a numeric contract; float64, its own rounding included.

The executed value of every activation is the variable. So ReLU acts exactly, a branch z <= 0 or z >= 0 is exact, and each operator
costs |A|·E for a row A that passes it (docs/numerics.md, section 4.2).
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from vsparse_check import curves
from vsparse_check.execution import Execution
from vsparse_check.model import Network
from vsparse_check.op import Array, Ints, Op
from vsparse_check.refusal import Unchecked
from vsparse_check.region import Region, over_box
from vsparse_check.relaxations import relu, staircase, steps, strongest
from vsparse_check.rounding import FLOOR, Box, Rounding, dot, largest

WORKING_SET = 2**25  # bytes of one array of rows: small enough for caches, large enough to be fast
Boxes = dict[str, Box]
Slopes = dict[str, tuple[NDArray[np.bool_], NDArray[np.uint8]]]  # by ReLU: which units have slopes, and 255 times these, a set a line
NONE: Ints = np.zeros(0, dtype=np.int64)
ALONE = ("shift", "scale", "div", "neg", "move")  # linear, of one activation, element by element
FOLDED = (*ALONE, "sum", "pool")
EXACT = ("relu", "maxpool", "quant")  # kinds whose box is that of their input: nothing is lost


class Bounds:
    """What is known about the executions of a network on regions: `boxes` [n, size] of all activations, refined or not (n = 1)."""

    def __init__(self, network: Network, rounding: Rounding, region: Region, refine: bool) -> None:
        """Interval arithmetic (Gowal et al., arXiv 1810.12715, section 3), widened by E at each operator.

        With `refine` what ReLU, curves and quantisation read and may lie on either side of a kink, and all inputs of max-pools, are
        bounded by `backward` as well, in order; both bounds hold, so their intersection does. Nothing is gained one sum after a box.
        Unchecked, as a contradiction, where the execution of the sample itself lies outside of a box.
        """
        self.network, self.rounding, self.region, self.budget = network, rounding, region, network.budget
        widest = max(prod(network.shape), *(op.room for op in network.ops), 1)
        self.step = max(1, min(WORKING_SET, self.budget.memory // 64) // (8 * widest))
        readers = {name: [op for op in network.ops if name in op.inputs and op.kind in (*EXACT, "curve")] for name in network.names}
        self.boxes, self.costs = {network.input: _widened(region.box, rounding.stored_input(region.box))}, dict[str, Array]()
        self.pay()
        self.executed = Execution(network, region.x)
        for op in network.ops:
            self.budget.spend(6 * op.work(len(region.x)))
            box = _propagated(op, self.boxes)
            error = rounding.error(op, self.boxes, box)
            self.boxes[op.output] = lower, upper = _widened(box, 0 * error if op.kind in EXACT else error)
            self.executed.step(op)
            self.executed.within(op.output, self.boxes[op.output])
            self.pay(op)
            exact = region.is_box and op.kind == "linear" and self._before(op.inputs[0], ALONE) == network.input
            if refine and readers.get(op.output) and op.kind not in ("relu", "quant", "curve") and not exact:
                units = np.flatnonzero(np.any([_unsettled(reader, lower[0], upper[0]) for reader in readers[op.output]], axis=0))
                self.tighten(op.output, np.tile(units, 2), np.repeat([0, 1], len(units)))
                self.pay(op)

    def _before(self, name: str, forms: tuple[str, ...]) -> str:
        """Returns what the longest chain of linear operators of these forms that ends in an activation reads."""
        while name in self.rounding.made and self.rounding.made[name].form in forms:
            name = self.rounding.made[name].inputs[0]
        return name

    def pay(self, *ops: Op) -> None:
        """Sets what a unit of coefficient costs at activations: E, and g·m for adding up coefficients of several readers."""
        errors = {op.output: self.rounding.error(op, self.boxes, self.boxes[op.output]) for op in ops}
        errors = errors or {self.network.input: self.rounding.stored_input(self.region.box)}
        self.costs |= {name: error + self.rounding.g * largest(self.boxes[name]) for name, error in errors.items()}

    def tighten(self, name: str, units: Ints, sides: Ints, slopes: Slopes | None = None, sets: Ints = NONE) -> None:
        """Bounds units [p] of an activation from below (side 0) or above (1) by `backward`, and keeps the better bound."""
        lower, upper = (end[0].copy() for end in self.boxes[name])
        for start in range(0, len(units), self.step):
            part = slice(start, start + self.step)
            unit, side = units[part], sides[part]
            rows = np.zeros((len(unit), len(lower)))
            rows[np.arange(len(unit)), unit] = 1 - 2 * side
            found = self.backward({name: rows}, slopes=slopes, sets=sets[part])
            np.maximum.at(lower, unit[side == 0], found[side == 0])
            np.minimum.at(upper, unit[side == 1], -found[side == 1])
        self.boxes[name] = lower[None], upper[None]
        self.executed.within(name, self.boxes[name])

    def backward(
        self,
        rows: dict[str, Array],
        stop: str = "",
        cut: Boxes | None = None,
        slopes: Slopes | None = None,
        sets: Ints = NONE,
        of: Ints | slice = slice(None),
    ) -> Array:
        """Returns lower bounds [r] of the sum of rows[name] · z_name, z the executed activations; rows are [r, size].

        With `stop`, the one activation that everything after it depends on, the row that arrives there is bounded over its box. `cut`
        holds boxes [r, size] that hold for a row each; `slopes` are those of which row k uses set sets[k] (−1: none); `of`: their samples.
        Backward linear bounds (CROWN: Zhang et al., arXiv 1811.00866, theorem 3.2; on graphs: Xu et al., arXiv 2002.12920).
        """
        boxes, g = self.boxes | (cut or {}), self.rounding.g
        pending, constant, absolute = self._down(rows, boxes, stop, slopes, sets, of)
        for name, a in pending.items():  # the input, or `stop`
            box = boxes[name][0][of], boxes[name][1][of]
            # The box of `stop` is one of executed values: what they lost is in it.
            cost = dot(np.abs(a), 2 * g * largest(box) if name == stop else self.costs[name][of])
            constant = constant - cost + (over_box(a, box, g) if name == stop else self.region.least(a, g))
            absolute = absolute + cost + dot(np.abs(a), largest(box))
        bound = constant - g * (absolute + np.abs(constant)) * 1.01 - FLOOR
        return np.asarray(np.where(np.isfinite(bound) & (absolute < 1e100), bound, -np.inf))

    def slopes_at_input(self, rows: Array) -> Array:
        """Returns rows [r, size] of the output as rows at the input: around a single point, the gradients there."""
        found = self._down({self.network.output: rows}, self.boxes, "", None, NONE, slice(None))[0]
        return found.get(self.network.input, np.zeros((len(rows), prod(self.network.shape))))

    def _down(
        self, rows: dict[str, Array], boxes: Boxes, stop: str, slopes: Slopes | None, sets: Ints, of: Ints | slice
    ) -> tuple[dict[str, Array], Array, Array]:
        """Returns what rows become at the input or at `stop`, the constants that they leave on the way, and a bound of all terms' sizes."""
        pending, constant = dict(rows), np.zeros(1)
        # What adding up coefficients may lose at first; later each reader pays for what it passes on.
        absolute: Array = sum((dot(np.abs(a), largest(boxes[name])[of]) for name, a in rows.items()), np.zeros(1))
        for op in reversed(self.network.ops):
            if op.output not in pending or op.output == stop:
                continue
            a = pending.pop(op.output)
            self.budget.spend(op.work(len(a)))
            terms = [-dot(np.abs(a), self.costs[op.output][of])]
            parts = self._passed(op, a, boxes, slopes, sets, terms)
            constant, absolute = constant + sum(terms), absolute + sum(map(np.abs, terms))
            for source, part in zip(op.inputs, parts, strict=True):
                pending[source] = pending[source] + part if source in pending else part
        return pending, constant, absolute

    def _passed(self, op: Op, a: Array, boxes: Boxes, slopes: Slopes | None, sets: Ints, terms: list[Array]) -> list[Array]:
        """Returns the rows that rows `a` of an operator's output become at its inputs, and adds what is constant to `terms`."""
        if op.kind == "add":
            return [a, -a if op.form == "sub" else a]
        if op.kind == "relu":
            return [relu(a, boxes[op.inputs[0]], slopes[op.output] if slopes else None, sets, terms)]
        if op.kind == "maxpool":
            return [strongest(op, a, self.boxes[op.inputs[0]], terms)]
        if op.kind == "quant":
            return [staircase(op, a, self.boxes[op.inputs[0]], terms)]
        above, below = np.maximum(a, 0), np.minimum(a, 0)
        if op.kind == "curve":
            line = curves.lines(op, *self.boxes[op.inputs[0]])
            terms += [dot(above, line.under), dot(below, line.over)]
            return [above * line.below + below * line.above]
        if op.bias.any():
            bias = np.maximum(op.bias, 0), np.minimum(op.bias, 0)
            terms += [above @ bias[0] + below @ bias[1], above @ bias[1] + below @ bias[0]]
        if op.kind == "linear":
            return [op.backward(a)]
        return op.moved_back(a, [self.boxes[name][0].shape[1] for name in op.inputs])

    def margins(self, labels: Ints, fold_only: bool) -> tuple[Array, Array]:
        """Returns for each sample the rows z_label − z_j for all classes j ≠ label in order, and a lower bound of each.

        The rows are folded into the linear operators that end in the output; unless `fold_only`, they are also passed to the input,
        which is done for one sample alone.
        """
        classes, output = self.boxes[self.network.output][0].shape[1], self.network.output
        unit = np.eye(classes)
        rows = np.concatenate([unit[label] - np.delete(unit, label, axis=0) for label in labels.tolist()])
        of = np.repeat(np.arange(len(labels)), classes - 1) if len(labels) > 1 else np.zeros(len(rows), dtype=np.int64)
        stop, found = self._before(output, FOLDED), np.full(len(rows), -np.inf)
        for start in range(0, len(rows), self.step):
            part = slice(start, start + self.step)
            alone = of[part] if len(labels) > 1 else slice(None)
            found[part] = self.backward({output: rows[part]}, stop, of=alone)
            if not fold_only:
                found[part] = np.maximum(found[part], self.backward({output: rows[part]}))
        self.executed.above(output, rows, found, of)
        return rows, found


def _unsettled(op: Op, lower: Array, upper: Array) -> NDArray[np.bool_]:
    """Returns which elements of what an operator reads may be worth tighter bounds than [lower, upper]."""
    if op.kind == "maxpool":
        return np.ones(lower.shape, dtype=bool)
    if op.kind == "curve":
        return np.asarray(curves.unsettled(op, lower, upper))
    kinks = [op.grid[0] * step for step in op.grid[1:3]] if op.grid else [0.0]
    return np.asarray(np.logical_or.reduce([(lower < kink) & (upper > kink) for kink in kinks]))


def _propagated(op: Op, boxes: Boxes) -> Box:
    """Returns the box of an operator's exact output: W maps the centre, |W| the radius; monotone operators map ends."""
    lower, upper = boxes[op.inputs[0]]
    if op.kind == "linear":
        centre, radius = op.forward(op.weight, (lower + upper) * 0.5) + op.bias, op.forward(np.abs(op.weight), (upper - lower) * 0.5)
        return centre - radius, centre + radius
    if op.kind == "add":
        other = boxes[op.inputs[1]]
        return (lower - other[1], upper - other[0]) if op.form == "sub" else (lower + other[0], upper + other[1])
    if op.kind == "relu":
        return np.maximum(lower, 0), np.maximum(upper, 0)
    if op.kind == "quant":
        low, high = steps(op, (lower, upper))
        return op.grid[0] * low, op.grid[0] * high
    if op.kind == "curve":
        return curves.value(op, lower), curves.value(op, upper)
    if op.kind == "move":
        return op.moved([boxes[name][0] for name in op.inputs]), op.moved([boxes[name][1] for name in op.inputs])
    return op.largest_view(lower), op.largest_view(upper)


def _widened(box: Box, error: Array) -> Box:
    """Returns the box with both ends moved out by `error`; (−inf, inf) where nothing is known."""
    lower, upper = box[0] - error, box[1] + error
    known = np.isfinite(lower) & np.isfinite(upper)
    if (known & (lower > upper)).any():
        raise Unchecked("a contradiction: a lower bound lies above the upper one; please report this artifact")
    return np.where(known, lower, -np.inf), np.where(known, upper, np.inf)
