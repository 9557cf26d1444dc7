"""Quantisation of an activation, QuantizeLinear and DequantizeLinear together: kind `quantise`.

`grid` says which values scale·k there are. docs/numerics.md, section 7.
"""

from __future__ import annotations

import numpy as np

from vsparse_check.arrays import FLOOR, BoolArray, FloatArray, Interval, largest
from vsparse_check.integers import CONVERTED, OnGrid
from vsparse_check.onnx_rules import OnnxRule
from vsparse_check.op import Op, QuantisedGrid
from vsparse_check.operators.piecewise import chosen_slopes
from vsparse_check.operators.relaxation import ElementwiseRelaxation, relaxed
from vsparse_check.rules import (
    BackwardContext,
    ErrorContext,
    ExecutedValue,
    LinearBound,
    OperatorRules,
)
from vsparse_check.tensors import OnnxNode, ShapedActivation, TensorTable

# 1/2 + τ: how far, in steps, x may lie from a step that a device rounds it to. τ = 2^-10 covers
# the device's own error of x / scale and that of float64 here (docs/numerics.md, section 7.3).
HALF = 0.5 + 2.0**-10


def grid_of(op: Op) -> QuantisedGrid:
    """Returns what the operator quantises to."""
    assert op.grid is not None
    return op.grid


def beyond_int32(op: Op, box: Interval) -> BoolArray:
    """Returns where x / scale may leave int32, |x| >= 2^30·s: a device may then take any step.

    A kernel that converts x / s to int32 first clamps to the wrong end, but it clamps, so that the
    value is one of the grid. (docs/numerics.md, section 7.4, charges an infinite E there, which
    proves less.) Where x itself is unknown, so is the result: g·m is then infinite.
    """
    return largest(box) >= grid_of(op).scale * CONVERTED


def steps(op: Op, box: Interval) -> Interval:
    """Returns k_l and k_u, the least and the greatest step that a device may round x to.

    k_l = clamp(⌈l/s − 1/2 − τ⌉), k_u = clamp(⌊u/s + 1/2 + τ⌋); docs/numerics.md, section 7.3.
    """
    grid, wild = grid_of(op), beyond_int32(op, box)
    low = np.clip(np.ceil(box.lower / grid.scale - HALF), grid.first, grid.last)
    high = np.clip(np.floor(box.upper / grid.scale + HALF), grid.first, grid.last)
    return Interval(np.where(wild, grid.first, low), np.where(wild, grid.last, high))


def quantise_interval(op: Op, boxes: list[Interval]) -> Interval:
    """Returns [s·k_l, s·k_u], exact in float64: s has 24 bits and k 9.

    That is the value of the network (docs/numerics.md, section 7.3). A float kernel reads fl(s·k)
    instead, which is charged to it, and for the network's output to this operator, in E.
    """
    (box,) = boxes
    low, high = steps(op, box)
    scale = grid_of(op).scale
    return Interval(scale * low, scale * high)


def staircase_slopes(op: Op, box: Interval) -> Interval:
    """Returns the slopes below and above: those of the staircase's envelopes, at the middle.

    Any slope in [0, 1] is sound. The concave envelope rises from (l, s·k_l) to where k_u begins,
    and is flat from there; the convex one is flat as far as k_l goes, and rises to (u, s·k_u).
    """
    scale, wild = grid_of(op).scale, beyond_int32(op, box)
    lower, upper = box
    low, high = steps(op, box)
    rise, middle = scale * (high - low), (lower + upper) * 0.5
    begins = np.maximum(lower, scale * (high - HALF))
    ends = np.minimum(upper, scale * (low + HALF))

    def slope(wanted: BoolArray, run: FloatArray) -> FloatArray:
        """Returns rise / run, at most 1, where `wanted`, 0 elsewhere."""
        steep = run <= rise
        chord = np.where(steep, 1, rise / np.where(steep, 1, run))
        return np.where(wanted & (rise > 0) & ~wild, chord, 0)

    return Interval(slope(middle > ends, upper - ends), slope(middle < begins, begins - lower))


def staircase_relaxation(op: Op, box: Interval, slopes: Interval) -> ElementwiseRelaxation:
    """Returns lines around the staircase s·k, for slopes m in [0, 1] as computed.

        s·k <= m·x + max(s·k_u − m·max(l, s·(k_u − 1/2 − τ)), s·k_l − m·l)
        s·k >= m·x + min(s·k_l − m·min(u, s·(k_l + 1/2 + τ)), s·k_u − m·u)

    A step k above the least is taken for x >= s·(k − 1/2 − τ) only, and s·k − m·x there does not
    fall as k grows, so that the line above needs the greatest k at its least x, and the least k at
    l; the line below likewise (docs/numerics.md, section 7.3, with the proof).
    """
    scale = grid_of(op).scale
    lower, upper = box
    below, above = slopes
    low, high = steps(op, box)
    slack = 1e-15 * (largest(box) + scale * largest(Interval(low, high))) + FLOOR
    first_of_high = np.maximum(lower, scale * (high - HALF))
    last_of_low = np.minimum(upper, scale * (low + HALF))
    over = np.maximum(scale * high - above * first_of_high, scale * low - above * lower)
    under = np.minimum(scale * low - below * last_of_low, scale * high - below * upper)
    return ElementwiseRelaxation(below, under - slack, above, over + slack)


