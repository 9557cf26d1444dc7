"""Lower bounds of margins over a ball, for every execution within a numeric contract; float64, its own rounding included.

Notation: u = 2^-24 and η = 2^-126 are unit roundoff and smallest normal number of fp32, γ_n = n·u / (1 − n·u). `G` is γ_K in float64
with K above the number of all terms that any bound adds up, so one factor covers every sum formed here (Higham, *Accuracy and
Stability of Numerical Algorithms*, 2nd ed., lemma 3.1 and section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
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


class Bounds:
    """Bounds for one network under a contract: `rounded` is False for real arithmetic and True for fp32, any order, flushing."""

    def __init__(self, network: Network, rounded: bool) -> None:
        self.network, self.u, self.eta = network, U if rounded else 0.0, ETA if rounded else 0.0
        sizes = [prod(network.shape), *(prod(op.shape) for op in network.ops)]
        fans = [op.weight.size // max(1, op.weight.shape[0]) for op in network.ops if op.kind == "linear"]
        k = 8.0 * sum(sizes) + 8.0 * max(fans, default=0) + 1000
        self.g = k * 2.0**-53 / (1 - k * 2.0**-53) * 1.01
        self.widest = max(sizes)
        self.kernels = {op.output: self._error_kernel(op) for op in network.ops if op.kind == "linear"}
        readers = {name for op in network.ops if op.kind in ("relu", "maxpool") for name in op.inputs}
        self.refinable = [op.output for op in network.ops if op.output in readers and not self._elementwise(op)]
        self.pooled = {op.inputs[0] for op in network.ops if op.kind == "maxpool"}

    def _elementwise(self, op: Op) -> bool:
        """Whether an operator sees the input itself, or the input shifted and scaled: then its interval cannot be improved."""
        made = {other.output: other for other in self.network.ops}
        source = op.inputs[0]
        while source in made and made[source].kind in ("shift", "scale", "reshape"):
            source = made[source].inputs[0]
        return source == self.network.input and op.kind != "add"

    def _error_kernel(self, op: Op) -> tuple[Array, Array]:
        """Returns (kernel, constant) such that kernel · m + constant bounds the error of z = W·x + b for all |x| <= m.

        Higham 3.1 with n non-zero weights in a row: γ_{n+r}·(Σ|w|m + |b|), r = 1 for the bias; flushed operands and results cost
        2η·(|w| + m) for each product and 2η for each operation; G covers the same sum, and its transpose, in float64.
        """
        survivors = (op.weight != 0).astype(np.float64)
        n = survivors.sum(axis=(2, 3, 4)) + op.rounded  # [groups, out]
        gamma = n * self.u / (1 - n * self.u)
        if (n * self.u >= 0.5).any():
            gamma = np.full_like(gamma, np.inf)
        kernel = np.abs(op.weight) * (gamma[:, :, None, None, None] + self.g) + 2 * self.eta * survivors
        positions = op.bias.size // n.size
        row = np.repeat(gamma.reshape(-1), positions)
        flush = np.repeat((2 * self.eta * (np.abs(op.weight).sum(axis=(2, 3, 4)) + 2 * (n + 2))).reshape(-1), positions)
        return kernel, (row + self.g) * np.abs(op.bias) + flush

    def error(self, op: Op, inputs: list[Box], exact: Box) -> Array:
        """Returns E [n, size]: |executed − exact operator on executed inputs|, and the float64 rounding of bounds through this operator."""
        m = np.maximum(np.abs(inputs[0][0]), np.abs(inputs[0][1]))
        out = np.maximum(np.abs(exact[0]), np.abs(exact[1]))
        if op.kind == "linear":
            kernel, constant = self.kernels[op.output]
            error: Array = op.forward(kernel, m) + constant
        elif op.kind == "add":  # one rounding of the result
            error = self.u * out + self.g * (m + np.maximum(np.abs(inputs[1][0]), np.abs(inputs[1][1]))) + 4 * self.eta
        elif op.kind == "shift":
            error = self.u * out + self.g * (m + np.abs(op.weight)) + 4 * self.eta
        elif op.kind == "scale":
            error = self.u * out + self.g * m * np.abs(op.weight) + 2 * self.eta * (m + np.abs(op.weight) + 2)
        else:  # exact; G pays for coefficients that are multiplied or added on the way back
            error = self.g * (self._pooled(op, m) if op.kind == "maxpool" else m)
        error = error * (1 + 1e-6) + FLOOR
        return np.asarray(np.where(error < LIMIT, error, np.inf))

    @staticmethod
    def _pooled(op: Op, x: Array) -> Array:
        assert op.window is not None
        maps, tap = op.window.padded(x, -np.inf), op.window.tap
        result = np.asarray(np.maximum.reduce([maps[:, :, tap(i, j)[0], tap(i, j)[1]] for i, j in op.window.taps()]))
        return result.reshape(len(x), -1)

    def propagate(self, op: Op, inputs: list[Box]) -> tuple[Box, Array]:
        """Returns the box of an operator's executed output, and its E; (−inf, inf) where nothing is known.

        Interval arithmetic (Gowal et al., arXiv 1810.12715, section 3): W maps the centre, |W| the radius; monotone operators map ends.
        """
        lower, upper = inputs[0]
        if op.kind == "linear":
            centre = op.forward(op.weight, (lower + upper) * 0.5) + op.bias
            radius = op.forward(np.abs(op.weight), (upper - lower) * 0.5)
            box = centre - radius, centre + radius
        elif op.kind == "relu":
            box = np.maximum(lower, 0), np.maximum(upper, 0)
        elif op.kind == "maxpool":
            box = self._pooled(op, lower), self._pooled(op, upper)
        elif op.kind == "add":
            box = lower + inputs[1][0], upper + inputs[1][1]
        elif op.kind == "shift":
            box = lower + op.weight, upper + op.weight
        elif op.kind == "scale":
            box = np.minimum(lower * op.weight, upper * op.weight), np.maximum(lower * op.weight, upper * op.weight)
        else:
            box = lower, upper
        error = self.error(op, inputs, box)
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
        costs = {self.network.input: self.g * np.maximum(np.abs(box[0]), np.abs(box[1]))}
        for op in self.network.ops:
            new, error = self.propagate(op, [found[name] for name in op.inputs])
            found[op.output] = new
            # |A|·E for the operator, and |A|·G·m for adding up coefficients that arrive from several readers.
            costs[op.output] = error + self.g * np.maximum(np.abs(new[0]), np.abs(new[1]))
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

    def backward(self, name: str, rows: Array, sample: NDArray[np.intp], boxes: dict[str, Box], costs: dict[str, Array]) -> Array:
        """Returns lower bounds [p] of rows · z, z the executed activation `name` of the samples `sample` [p].

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
            if op.output not in pending:
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
        lower, upper = (end[sample] for end in boxes[self.network.input])
        a = pending[self.network.input]
        centre, radius = (lower + upper) * 0.5, (upper - lower) * 0.5 * (1 + 1e-12) + FLOOR
        size = dot(np.abs(a), np.abs(centre) + radius + costs[self.network.input][sample])
        # The rounding of (lower + upper) / 2 is relative to the ends, and so is the cost of the input, which pays for it.
        add(dot(a, centre) - dot(np.abs(a), radius + costs[self.network.input][sample]), size)
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
            lower, upper = boxes[self.network.output]
            n, classes = lower.shape
            own = np.arange(n)
            if classes < 2:
                return np.full(n, -np.inf)
            others = np.array([[j for j in range(classes) if j != label] for label in labels.tolist()])
            if method == "interval":
                difference = np.nextafter(lower[own, labels] - upper[own[:, None], others].max(axis=1), -np.inf)
                return np.where(np.isfinite(difference), difference, -np.inf)
            rows = np.zeros((n, classes - 1, classes))
            rows[own, :, labels] = 1
            rows[own[:, None], np.arange(classes - 1), others] = -1
            found = np.full(n * (classes - 1), -np.inf)
            flat, sample = rows.reshape(-1, classes), np.repeat(own, classes - 1)
            step = max(1, PAIRS_BYTES // (48 * self.widest))
            for start in range(0, len(flat), step):
                part = slice(start, start + step)
                found[part] = self.backward(self.network.output, flat[part], sample[part], boxes, costs)
            return np.asarray(found.reshape(n, classes - 1).min(axis=1))
