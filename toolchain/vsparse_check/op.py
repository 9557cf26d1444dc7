"""One operator of a network on flat activations [samples, size], and the maps it stands for."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from vsparse_check.arrays import Dims, FloatArray, IntArray
from vsparse_check.limits import CALL, ELEMENT
from vsparse_check.windows import SlidingWindow

EMPTY: FloatArray = np.zeros(0)


class QuantisedGrid(NamedTuple):
    """The values scale·k that an activation is quantised to (docs/numerics.md, section 7.1)."""

    scale: float
    first: int = 0  # the least step K0 = q_min − z, z the zero point
    last: int = 0  # the greatest step K1 = q_max − z
    least_integer: int = 0  # q_min
    whole: bool = True  # False where values may lie between the steps, as after a clip


class ElementMove(NamedTuple):
    """Where the elements of one input stand in the output: output[target] = input[element]."""

    target: IntArray
    element: IntArray
    repeated: bool = False  # whether an element stands in several places


class Op(NamedTuple):
    """One operator: the activation it makes, those it reads, its output shape, and its numbers.

    `kind` is a key of the table RULES (operators/__init__.py), which says what the operator
    computes and how it is bounded; which of the fields a kind uses is said there too.
    """

    kind: str
    output: str
    inputs: tuple[str, ...]
    shape: Dims
    # z = W·x + b: the diagonal [size] of W, W itself [out, in], or for convolutions
    # [groups, out of a group, in of a group, taps].
    weight: FloatArray = EMPTY
    bias: FloatArray = EMPTY  # [size]; the constants that a move puts around its input
    window: SlidingWindow | None = None
    grid: QuantisedGrid | None = None
    constants: tuple[float, ...] = ()  # a slope, two ends, the least divisor, the padded number
    moves: tuple[ElementMove, ...] = ()  # one for each input
    # Of a quantisation: the ReLU that it does at once, and whether it reads the network's input.
    rectifier: str = ""
    at_input: bool = False

    @property
    def size(self) -> int:
        """Returns the number of elements of the output."""
        return prod(self.shape)

    @property
    def taps(self) -> int:
        """Returns how many positions its window has, 1 without a window."""
        return self.window.taps if self.window else 1

    @property
    def fan_in(self) -> int:
        """Returns how many products an output adds up, or more; 0 without a weight."""
        return self.weight.size // len(self.weight) if self.weight.size else 0

    @property
    def padded_size(self) -> int:
        """Returns the number of elements of the maps that a window reads, padding included."""
        return self.window.padded_size if self.window else 0

    @property
    def working_size(self) -> int:
        """Returns how many numbers one row takes at once: what is read, padded, and made."""
        moved = max((len(move.target) for move in self.moves), default=0)
        return 2 * self.padded_size + 2 * self.size + moved

    @property
    def output_channels(self) -> int:
        """Returns how many different rows its weight has."""
        return self.shape[0]

    def work(self, rows: int) -> float:
        """Returns the work of one pass of so many rows (limits.py)."""
        products = 0
        if self.weight.ndim == 2:
            products = self.weight.size
        elif self.weight.ndim == 4:
            products = self.weight.size * (self.size // max(1, self.output_channels))
        elements = self.size * (self.taps if self.kind == "maxpool" else 1) + self.padded_size
        return CALL * (4 + self.taps) + rows * (products + ELEMENT * elements)

    def times(self, weight: FloatArray, x: FloatArray) -> FloatArray:
        """Returns weight·x [n, size out] for x [n, size in]; `weight` has the shape of W."""
        if weight.ndim == 1:
            return np.asarray(x * weight)
        if weight.ndim == 2:
            return np.asarray(x @ weight.T)
        return self._convolved(weight, x)

    def _convolved(self, weight: FloatArray, x: FloatArray) -> FloatArray:
        """Returns a convolution: the sum over the taps of a product for each group."""
        assert self.window is not None
        groups, inputs = len(weight), weight.shape[2]
        total: FloatArray | None = None
        for tap, view in enumerate(self.window.views(x, self.shape[1:], 0.0)):
            part = weight[..., tap] @ view.reshape(len(x), groups, inputs, -1)
            total = part if total is None else np.add(total, part, out=total)
        assert total is not None
        return total.reshape(len(x), -1)

    def transposed_times(self, a: FloatArray) -> FloatArray:
        """Returns a·W [r, size in] for rows a [r, size out]."""
        if self.weight.ndim == 1:
            return np.asarray(a * self.weight)
        if self.weight.ndim == 2:
            return np.asarray(a @ self.weight)
        assert self.window is not None
        maps = a.reshape(len(a), *self.weight.shape[:2], -1)
        parts = (
            self.weight[..., tap].transpose(0, 2, 1) @ maps for tap in range(self.weight.shape[3])
        )
        return self.window.scattered(parts, self.shape[1:], len(a))

    def magnitude(self, m: FloatArray) -> FloatArray:
        """Returns Σ|w|·m + |b| for all |x| <= m."""
        return self.times(np.abs(self.weight), m) + np.abs(self.bias)

    def largest_in_window(self, x: FloatArray, padding: float = -np.inf) -> FloatArray:
        """Returns the largest element [n, size out] of each window of x [n, size in]."""
        assert self.window is not None
        found: FloatArray | None = None
        for view in self.window.views(x, self.shape[1:], padding):
            found = view.copy() if found is None else np.maximum(found, view, out=found)
        assert found is not None
        return found.reshape(len(x), -1)
