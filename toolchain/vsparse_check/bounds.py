"""Lower bounds of margins over a ball, for every execution within a numeric contract; float64, its own rounding included.

Notation: u = 2^-24 and η = 2^-126 are unit roundoff and smallest normal number of fp32, γ_n = n·u / (1 − n·u). `G` is γ_K in float64
with K above the number of all terms that any bound adds up, so one factor covers every sum formed here (Higham, *Accuracy and
Stability of Numerical Algorithms*, 2nd ed., lemma 3.1 and section 3.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np
from numpy.typing import NDArray

from vsparse_check.model import Array, Network, Op

Box = tuple[Array, Array]
Add = Callable[[Array, Array | None], None]
U, ETA = 2.0**-24, 2.0**-126
LIMIT = 2.0**100  # errors above this mean sums near overflow: nothing is proved
FLOOR = 1e-100  # far above what float64 underflow loses anywhere below the limit
PAIRS_BYTES = 2**28


def ball(x: Array, radius: Fraction, clip: tuple[float, float]) -> Box:
    """Returns a box that contains every point of the clip range within `radius` of x: each end one unit further out, then clipped."""
    reach = np.nextafter(float(radius), np.inf)  # float() rounds to nearest, so the next double is above the exact radius
    lower, upper = np.nextafter(x - reach, -np.inf), np.nextafter(x + reach, np.inf)
    return np.clip(lower, *clip), np.clip(upper, *clip)


def _largest(box: Box) -> Array:
    return np.asarray(np.maximum(np.abs(box[0]), np.abs(box[1])))


@dataclass(frozen=True)
class OneSum:
    """Terms that may be added up at once: affine operators with error kernels for the whole sum, activations, |constants|, and γ_N."""

    linear: list[tuple[Op, Array, Array]]
    values: list[str]
    growth: Array
    constants: Array


class Bounds:
    """Bounds for one network under a contract: `rounded` is False for real arithmetic and True for fp32, any order, flushing."""

    def __init__(self, network: Network, rounded: bool) -> None:
        self.network, self.u, self.eta = network, U if rounded else 0.0, ETA if rounded else 0.0
        sizes = [prod(network.shape), *(prod(op.shape) for op in network.ops)]
        fans = [op.weight.size // max(1, op.weight.shape[0]) for op in network.ops if op.kind == "linear"]
        k = 8.0 * sum(sizes) + 8.0 * max(fans, default=0) + 1000
        self.g = k * 2.0**-53 / (1 - k * 2.0**-53) * 1.01
        self.widest = max(sizes)
        self.made = {op.output: op for op in network.ops}
        self.reads = Counter(name for op in network.ops for name in op.inputs)
        with np.errstate(all="ignore"):
            self.kernels = {op.output: self._error_kernel(op, self._count(op)) for op in network.ops if op.kind == "linear"}
            self.sums = {op.output: found for op in network.ops if (found := self._one_sum(op)) is not None}
        readers = {name for op in network.ops if op.kind in ("relu", "maxpool") for name in op.inputs}
        self.refinable = [op.output for op in network.ops if op.output in readers and not self._elementwise(op)]
        self.pooled = {op.inputs[0] for op in network.ops if op.kind == "maxpool"}
        self.last_hidden = network.output  # what the chain of linear operators that ends in the output reads
        while self.last_hidden in self.made and self.made[self.last_hidden].kind in ("linear", "shift", "scale", "reshape"):
            self.last_hidden = self.made[self.last_hidden].inputs[0]

    def _elementwise(self, op: Op) -> bool:
        """Whether an operator sees the input itself, or the input shifted and scaled: then its interval cannot be improved."""
        source = op.inputs[0]
        while source in self.made and self.made[source].kind in ("shift", "scale", "reshape"):
            source = self.made[source].inputs[0]
        return source == self.network.input and op.kind != "add"

    @staticmethod
    def _count(op: Op) -> Array:
        """Returns the roundings in each row of a sum, [groups, out]: one for each non-zero weight, one for the bias."""
        return np.asarray((op.weight != 0).sum(axis=(2, 3, 4), dtype=np.float64) + op.rounded)

    def _gamma(self, n: Array) -> Array:
        return np.asarray(np.where(n * self.u < 0.5, n * self.u / (1 - n * self.u), np.inf))

    def _error_kernel(self, op: Op, n: Array) -> tuple[Array, Array]:
        """Returns (kernel, constant) such that kernel · m + constant bounds the error of z = W·x + b for all |x| <= m.

        Higham 3.1 with n roundings in a row: γ_n·(Σ|w|m + |b|); flushed operands and results cost 2η·(|w| + m) for each product and
        2η for each operation; G covers the same sum, and its transpose, in float64.
        """
        survivors = (op.weight != 0).astype(np.float64)
        gamma, positions = self._gamma(n), op.bias.size // n.size
        kernel = (np.abs(op.weight) * (gamma[:, :, None, None, None] + self.g) + 2 * self.eta) * survivors
        kernel[survivors == 0] = 0  # an infinite γ leaves an exact zero what it is
        flush = np.repeat((2 * self.eta * (np.abs(op.weight).sum(axis=(2, 3, 4)) + 2 * (n + 2))).reshape(-1), positions)
        return kernel, (np.repeat(gamma.reshape(-1), positions) + self.g) * np.abs(op.bias) + flush

    def _one_sum(self, op: Op) -> OneSum | None:
        """Returns what a runtime may add up in one sum at an addition: the affine operators and additions that only it reads.

        A fused kernel may start its accumulator with the residual, so that every partial sum is as large as all terms together; with
        N roundings in all, Higham 3.1 bounds that sum by γ_N times the sum of all magnitudes.
        """
        if op.kind not in ("add", "shift"):
            return None
        linear: list[Op] = []
        values: list[str] = []
        constants: list[Array] = []
        pending = [op]
        while pending:
            one = pending.pop()
            constants += [one.weight] if one.kind == "shift" else []
            for name in one.inputs:
                producer = self.made.get(name)
                alone = self.reads[name] == 1 and name != self.network.output
                if producer and alone and producer.kind == "linear" and producer.rounded == 1:
                    linear.append(producer)
                elif producer and alone and producer.kind in ("add", "shift"):
                    pending.append(producer)
                else:
                    values.append(name)
        if not linear:
            return None
        n = sum((self._count(one).reshape(-1) for one in linear), np.zeros(op.shape[0])) + len(values) + len(constants) + 1
        kernels = [(one, *self._error_kernel(one, n.reshape(one.weight.shape[:2]))) for one in linear]
        growth = np.repeat(self._gamma(n), prod(op.shape[1:])) + self.g
        return OneSum(kernels, values, growth, sum((np.abs(value) for value in constants), np.zeros(prod(op.shape))))

    def error(self, op: Op, found: dict[str, Box], exact: Box) -> Array:
        """Returns E [n, size]: |executed − exact operator on executed inputs|, and the float64 rounding of bounds through this operator."""
        m, out = _largest(found[op.inputs[0]]), _largest(exact)
        if op.kind == "linear":
            kernel, constant = self.kernels[op.output]
            error: Array = op.forward(kernel, m) + constant
        elif op.kind == "add":  # one rounding of the result
            error = self.u * out + self.g * (m + _largest(found[op.inputs[1]])) + 4 * self.eta
        elif op.kind == "shift":
            error = self.u * out + self.g * (m + np.abs(op.weight)) + 4 * self.eta
        elif op.kind == "scale":
            error = self.u * out + self.g * m * np.abs(op.weight) + 2 * self.eta * (m + np.abs(op.weight) + 2)
        else:  # exact; G pays for coefficients that are multiplied or added on the way back
            error = self.g * (self._pooled(op, m) if op.kind == "maxpool" else m)
        if op.output in self.sums and self.u:
            one = self.sums[op.output]
            parts = [linear.forward(kernel, _largest(found[linear.inputs[0]])) + constant for linear, kernel, constant in one.linear]
            others = one.constants + sum((_largest(found[name]) for name in one.values), np.zeros(1))
            error = np.maximum(error, sum(parts) + one.growth * others + 4 * self.eta * (len(one.values) + 2))
        error = error * (1 + 1e-6) + FLOOR
        return np.asarray(np.where(error < LIMIT, error, np.inf))

    @staticmethod
    def _pooled(op: Op, x: Array) -> Array:
        assert op.window is not None
        maps, tap = op.window.padded(x, -np.inf), op.window.tap
        result = np.asarray(np.maximum.reduce([maps[:, :, tap(i, j)[0], tap(i, j)[1]] for i, j in op.window.taps()]))
        return result.reshape(len(x), -1)

    def propagate(self, op: Op, found: dict[str, Box]) -> tuple[Box, Array]:
        """Returns the box of an operator's executed output, and its E; (−inf, inf) where nothing is known.

        Interval arithmetic (Gowal et al., arXiv 1810.12715, section 3): W maps the centre, |W| the radius; monotone operators map ends.
        """
        lower, upper = found[op.inputs[0]]
        if op.kind == "linear":
            centre = op.forward(op.weight, (lower + upper) * 0.5) + op.bias
            radius = op.forward(np.abs(op.weight), (upper - lower) * 0.5)
            box = centre - radius, centre + radius
        elif op.kind == "relu":
            box = np.maximum(lower, 0), np.maximum(upper, 0)
        elif op.kind == "maxpool":
            box = self._pooled(op, lower), self._pooled(op, upper)
        elif op.kind == "add":
            box = lower + found[op.inputs[1]][0], upper + found[op.inputs[1]][1]
        elif op.kind == "shift":
            box = lower + op.weight, upper + op.weight
        elif op.kind == "scale":
            box = np.minimum(lower * op.weight, upper * op.weight), np.maximum(lower * op.weight, upper * op.weight)
        else:
            box = lower, upper
        error = self.error(op, found, box)
        widening = error if op.kind in ("linear", "add", "shift", "scale") else 0.0  # the others are exact
        lower, upper = box[0] - widening, box[1] + widening
        known = np.isfinite(lower) & np.isfinite(upper) & np.isfinite(error)
        return (np.where(known, lower, -np.inf), np.where(known, upper, np.inf)), np.where(known, error, np.inf)

    def boxes(self, box: Box, refine: bool) -> tuple[dict[str, Box], dict[str, Array]]:
        """Returns a box and the cost of a unit of coefficient for every activation.

        With `refine` the inputs of ReLU that may have either sign, and all inputs of max-pools, are bounded by `backward` as well,
        in order; both bounds hold, so their intersection does.
        """
        found = {self.network.input: box}
        costs = {self.network.input: self.g * _largest(box)}
        for op in self.network.ops:
            new, error = self.propagate(op, found)
            found[op.output] = new
            # |A|·E for the operator, and |A|·G·m for adding up coefficients that arrive from several readers.
            costs[op.output] = error + self.g * _largest(new)
            if refine and op.output in self.refinable:
                found[op.output] = self._refined(op.output, new, found, costs)
        return found, costs

    def _refined(self, name: str, box: Box, found: dict[str, Box], costs: dict[str, Array]) -> Box:
        lower, upper = box[0].copy(), box[1].copy()
        selected = np.ones_like(lower, dtype=bool) if name in self.pooled else (lower < 0) & (upper > 0)
        which, index = np.nonzero(selected)
        step = max(1, PAIRS_BYTES // (48 * self.widest))
        for start in range(0, len(which), step):
            sample, unit = which[start : start + step], index[start : start + step]
            rows = np.zeros((len(sample), lower.shape[1]))
            rows[np.arange(len(sample)), unit] = 1
            lower[sample, unit] = np.maximum(lower[sample, unit], self.backward(name, rows, sample, found, costs))
            upper[sample, unit] = np.minimum(upper[sample, unit], -self.backward(name, -rows, sample, found, costs))
        return lower, upper

    def backward(
        self, name: str, rows: Array, sample: NDArray[np.intp], boxes: dict[str, Box], costs: dict[str, Array], stop: str = ""
    ) -> Array:
        """Returns lower bounds [p] of rows · z, z the executed activation `name` of the samples `sample` [p].

        With `stop`, the one activation that everything after it depends on, the row that arrives there is bounded over its box.

        Backward linear bounds (CROWN: Zhang et al., arXiv 1811.00866, theorem 3.2; on graphs: Xu et al., arXiv 2002.12920). The
        executed value is the variable, so a row A that passes an operator pays |A|·E, and a ReLU acts exactly on its input.
        """
        pending = {name: rows}
        constant, absolute = np.zeros(len(rows)), np.zeros(len(rows))

        def add(value: Array, size: Array | None = None) -> None:
            nonlocal constant, absolute
            constant, absolute = constant + value, absolute + (np.abs(value) if size is None else size)

        def dot(a: Array, b: Array) -> Array:
            return np.asarray(np.einsum("ps,ps->p", a, b))

        for op in reversed(self.network.ops):
            if op.output not in pending or op.output == stop:
                continue
            a = pending.pop(op.output)
            add(-dot(np.abs(a), costs[op.output][sample]))
            if op.kind == "linear":
                add(a @ op.bias, np.abs(a) @ np.abs(op.bias))
                parts = [op.backward(a)]
            elif op.kind == "relu":
                parts = [self._relu(a, boxes[op.inputs[0]], sample, add)]
            elif op.kind == "maxpool":
                parts = [self._maxpool(op, a, boxes[op.inputs[0]], sample, add)]
            elif op.kind == "shift":
                add(a @ op.weight, np.abs(a) @ np.abs(op.weight))
                parts = [a]
            else:
                parts = [a * op.weight] if op.kind == "scale" else [a] * len(op.inputs)
            for source, part in zip(op.inputs, parts, strict=True):
                pending[source] = pending[source] + part if source in pending else part
        source = stop or self.network.input
        lower, upper = (end[sample] for end in boxes[source])
        a = pending[source]
        centre, radius = (lower + upper) * 0.5, (upper - lower) * 0.5 * (1 + 1e-12) + FLOOR
        size = dot(np.abs(a), np.abs(centre) + radius + costs[source][sample])
        # The rounding of (lower + upper) / 2 is relative to the ends, and so is the cost of the input, which pays for it.
        add(dot(a, centre) - dot(np.abs(a), radius + costs[source][sample]), size)
        bound = constant - self.g * absolute * 1.01 - FLOOR
        return np.where(np.isfinite(bound) & (absolute < 1e100), bound, -np.inf)

    @staticmethod
    def _relu(a: Array, box: Box, sample: NDArray[np.intp], add: Add) -> Array:
        """Relaxes ReLU on [l, u]: α·x <= ReLU(x) <= s·x + t, α = 1 if u > −l else 0, s = u / (u − l).

        t is raised until the line, with s as computed, is above ReLU at l and at u; ReLU is convex, so it is above it between them.
        """
        lower, upper = box[0][sample], box[1][sample]
        unstable = (lower < 0) & (upper > 0)
        active = (lower >= 0).astype(np.float64)
        span = np.where(unstable, upper - lower, 1)
        slope = np.where(unstable, np.clip(upper / span, 0, 1), active)
        intercept = np.where(unstable, np.maximum(-slope * lower, upper - slope * upper) + 1e-15 * span, 0)
        below = np.minimum(a, 0)
        add(np.einsum("ps,ps->p", below, intercept), None)
        return np.asarray(np.maximum(a, 0) * np.where(unstable, upper > -lower, active) + below * slope)

    @staticmethod
    def _maxpool(op: Op, a: Array, box: Box, sample: NDArray[np.intp], add: Add) -> Array:
        """Relaxes a maximum: at least the input with the highest lower bound; at most that one if no other can exceed it, else max u."""
        w = op.window
        assert w is not None
        lower, upper = (w.padded(end[sample], -np.inf) for end in box)
        taps = w.taps()
        lows = np.stack([lower[:, :, w.tap(i, j)[0], w.tap(i, j)[1]].reshape(len(a), -1) for i, j in taps])
        highs = np.stack([upper[:, :, w.tap(i, j)[0], w.tap(i, j)[1]].reshape(len(a), -1) for i, j in taps])
        choice = lows.argmax(axis=0)
        top = highs.max(axis=0)
        others = np.where(np.arange(len(taps))[:, None, None] == choice, -np.inf, highs).max(axis=0)
        exact = lows.max(axis=0) >= others
        below = np.where(exact, 0, np.minimum(a, 0))
        add(np.einsum("ps,ps->p", below, top), np.einsum("ps,ps->p", np.abs(below), np.abs(top)))
        result = np.zeros_like(lower)
        for place, (i, j) in enumerate(taps):
            rows, columns = w.tap(i, j)
            result[:, :, rows, columns] += np.where(choice == place, a - below, 0).reshape(len(a), *w.target)
        return w.cropped(result)

    def margins(self, box: Box, labels: NDArray[np.int64], method: str) -> Array:
        """Returns proved lower bounds [n] of min over j of z_label − z_j for boxes [n, size]; −inf where nothing is proved."""
        with np.errstate(all="ignore"):
            boxes, costs = self.boxes(box, refine=method == "crown")
            n, classes = boxes[self.network.output][0].shape
            own = np.arange(n)
            if classes < 2:
                return np.full(n, -np.inf)
            others = np.array([[j for j in range(classes) if j != label] for label in labels.tolist()])
            rows = np.zeros((n, classes - 1, classes))
            rows[own, :, labels] = 1
            rows[own[:, None], np.arange(classes - 1), others] = -1
            found = np.full(n * (classes - 1), -np.inf)
            flat, sample = rows.reshape(-1, classes), np.repeat(own, classes - 1)
            step = max(1, PAIRS_BYTES // (48 * self.widest))
            for start in range(0, len(flat), step):
                part = slice(start, start + step)
                found[part] = self.backward(self.network.output, flat[part], sample[part], boxes, costs, self.last_hidden)
                if method != "interval":
                    further = self.backward(self.network.output, flat[part], sample[part], boxes, costs)
                    found[part] = np.maximum(found[part], further)
            return np.asarray(found.reshape(n, classes - 1).min(axis=1))
