"""Sigmoid and tanh: kinds of these names, without further numbers.

tanh is odd, and sigmoid(x) = (1 + tanh(x/2)) / 2, so that one line above tanh gives all others.
"""

from __future__ import annotations

import numpy as np

from vsparse_check.arrays import BoolArray, FloatArray, Interval
from vsparse_check.contracts import FUNCTION_ERROR, FUNCTION_ERROR_64
from vsparse_check.onnx_rules import OnnxRule
from vsparse_check.op import Op
from vsparse_check.operators.piecewise import charged_elementwise
from vsparse_check.operators.relaxation import ElementwiseRelaxation, relaxed
from vsparse_check.refusal import known
from vsparse_check.rules import (
    BackwardContext,
    ErrorContext,
    ExecutedValue,
    LinearBound,
    OperatorRules,
)
from vsparse_check.tensors import OnnxNode, TensorTable

SATURATED = 20.0  # where tanh is 1 in float64
HALVINGS = 30  # steps of a bisection
NARROW = 1e-6  # below this width a chord of float64 values means nothing

# The functions, within FUNCTION_ERROR_64 of the exact ones.


def tanh(x: FloatArray) -> FloatArray:
    """Returns tanh."""
    return np.asarray(np.tanh(x))


def sigmoid(x: FloatArray) -> FloatArray:
    """Returns the sigmoid."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x))


# Intervals: the functions rise, so that their ends are those of the input.


def tanh_interval(op: Op, boxes: list[Interval]) -> Interval:
    """Returns [tanh l, tanh u]: tanh rises (docs/numerics.md, section 4.2)."""
    (box,) = boxes
    return Interval(tanh(box.lower), tanh(box.upper))


def sigmoid_interval(op: Op, boxes: list[Interval]) -> Interval:
    """Returns [σ(l), σ(u)]: the sigmoid σ rises (docs/numerics.md, section 4.2)."""
    (box,) = boxes
    return Interval(sigmoid(box.lower), sigmoid(box.upper))


# Lines.


def slope_above_tanh(lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Returns the slope of the concave envelope of tanh on [l, u] at the middle.

    Any number in [0, 1] is sound; this one makes the line tight. It is that of the chord where the
    line from (l, tanh l) that touches tanh would do so beyond u; else that of the tangent at the
    middle, or at the touching point if that lies further right (Zhang et al., arXiv 1811.00866,
    section 3.2), which bisection finds.
    """
    width, middle, start = upper - lower, 0.5 * (lower + upper), np.tanh(lower)
    left, right = np.zeros_like(lower), np.clip(-lower, 0, SATURATED)
    for _ in range(HALVINGS):
        point = 0.5 * (left + right)
        tangent = 1 - np.tanh(point) ** 2
        further = tangent * (point - lower) > np.tanh(point) - start
        left, right = np.where(further, point, left), np.where(further, right, point)
    touching = np.where(lower < 0, right, lower)
    wide = width > NARROW
    at = np.where(wide, np.maximum(middle, np.minimum(touching, SATURATED)), middle)
    chord = (np.tanh(upper) - start) / np.where(wide, width, 1)
    return np.clip(np.where((touching < upper) | ~wide, 1 - np.tanh(at) ** 2, chord), 0, 1)


