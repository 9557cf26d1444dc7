"""ReLU, leaky ReLU and clip: kinds `relu`, `leaky` (`constants`: the slope) and `clip` (the ends).

ReLU acts on what the device computed, so it is exact, and so is a split on the sign of its input.
"""

from __future__ import annotations

from math import inf

import numpy as np

from vsparse_check.arithmetic import gamma
from vsparse_check.arrays import FLOOR, BoolArray, FloatArray, Interval, dot, negative
from vsparse_check.integers import OnGrid
from vsparse_check.onnx_rules import OnnxRule
from vsparse_check.op import Op
from vsparse_check.operators.relaxation import ElementwiseRelaxation, relaxed
from vsparse_check.refusal import need
from vsparse_check.rules import (
    BackwardContext,
    ChosenSlopes,
    ErrorContext,
    ExecutedValue,
    LinearBound,
    OperatorRules,
)
from vsparse_check.tensors import OnnxNode, TensorTable

# ReLU.


def relu_interval(op: Op, boxes: list[Interval]) -> Interval:
    """Returns [max(l, 0), max(u, 0)]: ReLU does not decrease (docs/numerics.md, section 4.2)."""
    (box,) = boxes
    return Interval(np.maximum(box.lower, 0), np.maximum(box.upper, 0))


def relu_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns a·ReLU(x) >= a⁺·(α·x) + a⁻·(s·x + t) on [l, u], l < 0 < u.

    α·x <= ReLU(x) for any α in [0, 1]: by default 1 if u > −l, else 0, or what a proof chooses.
    ReLU(x) <= s·x + t with s = u / (u − l), and t raised until the line, with s as computed, is
    above ReLU at l and at u: ReLU is convex, so it is above it between them (docs/numerics.md,
    sections 4.2 and 5.2). Where the sign is known ReLU is 0 or x, and both slopes are 0 or 1.
    """
    lower, upper = context.cut_box(op)
    unstable = (lower < 0) & (upper > 0)
    active = (lower >= 0).astype(np.float64)
    width = np.where(unstable, upper - lower, 1)
    upper_slope = np.where(unstable, np.clip(upper / width, 0, 1), active)
    at_ends = np.maximum(-upper_slope * lower, upper - upper_slope * upper)
    intercept = np.where(unstable, at_ends + 1e-15 * width, 0)
    lower_slope = np.where(unstable, upper > -lower, active)
    if context.slopes is not None:
        chosen = chosen_slopes(op.output, context.slopes, np.broadcast_to(lower_slope, a.shape))
        lower_slope = np.where(unstable, chosen, lower_slope)
    below = negative(a)
    above = a - below
    return LinearBound([above * lower_slope + below * upper_slope], [dot(below, intercept)])


def chosen_slopes(relu: str, slopes: ChosenSlopes, default: FloatArray) -> FloatArray:
    """Returns the lower slopes [r, size] that a proof chooses of a ReLU, by the name of its output.

    The default ones elsewhere. A slope is a byte divided by 255, so that it lies in [0, 1] whatever
    is stored (docs/proofs.md).
    """
    table = slopes.tables[relu]
    if not table.listed.any():
        return default
    listed, rows = np.flatnonzero(table.listed), np.flatnonzero(slopes.sets >= 0)
    found = default.astype(np.float64)
    found[np.ix_(rows, listed)] = table.bytes[slopes.sets[rows]] / 255.0
    return found


def relu_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of ReLU: 0, and g·m for the slopes of the backward pass.

    docs/numerics.md, section 3.1, and docs/checker.md, section 5.
    """
    return context.arithmetic.g * context.m