def quantise_relaxation(op: Op, box: Interval) -> ElementwiseRelaxation:
    """Returns the lines of `staircase_relaxation` with the slopes of `staircase_slopes`."""
    return staircase_relaxation(op, box, staircase_slopes(op, box))


def quantise_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns a·s·k >= a⁺·(p·x + q) + a⁻·(m·x + t), s·k what the device makes of x.

    Lines of `staircase_relaxation` (docs/numerics.md, sections 4.2 and 7.3). Where the elements of
    a box are quantised each moves alone, and p = m = 0 loses nothing.
    """
    if op.rectifier:
        return _rectified_backward(op, a, context)
    box = context.box(op)
    if op.at_input and context.over_box:
        none = np.zeros_like(box.lower)
        return relaxed(a, staircase_relaxation(op, box, Interval(none, none)))
    return relaxed(a, quantise_relaxation(op, box))


def _rectified_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns the bound of a quantised ReLU, whose staircase starts at 0, at what the ReLU reads.

    Where that may have either sign the slope below is the ReLU's: 1 if u > −l, else 0, or what a
    proof chooses. Splits of the ReLU cut the box.
    """
    box = context.cut_box(op)
    below, above = staircase_slopes(op, box)
    own = (box.upper > -box.lower).astype(np.float64)
    if context.slopes is not None:
        own = chosen_slopes(op.rectifier, context.slopes, np.broadcast_to(own, a.shape))
    below = np.where((box.lower < 0) & (box.upper > 0), own, below)
    return relaxed(a, staircase_relaxation(op, box, Interval(below, above)))


def quantise_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E: 0, as rounding s·k to a float is charged to readers; 2u·|y| of an output.

    docs/numerics.md, section 7.2. And g·m for the slopes of the backward pass. `exact` and
    `rounded_as_output` of RULES say that only the box of an output is widened by it.
    """
    arithmetic = context.arithmetic
    rounded = 2 * arithmetic.u * largest(context.out) if context.is_output else 0.0
    return arithmetic.g * context.m + rounded


def quantise_execution(op: Op, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns the middle of the steps that x, within its error, may be rounded to."""
    ((x, error),) = inputs
    grid, scale = grid_of(op), grid_of(op).scale
    nearest = (np.round((x + side * (error + 1e-9 * scale)) / scale) for side in (-1, 1))
    low, high = (np.clip(step, grid.first, grid.last) for step in nearest)
    own = 1e-12 * scale * np.abs(low + high)
    return ExecutedValue(scale * (low + high) / 2, scale * (high - low) / 2 + own)


def quantise_unstable(op: Op, box: Interval) -> BoolArray:
    """Returns where one of the ends of the clamp lies inside."""
    grid = grid_of(op)
    first, last = grid.scale * grid.first, grid.scale * grid.last
    first_inside = (box.lower < first) & (box.upper > first)
    last_inside = (box.lower < last) & (box.upper > last)
    return first_inside | last_inside


# Reading.


def read_quantize(node: OnnxNode, tensors: TensorTable) -> None:
    """Notes a QuantizeLinear: its output is no activation, only a DequantizeLinear may read it."""
    tensors.quantised.quantise(node.output, node.input(0), node.input(1), node.input(2))


def read_dequantize(node: OnnxNode, tensors: TensorTable) -> Op | ShapedActivation | None:
    """Reads a parameter stored in integers, or what a QuantizeLinear made.

    To quantise to the same grid again changes nothing, on any device.
    """
    if node.input(0) in tensors.parameters:
        axis = node.attributes.get("axis", 1)
        tensors.quantised.store(node.output, node.input(0), node.input(1), node.input(2), axis)
        return None
    source, grid = tensors.quantised.dequantise(node.input(0), node.input(1), node.input(2))
    x = tensors.activation(node, source)
    if tensors.quantised.grids.get(x.name) == grid:
        return x
    return Op("quantise", node.output, (x.name,), x.shape, grid=grid)


RULES = {
    "quantise": OperatorRules(
        interval=quantise_interval,
        backward=quantise_backward,
        error=quantise_error,
        execute=quantise_execution,
        on_grid=OnGrid.QUANTISES,
        unstable=quantise_unstable,
        exact=True,
        rounded_as_output=True,
        monotone=True,
    ),
}
ONNX = {
    "QuantizeLinear": OnnxRule(read_quantize, {"axis": None}, inputs=3),
    "DequantizeLinear": OnnxRule(read_dequantize, {"axis": None}, inputs=3),
}