def line_above_tanh(lower: FloatArray, upper: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns a and b with tanh(x) <= a·x + b for all x in [l, u], a in [0, 1] as computed.

    b is the greatest value on [l, u] of g(x) = tanh(x) − a·x. Let x* >= 0 be the point with
    tanh'(x*) = 1 − tanh²(x*) = a, that is tanh(x*) = t = √(1 − a) and x* = artanh(t) =
    log((1 + t)/√a). g' = tanh' − a is negative for x < −x*, positive on (−x*, x*), and negative
    for x > x*. So g is greatest at l, at u, or at x* if that lies in [l, u]. Where x* is so near
    to an end that float64 cannot tell, g(x*) = t − a·x* is counted too: a larger b is true as well.
    `slack` is above the float64 error of all three values (docs/numerics.md, section 5.2).
    """
    a = slope_above_tanh(lower, upper)
    t = np.sqrt(1 - a)
    star = np.log((1 + t) / np.sqrt(np.maximum(a, 1e-300)))
    near = 1e-9 * (1 + star)
    at_ends = np.maximum(np.tanh(lower) - a * lower, np.tanh(upper) - a * upper)
    inside = (star + near >= lower) & (star - near <= upper)
    intercept = np.where(inside, np.maximum(at_ends, t - a * star), at_ends)
    slack = FUNCTION_ERROR_64 * (1 + a * np.maximum(np.abs(lower), np.abs(upper)))
    return a, intercept + slack


def tanh_relaxation(lower: FloatArray, upper: FloatArray) -> ElementwiseRelaxation:
    """Returns p·x + q <= tanh(x) <= a·x + b on [l, u].

    The upper line is that of `line_above_tanh`. tanh is odd: tanh(−x) <= p·(−x) + c for −x in
    [−u, −l] says tanh(x) >= p·x − c, so that q = −c (docs/numerics.md, section 5.2).
    """
    upper_slope, upper_intercept = line_above_tanh(lower, upper)
    lower_slope, mirrored = line_above_tanh(-upper, -lower)
    return ElementwiseRelaxation(lower_slope, -mirrored, upper_slope, upper_intercept)


def sigmoid_relaxation(lower: FloatArray, upper: FloatArray) -> ElementwiseRelaxation:
    """Returns p·x + q <= σ(x) <= s·x + t on [l, u], σ the sigmoid.

    tanh(y) <= a·y + b for y = x/2 in [l/2, u/2] gives σ(x) = (1 + tanh(x/2))/2 <= (a/4)·x + (1 +
    b)/2, and likewise below; halving is exact, and 1e-15 more is above the rounding of 1 + b that
    the slack in b has not covered already (docs/numerics.md, section 5.2).
    """
    half = tanh_relaxation(0.5 * lower, 0.5 * upper)
    return ElementwiseRelaxation(
        half.lower_slope / 4,
        (1 + half.lower_intercept) / 2 - 1e-15,
        half.upper_slope / 4,
        (1 + half.upper_intercept) / 2 + 1e-15,
    )


def tanh_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns a·tanh(x) >= a⁺·(p·x + q) + a⁻·(s·x + t), lines of `tanh_relaxation`.

    docs/numerics.md, sections 4.2 and 5.2.
    """
    return relaxed(a, tanh_relaxation(*context.box(op)))


def sigmoid_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns a·σ(x) >= a⁺·(p·x + q) + a⁻·(s·x + t), lines of `sigmoid_relaxation`.

    docs/numerics.md, sections 4.2 and 5.2.
    """
    return relaxed(a, sigmoid_relaxation(*context.box(op)))


# Error terms and execution.


def function_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of a sigmoid or tanh, as is assumed of devices (docs/numerics.md, section 3.2).

    And FUNCTION_ERROR_64, of float64's own functions in the interval, with g·m; infinite where the
    argument may overflow.
    """
    storage = context.arithmetic.storage
    known(
        storage in FUNCTION_ERROR,
        f"no error of {op.kind} is assumed under a contract that stores {storage}",
    )
    error = FUNCTION_ERROR[storage] + FUNCTION_ERROR_64
    return charged_elementwise(context, np.full_like(context.m, error))


def tanh_execution(op: Op, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns tanh, whose slope is at most 1."""
    ((x, error),) = inputs
    return ExecutedValue(tanh(x), error + FUNCTION_ERROR_64 + g * np.abs(x))


def sigmoid_execution(op: Op, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns the sigmoid, whose slope is at most 1/4."""
    ((x, error),) = inputs
    return ExecutedValue(sigmoid(x), error + FUNCTION_ERROR_64 + g * np.abs(x))


def wherever_wide(op: Op, box: Interval) -> BoolArray:
    """Returns where the box is no point: tighter bounds make tighter lines everywhere."""
    return box.upper > box.lower


# Reading.


def read_tanh(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Tanh."""
    x = tensors.activation(node)
    return Op("tanh", node.output, (x.name,), x.shape)


def read_sigmoid(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Sigmoid."""
    x = tensors.activation(node)
    return Op("sigmoid", node.output, (x.name,), x.shape)


RULES = {
    "tanh": OperatorRules(
        interval=tanh_interval,
        backward=tanh_backward,
        error=function_error,
        execute=tanh_execution,
        unstable=wherever_wide,
        monotone=True,
    ),
    "sigmoid": OperatorRules(
        interval=sigmoid_interval,
        backward=sigmoid_backward,
        error=function_error,
        execute=sigmoid_execution,
        unstable=wherever_wide,
        monotone=True,
    ),
}
ONNX = {
    "Tanh": OnnxRule(read_tanh, {}),
    "Sigmoid": OnnxRule(read_sigmoid, {}),
}
