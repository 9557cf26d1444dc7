"""Lower bounds of margins over a region, for every execution within a numeric contract; float64, its own rounding included.

The executed value of every activation is the variable. So ReLU acts exactly, a branch z <= 0 or z >= 0 is exact, and each operator
costs |A|·E for a row A that passes it (NUMERICS.md, section 3).
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from vsparse_check.model import Array, Network, Op
from vsparse_check.region import Region, over_box
from vsparse_check.rounding import FLOOR, Box, Rounding, dot, largest

HALF = 0.5 + 2.0**-10  # from a step to where the next one must be taken
WORKING_SET = 2**25  # bytes of one array of rows: small enough for caches, large enough to be fast
Boxes = dict[str, Box]
Slopes = dict[str, tuple[NDArray[np.bool_], NDArray[np.uint8]]]  # by ReLU: which units have slopes, and 255 times these, a set a line
Ints = NDArray[np.int64]
NONE: Ints = np.zeros(0, dtype=np.int64)


class Bounds:
    """What is known about the executions of a network on regions: `boxes` [n, size] of all activations, refined or not (n = 1)."""

    def __init__(self, network: Network, rounding: Rounding, region: Region, refine: bool) -> None:
        """Interval arithmetic (Gowal et al., arXiv 1810.12715, section 3), widened by E at each operator.

        With `refine` the inputs of ReLU and of quantisation that may lie on either side of a kink, and all inputs of max-pools, are
        bounded by `backward` as well, in order; both bounds hold, so their intersection does. Nothing is gained one sum after a box.
        """
        self.network, self.rounding, self.region = network, rounding, region
        self.step = max(1, WORKING_SET // (8 * max(prod(network.shape), *(prod(op.shape) for op in network.ops), 1)))
        pooled, stored = {op.inputs[0] for op in network.ops if op.kind == "maxpool"}, rounding.stored_input(region.box)
        kinks = {name: list[float]() for name in pooled | {op.inputs[0] for op in network.ops if op.kind in ("relu", "quant")}}
        for op in (op for op in network.ops if op.kind in ("relu", "quant")):
            kinks[op.inputs[0]] += [op.grid[0] * step for step in op.grid[1:3]] if op.grid else [0.0]
        self.boxes, self.costs = {network.input: _widened(region.box, stored)}, dict[str, Array]()
        self.pay()
        for op in network.ops:
            box = _propagated(op, self.boxes)
            error = rounding.error(op, self.boxes, box)
            self.boxes[op.output] = lower, upper = _widened(box, error if op.kind in ("linear", "add") else 0 * error)
            self.pay(op)
            exact = region.is_box and op.kind == "linear" and self._before(op.inputs[0], ("shift", "scale")) == network.input
            if refine and op.output in kinks and op.kind not in ("relu", "quant") and not exact:
                crossed = [(lower < kink) & (upper > kink) for kink in kinks[op.output]]
                units = np.flatnonzero(sum(crossed, np.full(lower.shape, op.output in pooled)))
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
        pending, boxes, constant, g = dict(rows), self.boxes | (cut or {}), np.zeros(1), self.rounding.g
        # What adding up coefficients may lose at first; later each reader pays for what it passes on.
        absolute: Array = sum((dot(np.abs(a), largest(boxes[name])[of]) for name, a in rows.items()), np.zeros(1))
        for op in reversed(self.network.ops):
            if op.output not in pending or op.output == stop:
                continue
            a = pending.pop(op.output)
            terms, parts = [-dot(np.abs(a), self.costs[op.output][of])], [a] * len(op.inputs)
            if op.kind == "linear":
                parts, bias = [op.backward(a)], (np.maximum(op.bias, 0), np.minimum(op.bias, 0))
                above, below = np.maximum(a, 0), np.minimum(a, 0)
                terms += [above @ bias[0] + below @ bias[1], above @ bias[1] + below @ bias[0]]
            elif op.kind == "relu":
                parts = [_relu(a, boxes[op.inputs[0]], slopes[op.output] if slopes else None, sets, terms)]
            elif op.kind in ("maxpool", "quant"):
                parts = [(_maxpool if op.kind == "maxpool" else _staircase)(op, a, self.boxes[op.inputs[0]], terms)]
            constant, absolute = constant + sum(terms), absolute + sum(map(np.abs, terms))
            for source, part in zip(op.inputs, parts, strict=True):
                pending[source] = pending[source] + part if source in pending else part
        for name, a in pending.items():  # the input, or `stop`
            cost, box = dot(np.abs(a), self.costs[name][of]), (boxes[name][0][of], boxes[name][1][of])
            constant = constant - cost + (over_box(a, box, g) if name == stop else self.region.least(a, g))
            absolute = absolute + cost + dot(np.abs(a), largest(box))
        bound = constant - g * (absolute + np.abs(constant)) * 1.01 - FLOOR
        return np.asarray(np.where(np.isfinite(bound) & (absolute < 1e100), bound, -np.inf))

    def margins(self, labels: Ints, fold_only: bool) -> tuple[Array, Array]:
        """Returns for each sample the rows z_label − z_j for all classes j ≠ label in order, and a lower bound of each.

        The rows are folded into the linear operators that end in the output; unless `fold_only`, they are also passed to the input,
        which is done for one sample alone.
        """
        unit = np.eye(self.boxes[self.network.output][0].shape[1])
        rows = np.concatenate([unit[label] - np.delete(unit, label, axis=0) for label in labels.tolist()])
        of = np.repeat(np.arange(len(labels)), len(unit) - 1) if len(labels) > 1 else np.zeros(1, dtype=np.int64)
        found = self.backward({self.network.output: rows}, self._before(self.network.output, ("sum", "pool", "shift", "scale")), of=of)
        return rows, found if fold_only else np.maximum(found, self.backward({self.network.output: rows}))


def _propagated(op: Op, boxes: Boxes) -> Box:
    """Returns the box of an operator's exact output: W maps the centre, |W| the radius; monotone operators map ends."""
    lower, upper = boxes[op.inputs[0]]
    if op.kind == "linear":
        centre, radius = op.forward(op.weight, (lower + upper) * 0.5) + op.bias, op.forward(np.abs(op.weight), (upper - lower) * 0.5)
        return centre - radius, centre + radius
    if op.kind == "add":
        return lower + boxes[op.inputs[1]][0], upper + boxes[op.inputs[1]][1]
    if op.kind == "relu":
        return np.maximum(lower, 0), np.maximum(upper, 0)
    if op.kind == "quant":
        low, high = _steps(op, (lower, upper))
        return op.grid[0] * low, op.grid[0] * high
    return np.max(op.views(lower, -np.inf), axis=0).reshape(len(lower), -1), np.max(op.views(upper, -np.inf), axis=0).reshape(
        len(upper), -1
    )