def relu_execution(op: Op, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns max(x, 0): exact, and no error grows."""
    ((x, error),) = inputs
    return ExecutedValue(np.maximum(x, 0), error)


def relu_unstable(op: Op, box: Interval) -> BoolArray:
    """Returns where 0 lies inside."""
    return (box.lower < 0) & (box.upper > 0)


# Leaky ReLU.


def leaky(op: Op, x: FloatArray) -> FloatArray:
    """Returns leaky ReLU, exact to one rounding."""
    return np.where(x >= 0, x, op.constants[0] * x)


def leaky_interval(op: Op, boxes: list[Interval]) -> Interval:
    """Returns [f(l), f(u)]: f does not decrease (docs/numerics.md, section 4.2)."""
    (box,) = boxes
    return Interval(leaky(op, box.lower), leaky(op, box.upper))


def leaky_relaxation(op: Op, box: Interval) -> ElementwiseRelaxation:
    """Returns p·x <= f(x) <= s·x + t on [l, u], f convex.

    The lower line goes through the origin with slope 1 if u > −l, else the function's slope below
    0; the upper one is the chord, with the intercept that makes it true at both ends for the slope
    as computed (docs/numerics.md, section 5.2).
    """
    (slope,) = op.constants
    lower, upper = box
    unstable = (lower < 0) & (upper > 0)
    stable_slope = np.where(lower >= 0, 1.0, slope)
    lower_slope = np.where(unstable, np.where(upper > -lower, 1.0, slope), stable_slope)
    width = np.where(unstable, upper - lower, 1)
    chord = np.clip((upper - slope * lower) / width, slope, 1)
    upper_slope = np.where(unstable, chord, stable_slope)
    at_ends = np.maximum(slope * lower - upper_slope * lower, upper - upper_slope * upper)
    zero = 0 * (lower + upper)
    upper_intercept = np.where(unstable, at_ends + _slack(box), zero)
    return ElementwiseRelaxation(lower_slope, zero, upper_slope, upper_intercept)


def leaky_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns a·f(x) >= a⁺·(p·x) + a⁻·(s·x + t), f(x) = x for x >= 0, else the slope times x.

    p·x <= f(x) <= s·x + t on [l, u]: the lines of `leaky_relaxation` (docs/numerics.md, sections
    4.2 and 5.2).
    """
    return relaxed(a, leaky_relaxation(op, context.box(op)))


def leaky_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of leaky ReLU: γ_1·|slope·x| + 3η where x may be negative, 0 elsewhere.

    γ_2 where storage is not the accumulator's format; one rounding more, and the slope's own,
    where the format does not hold the slope (docs/numerics.md, section 3.1). 2u·m more of a
    quantised x, which is rounded when it is read (docs/numerics.md, section 7.2).
    """
    arithmetic = context.arithmetic
    (slope,) = op.constants
    below_zero = np.maximum(-context.inputs[0].lower, 0)
    inexact = arithmetic.constant_error(slope)
    count = 1.0 + arithmetic.stored_again + (inexact > 0)
    growth = float(gamma(count, arithmetic.u))
    flushed = np.where(below_zero > 0, (3 + inexact) * arithmetic.eta, 0.0)
    error = growth * slope * below_zero + 2 * inexact * below_zero + flushed
    if context.input_scales:
        error = error + 2 * arithmetic.u * context.m
    return charged_elementwise(context, error)


def leaky_execution(op: Op, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns the function: errors pass slopes of at most 1, and float64 rounds once."""
    ((x, error),) = inputs
    return ExecutedValue(leaky(op, x), error + g * np.abs(x))


# Clip.


def clip(op: Op, x: FloatArray) -> FloatArray:
    """Returns the clip, exactly."""
    low, high = op.constants
    return np.clip(x, low, high)


def clip_interval(op: Op, boxes: list[Interval]) -> Interval:
    """Returns [f(l), f(u)]: f does not decrease (docs/numerics.md, section 4.2)."""
    (box,) = boxes
    return Interval(clip(op, box.lower), clip(op, box.upper))


def clip_relaxation(op: Op, box: Interval) -> ElementwiseRelaxation:
    """Returns p·x + q <= f(x) <= s·x + t on [l, u], f piecewise linear with kinks at its ends.

    f(x) − slope·x is largest and least at l, u or a kink, whatever the slope: q is the least of
    f(x) − p·x over these four points, t the greatest of f(x) − s·x. The slopes are
    those of the convex and the concave envelope at the middle of [l, u] (docs/numerics.md, section
    5.2).
    """
    low, high = op.constants
    lower, upper = box
    first, last = np.clip(low, lower, upper), np.clip(high, lower, upper)  # the kinks inside
    middle = 0.5 * (lower + upper)
    inside = (lower >= low) & (upper <= high)  # the identity
    flat = (upper <= low) | (lower >= high)  # a constant

    def chord(rise: FloatArray, run: FloatArray, wanted: BoolArray) -> FloatArray:
        """Returns rise / run where `wanted`, 1 where f is the identity, 0 elsewhere."""
        use = wanted & ~inside & ~flat & (run > 0)
        slope = np.where(use, np.clip(rise / np.where(use, run, 1), 0, 1), 0.0)
        return np.where(inside, 1.0, slope)

    upper_slope = chord(np.clip(last, low, high) - clip(op, lower), last - lower, middle < last)
    lower_slope = chord(clip(op, upper) - np.clip(first, low, high), upper - first, middle > first)
    points = np.stack([lower, first, last, upper])
    values = np.clip(points, low, high)
    slack = np.where(inside | flat, 0, _slack(box))
    lower_intercept = (values - lower_slope * points).min(axis=0) - slack
    upper_intercept = (values - upper_slope * points).max(axis=0) + slack
    return ElementwiseRelaxation(lower_slope, lower_intercept, upper_slope, upper_intercept)


def clip_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns a·f(x) >= a⁺·(p·x + q) + a⁻·(s·x + t), f(x) = min(max(x, low), high).

    p·x + q <= f(x) <= s·x + t on [l, u]: the lines of `clip_relaxation` (docs/numerics.md, sections
    4.2 and 5.2).
    """
    return relaxed(a, clip_relaxation(op, context.box(op)))


def clip_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of a clip: the rounding of its ends; an end beyond the format clips nothing.

    docs/numerics.md, section 3.1, last row but one.
    """
    low, high = op.constants
    error = max(_end_error(-low, low, context), _end_error(high, high, context))
    return charged_elementwise(context, np.full_like(context.m, error))


def _end_error(outward: float, end: float, context: ErrorContext) -> float:
    """Returns |e' − e|, e' being the number that the device has for the end e.

    |clip' − clip| <= the larger of the two, as a clip moves no further than its ends. `outward` is
    e of the upper end and −e of the lower one: from the format's largest number on the end clips no
    finite value, so that its error is 0. An end that far on the other side clips every value, to
    what the format does not hold: infinite (docs/numerics.md, section 3.1, last row but one).
    """
    if np.isinf(end) or outward >= context.arithmetic.greatest:
        return 0.0
    return context.arithmetic.constant_error(end)


def clip_execution(op: Op, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns the clip: errors pass slopes of at most 1."""
    ((x, error),) = inputs
    return ExecutedValue(clip(op, x), error + g * np.abs(x))


def clip_unstable(op: Op, box: Interval) -> BoolArray:
    """Returns where one of the ends lies inside."""
    low, high = op.constants
    low_inside = (box.lower < low) & (box.upper > low)
    high_inside = (box.lower < high) & (box.upper > high)
    return low_inside | high_inside


# Both.


def charged_elementwise(context: ErrorContext, error: FloatArray) -> FloatArray:
    """Returns E with the float64 rounding of bounds through the function, g·m.

    docs/checker.md, section 5.
    """
    whole = (error + context.arithmetic.g * context.m) * (1 + 1e-9) + FLOOR
    return context.arithmetic.finite(whole, context.m)


def _slack(box: Interval) -> FloatArray:
    """Returns more than the float64 error of f(x) − slope·x, for |f(x)| and |slope·x| up to |x|."""
    return 1e-15 * np.maximum(np.abs(box.lower), np.abs(box.upper)) + FLOOR


# Reading.


def read_relu(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Relu."""
    x = tensors.activation(node)
    return Op("relu", node.output, (x.name,), x.shape)


def read_leaky_relu(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads LeakyRelu with a slope from 0 to 1."""
    x = tensors.activation(node)
    slope = float(node.attributes.get("alpha", np.float32(0.01)))
    need(0 <= slope <= 1, f"LeakyRelu has the slope {slope}, which is not from 0 to 1")
    return Op("leaky", node.output, (x.name,), x.shape, constants=(slope,))


def read_clip(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Clip with constant ends, infinite where one is left out."""
    x = tensors.activation(node)
    low = tensors.scalar(node.input(1)) if node.input(1) else -inf
    high = tensors.scalar(node.input(2)) if node.input(2) else inf
    need(low <= high and low < inf and high > -inf, f"Clip has the ends {low} and {high}")
    return Op("clip", node.output, (x.name,), x.shape, constants=(low, high))


RULES = {
    "relu": OperatorRules(
        interval=relu_interval,
        backward=relu_backward,
        error=relu_error,
        execute=relu_execution,
        on_grid=OnGrid.SELECTS,
        unstable=relu_unstable,
        exact=True,
        monotone=True,
    ),
    "leaky": OperatorRules(
        interval=leaky_interval,
        backward=leaky_backward,
        error=leaky_error,
        execute=leaky_execution,
        on_grid=OnGrid.ADDS,
        unstable=relu_unstable,
        monotone=True,
    ),
    "clip": OperatorRules(
        interval=clip_interval,
        backward=clip_backward,
        error=clip_error,
        execute=clip_execution,
        on_grid=OnGrid.CLIPS,
        unstable=clip_unstable,
        monotone=True,
    ),
}
ONNX = {
    "Relu": OnnxRule(read_relu, {}),
    "LeakyRelu": OnnxRule(read_leaky_relu, {"alpha": None}),
    "Clip": OnnxRule(read_clip, {}, inputs=3),
}
