"""The network executed on samples in float64, with a bound of what float64 loses: what every bound of a region that holds them must allow.

An execution that loses nothing is one of those that a contract allows (E >= 0), so its values lie in every true box, and every true
lower bound of a row lies below its value there. One that does not is a contradiction: some bound is false.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from vsparse_check import curves
from vsparse_check.model import Network
from vsparse_check.op import Array, Ints, Op
from vsparse_check.refusal import Unchecked
from vsparse_check.rounding import FLOOR, FUNCTION_ERROR_64, Box

BUG = "please report this artifact: it is a fault of the checker"


class Execution:
    """Values [n, size] and errors: each exact value differs from the value here by at most its error."""

    def __init__(self, network: Network, x: Array) -> None:
        self.network, self.values, self.errors = network, {network.input: x}, {network.input: np.zeros((1, 1))}
        fans = [op.weight.size // len(op.weight) for op in network.ops if op.kind == "linear"]
        self.g = 2.0**-52 * (2 * max(fans, default=1) + 16)

    def step(self, op: Op) -> None:
        """Executes one operator: an error passes |W| or a slope of at most one, and float64 adds γ of the magnitudes."""
        values, errors = [self.values[name] for name in op.inputs], [self.errors[name] for name in op.inputs]
        x, error = values[0], errors[0]
        if op.kind == "linear":
            size = np.abs(op.weight)
            value = op.forward(op.weight, x) + op.bias
            spread = np.broadcast_to(error, x.shape) if error.any() else np.zeros((1, x.shape[1]))
            error = op.forward(size, spread) * (1 + self.g) + self.g * (op.forward(size, np.abs(x)) + np.abs(op.bias)) + FLOOR
        elif op.kind == "add":
            value = values[0] - values[1] if op.form == "sub" else values[0] + values[1]
            error = errors[0] + errors[1] + self.g * (np.abs(values[0]) + np.abs(values[1]))
        elif op.kind == "relu":
            value = np.maximum(x, 0)
        elif op.kind == "curve":
            value = curves.value(op, x)
            error = error + FUNCTION_ERROR_64 * (op.form in ("sigmoid", "tanh")) + self.g * np.abs(x)
        elif op.kind == "move":
            value = op.moved(values)
            wide = [np.broadcast_to(one, of.shape) for one, of in zip(errors, values, strict=True)]
            error = op._replace(bias=np.zeros(op.size)).moved(wide)
        elif op.kind == "maxpool":
            value = op.largest_view(x)
            error = np.zeros((1, 1)) if not error.any() else op.largest_view(np.broadcast_to(error, x.shape), 0.0)
        else:  # a step may be either of the two that x, within its error, is next to
            scale, first, last, _ = op.grid
            low, high = (np.clip(np.round((x + side * (error + 1e-9 * scale)) / scale), first, last) for side in (-1, 1))
            value, error = scale * (low + high) / 2, scale * (high - low) / 2 + 1e-12 * scale * np.abs(low + high)
        self.values[op.output], self.errors[op.output] = value, error

    def within(self, name: str, box: Box) -> None:
        """Leaves unchecked, as a contradiction, a box that an execution of its own sample leaves."""
        value, error = self.values[name], self.errors[name]
        outside = np.isfinite(value) & ((value + error < box[0]) | (value - error > box[1]))
        if outside.any() or (box[0] > box[1]).any():
            unit = int(np.argwhere(outside | (box[0] > box[1]))[0][-1])
            raise Unchecked(f'a contradiction: unit {unit} of "{name:.60}" leaves its bounds when the sample itself is executed; {BUG}')

    def above(self, name: str, rows: Array, found: Array, of: Ints) -> None:
        """Leaves unchecked, as a contradiction, lower bounds [r] of rows [r, size] of an activation that lie above their values.

        Row k is about sample of[k].
        """
        value, error = self.values[name], np.broadcast_to(self.errors[name], self.values[name].shape)
        size = np.abs(rows)
        at = np.einsum("rs,rs->r", rows, value[of])
        slack = np.einsum("rs,rs->r", size, error[of] + self.g * np.abs(value[of])) + FLOOR
        wrong = np.isfinite(at) & (found > at + slack)
        if wrong.any():
            raise Unchecked(f"a contradiction: row {int(np.argmax(wrong))} is bounded by more than its value at the sample itself; {BUG}")

    def lies(self, name: str, units: Ints, signs: Ints) -> NDArray[np.bool_]:
        """Returns where the one sample certainly has sign · z >= 0, z the units of an activation."""
        error = np.broadcast_to(self.errors[name], self.values[name].shape)
        return np.asarray(signs * self.values[name][0, units] > error[0, units])


def elements(network: Network) -> int:
    """Returns how many numbers an execution of one sample holds."""
    return prod(network.shape) + sum(op.size for op in network.ops)