def _widened(box: Box, error: Array) -> Box:
    """Returns the box with both ends moved out by `error`; (−inf, inf) where nothing is known."""
    lower, upper = box[0] - error, box[1] + error
    known = np.isfinite(lower) & np.isfinite(upper)
    return np.where(known, lower, -np.inf), np.where(known, upper, np.inf)


def _relu(a: Array, box: Box, slopes: tuple[NDArray[np.bool_], NDArray[np.uint8]] | None, sets: Ints, terms: list[Array]) -> Array:
    """Relaxes ReLU on [l, u], l < 0 < u: α·x <= ReLU(x) <= s·x + t; any α in [0, 1], by default 1 if u > −l else 0; s = u / (u − l).

    t is raised until the line, with s as computed, is above ReLU at l and at u; ReLU is convex, so it is above it between them.
    """
    lower, upper = box
    unstable, active = (lower < 0) & (upper > 0), (lower >= 0).astype(np.float64)
    span = np.where(unstable, upper - lower, 1)
    slope = np.where(unstable, np.clip(upper / span, 0, 1), active)
    intercept = np.where(unstable, np.maximum(-slope * lower, upper - slope * upper) + 1e-15 * span, 0)
    alpha = np.where(unstable, upper > -lower, active)
    if slopes and slopes[0].any():
        listed, named = np.flatnonzero(slopes[0]), np.flatnonzero(sets >= 0)
        chosen = np.broadcast_to(alpha, a.shape).astype(np.float64)
        chosen[np.ix_(named, listed)] = slopes[1][sets[named]] / 255.0
        alpha = np.where(unstable, chosen, alpha)
    below = np.minimum(a, 0)
    terms.append(dot(below, intercept))
    return np.asarray((a - below) * alpha + below * slope)


def _maxpool(op: Op, a: Array, box: Box, terms: list[Array]) -> Array:
    """Relaxes a maximum: at least the input with the highest lower bound; at most that one if no other can exceed it, else max u."""
    lows, highs = (np.stack(op.views(end, -np.inf)).reshape(prod(op.kernel), -1) for end in box)
    choice, top = lows.argmax(axis=0), highs.max(axis=0)
    others = np.where(np.arange(len(lows))[:, None] == choice, -np.inf, highs).max(axis=0)
    below = np.where(lows.max(axis=0) >= others, 0, np.minimum(a, 0))
    terms += [below @ np.maximum(top, 0), below @ np.minimum(top, 0)]
    return op.scattered((np.where(choice == place, a - below, 0) for place in range(len(lows))), len(a))


def _steps(op: Op, box: Box) -> Box:
    """Returns the least and greatest step that a device may round x / scale to; its own error and ours are below 2^-10 inside the clamp."""
    scale, first, last, _ = op.grid
    return np.clip(np.ceil(box[0] / scale - HALF), first, last), np.clip(np.floor(box[1] / scale + HALF), first, last)


def _staircase(op: Op, a: Array, box: Box, terms: list[Array]) -> Array:
    """Relaxes scale · step(x) by lines with the slopes of those around clip(x); any slope in [0, 1] is sound with these intercepts.

    A step k above the least is taken for x >= scale·(k − HALF) only, and scale·k − slope·x does not fall with k there, so the line above
    needs the greatest k at its least x, and the least k at l; the line below likewise.
    """
    (lower, upper), (low, high), (scale, *ends, _) = box, _steps(op, box), op.grid
    start, end = (np.clip(side, scale * ends[0], scale * ends[1]) for side in box)
    inside, flat, middle = (start == lower) & (end == upper), (high <= low + 1) | (start == end), (lower + upper) * 0.5
    below, above = (
        np.where(flat, 0, np.where(inside, 1, np.where(wanted, np.clip((end - start) / np.maximum(run, FLOOR), 0, 1), 0)))
        for wanted, run in ((middle > start, upper - start), (middle < end, end - lower))
    )
    slack = 1e-15 * (largest(box) + scale * largest((low, high))) + FLOOR
    over = np.maximum(scale * high - above * np.maximum(lower, scale * (high - HALF)), scale * low - above * lower) + slack
    under = np.minimum(scale * low - below * np.minimum(upper, scale * (low + HALF)), scale * high - below * upper) - slack
    positive, negative = np.maximum(a, 0), np.minimum(a, 0)
    terms += [dot(positive, under), dot(negative, over)]
    return np.asarray(positive * below + negative * above)
