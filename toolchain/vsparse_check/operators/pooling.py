"""Pools: kind `average`, which is linear, and kind `maxpool`.

`average` is a convolution of each channel with the weights 1 / window, `weight`
[channels, 1, 1, taps]; both kinds have a `window`.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from vsparse_check.arrays import (
    BoolArray,
    Dims,
    FloatArray,
    IntArray,
    Interval,
    negative,
    positive,
)
from vsparse_check.integers import OnGrid
from vsparse_check.onnx_rules import OnnxRule
from vsparse_check.op import Op
from vsparse_check.operators.affine import (
    WINDOW_ATTRIBUTES,
    charged,
    linear_backward,
    linear_execution,
    linear_interval,
    map_shape,
    read_window,
    stored,
    window_reach,
)
from vsparse_check.refusal import need
from vsparse_check.rules import (
    BackwardContext,
    ErrorContext,
    ExecutedValue,
    LinearBound,
    OperatorRules,
)
from vsparse_check.tensors import OnnxNode, TensorTable, possible
from vsparse_check.windows import SlidingWindow


def average_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of an average: as that of a sum, but the sum is not yet divided when it overflows.

    docs/numerics.md, section 3.1, second row of the table.
    """
    assert context.sum_error is not None
    own = op.times(context.sum_error.kernel, context.m) + context.sum_error.constant
    size = op.magnitude(context.m)
    return charged(context, stored(context, own, size), size, size * op.taps)


def maxpool_interval(op: Op, boxes: list[Interval]) -> Interval:
    """Returns [max l_i, max u_i] over each window: a maximum does not decrease in any input.

    docs/numerics.md, section 4.2.
    """
    (box,) = boxes
    return Interval(op.largest_in_window(box.lower), op.largest_in_window(box.upper))


class StrongestInput(NamedTuple):
    """Of each window: the input with the highest lower bound, and what the others may reach."""

    tap: IntArray  # which input that is
    wins: BoolArray  # whether no other input can exceed it
    top: FloatArray  # the highest upper bound of all inputs


def strongest_input(op: Op, box: Interval) -> StrongestInput:
    """Returns the input of each window that is at least as large as the others where it wins."""
    assert op.window is not None
    lows = op.window.views(box.lower, op.shape[1:], -np.inf)
    highs = op.window.views(box.upper, op.shape[1:], -np.inf)
    best = np.full((1, op.size), -np.inf)  # the lower bound of the present choice
    own_high = best.copy()  # its upper bound
    others = best.copy()  # the highest upper bound of all that are not chosen
    top = best.copy()
    choice = np.zeros((1, op.size), dtype=np.int64)
    for tap, (low_view, high_view) in enumerate(zip(lows, highs, strict=True)):
        low, high = low_view.reshape(1, -1), high_view.reshape(1, -1)
        better = low > best
        others = np.maximum(others, np.where(better, own_high, high))
        own_high = np.where(better, high, own_high)
        choice = np.where(better, tap, choice)
        best = np.where(better, low, best)
        top = np.maximum(top, high)
    return StrongestInput(choice, best >= others, top)


def maxpool_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns a·max(x) >= a⁺·x_k + a⁻·(x_k if input k wins its window, else the highest u).

    max(x) >= x_k for any input k of the window, max(x) = x_k where no other can exceed it (l_k is
    at least every other u_i), and max(x) <= max u_i (docs/numerics.md, section 4.2).
    """
    assert op.window is not None
    found = strongest_input(op, context.box(op))
    below = negative(a)
    to_top = np.where(found.wins, 0, below)  # what takes the constant upper bound
    to_choice = a - to_top
    parts = (np.where(found.tap == tap, to_choice, 0) for tap in range(op.taps))
    row = op.window.scattered(parts, op.shape[1:], len(a))
    # In two sums, each of terms of one sign.
    constants = [to_top @ positive(found.top)[0], to_top @ negative(found.top)[0]]
    return LinearBound([row], constants)


def maxpool_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of a maximum: 0, and g·m for the coefficients that the backward pass adds up.

    docs/numerics.md, section 3.1, last row but one, and docs/checker.md, section 5.
    """
    return context.arithmetic.g * op.largest_in_window(context.m, 0.0)


def maxpool_execution(op: Op, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns the maximum, which errs by at most the largest error in its window."""
    ((x, error),) = inputs
    value = op.largest_in_window(x)
    if not error.any():
        return ExecutedValue(value, np.zeros((1, 1)))
    return ExecutedValue(value, op.largest_in_window(np.broadcast_to(error, x.shape), 0.0))


def every_element(op: Op, box: Interval) -> BoolArray:
    """Returns that tighter bounds of any input may make a maximum's better."""
    return np.ones(box.lower.shape, dtype=bool)


def read_pool_window(node: OnnxNode, source: Dims) -> tuple[SlidingWindow, Dims]:
    """Returns a pool's window and output shape; no window may lie in the padding alone."""
    whole_map = node.kind == "GlobalAveragePool"
    kernel = source[1:] if whole_map else tuple(node.attributes.get("kernel_shape", ()))
    window = read_window(node, source, kernel)
    reach = window_reach(window) * 2
    inside = all(pad < size for pad, size in zip(window.pads, reach, strict=True))
    need(inside, f"a pool of {kernel} is padded by {window.pads}")
    return window, possible((source[0], *map_shape(window)))


def read_average_pool(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads AveragePool and GlobalAveragePool."""
    x = tensors.activation(node)
    window, shape = read_pool_window(node, x.shape)
    tensors.budget.hold(8.0 * 4 * shape[0] * window.taps)
    weight = np.full((shape[0], 1, 1, window.taps), 1 / window.taps)
    return Op("average", node.output, (x.name,), shape, weight, np.zeros(prod(shape)), window)


def read_max_pool(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads MaxPool."""
    x = tensors.activation(node)
    window, shape = read_pool_window(node, x.shape)
    return Op("maxpool", node.output, (x.name,), shape, window=window)


RULES = {
    "average": OperatorRules(
        interval=linear_interval,
        backward=linear_backward,
        error=average_error,
        execute=linear_execution,
        on_grid=OnGrid.ADDS,
        linear=True,
    ),
    "maxpool": OperatorRules(
        interval=maxpool_interval,
        backward=maxpool_backward,
        error=maxpool_error,
        execute=maxpool_execution,
        on_grid=OnGrid.SELECTS,
        unstable=every_element,
        exact=True,
    ),
}
UNDILATED = WINDOW_ATTRIBUTES | {"dilations": [1, 1], "ceil_mode": 0}
ONNX = {
    "MaxPool": OnnxRule(read_max_pool, UNDILATED | {"storage_order": 0}),
    "AveragePool": OnnxRule(
        read_average_pool, UNDILATED | {"pads": [0] * 4, "count_include_pad": 0}
    ),
    "GlobalAveragePool": OnnxRule(read_average_pool, {}),
}
