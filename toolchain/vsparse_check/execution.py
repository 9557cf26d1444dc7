"""The network executed on samples in float64, with a bound of float64's own error.

An execution without errors is one of those that every contract allows (E >= 0), so that its
values lie in every true box, and every true lower bound of a row lies below its value. One that
does not is a contradiction: some bound is false (docs/numerics.md, section 4.4).
"""

from __future__ import annotations

import numpy as np

from vsparse_check.arrays import FLOOR, BoolArray, FloatArray, IntArray, Interval
from vsparse_check.model import Model
from vsparse_check.op import Op
from vsparse_check.operators import RULES
from vsparse_check.refusal import Unchecked
from vsparse_check.rules import ExecutedValue

BUG = "please report this artifact: it is a fault of the checker"


class SampleExecution:
    """Values [n, size] and errors: exact values differ from these by at most their errors."""

    def __init__(self, model: Model, x: FloatArray) -> None:
        """Takes samples [n, size], whose own values have no error; `run` executes the operators."""
        self.executed = {model.input: ExecutedValue(x, np.zeros((1, 1)))}
        # γ64 of the longest sum, with a few terms more.
        longest = max(1, *(op.fan_in for op in model.ops), 1)
        self.g = 2.0**-52 * (2 * longest + 16)

    def value(self, name: str) -> FloatArray:
        """Returns the executed values [n, size] of an activation."""
        return self.executed[name].value

    def error(self, name: str) -> FloatArray:
        """Returns how far they may be from the exact ones, [n, size]."""
        value, error = self.executed[name]
        return np.broadcast_to(error, value.shape)

    def run(self, op: Op) -> None:
        """Executes one operator."""
        inputs = [self.executed[name] for name in op.inputs]
        self.executed[op.output] = RULES[op.kind].execute(op, inputs, self.g)

    def check_box(self, name: str, box: Interval) -> None:
        """Raises Unchecked for a box that the execution leaves, or that is empty."""
        value, error = self.executed[name]
        outside = (value + error < box.lower) | (value - error > box.upper)
        wrong = (np.isfinite(value) & outside) | (box.lower > box.upper)
        if wrong.any():
            unit = int(np.argwhere(wrong)[0][-1])
            raise Unchecked(
                f'a contradiction: unit {unit} of "{name:.60}" leaves its bounds '
                f"when the sample itself is executed; {BUG}"
            )

    def check_rows(
        self, name: str, rows: FloatArray, bounds: FloatArray, samples: IntArray
    ) -> None:
        """Raises Unchecked where a lower bound of row·z lies above its value.

        rows [r, size] of an activation, bounds [r], and the sample that each row is about [r]. At
        the exact values row·z <= row·value + |row|·error, and the float64 sum errs by g of its
        terms: a bound above that is false (docs/numerics.md, section 4.4).
        """
        value, error = self.value(name)[samples], self.error(name)[samples]
        at = np.einsum("rs,rs->r", rows, value)
        slack_of_value = error + self.g * np.abs(value)
        slack = np.einsum("rs,rs->r", np.abs(rows), slack_of_value) + FLOOR
        wrong = np.isfinite(at) & (bounds > at + slack)
        if wrong.any():
            raise Unchecked(
                f"a contradiction: row {int(np.argmax(wrong))} is bounded by more than its value "
                f"at the sample itself; {BUG}"
            )

    def certainly_on_side(self, name: str, units: IntArray, signs: IntArray) -> BoolArray:
        """Returns where the one sample certainly has sign·z >= 0, z the units of an activation."""
        value, error = self.value(name)[0, units], self.error(name)[0, units]
        return np.asarray(signs * value > error)
