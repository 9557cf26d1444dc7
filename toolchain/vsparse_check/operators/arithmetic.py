"""Additions of two activations, and operations with a constant.

Kinds `add` and `sub` read two activations. Kinds `shift` (x + b), `scale` (x·c), `div` (x / c) and
`neg` (−x) read one: `weight` [size] is the diagonal of W (1, c, 1 / c as rounded, −1), `bias`
[size] is b, `constants` of `div` is the least |c|.
"""

from __future__ import annotations

import numpy as np

from vsparse_check.arithmetic import gamma
from vsparse_check.arrays import FLOOR, Dims, FloatArray, Interval, largest
from vsparse_check.integers import OnGrid
from vsparse_check.onnx_rules import OnnxRule
from vsparse_check.op import Op
from vsparse_check.operators.affine import (
    charged,
    linear_backward,
    linear_execution,
    linear_interval,
    rounded_once,
    stored,
)
from vsparse_check.refusal import need
from vsparse_check.rules import (
    BackwardContext,
    ErrorContext,
    ExecutedValue,
    LinearBound,
    OperatorRules,
)
from vsparse_check.tensors import OnnxNode, ShapedActivation, TensorTable

# Intervals.


def add_interval(op: Op, boxes: list[Interval]) -> Interval:
    """Returns [l_x + l_y, u_x + u_y], which holds x + y (docs/numerics.md, section 4.2).

    Its rounding is in g·(|x| + |y|), by which `addition_error` widens it.
    """
    x, y = boxes
    return Interval(x.lower + y.lower, x.upper + y.upper)


def sub_interval(op: Op, boxes: list[Interval]) -> Interval:
    """Returns [l_x − u_y, u_x − l_y], which holds x − y; rounding as that of a sum.

    docs/numerics.md, section 4.2.
    """
    x, y = boxes
    return Interval(x.lower - y.upper, x.upper - y.lower)


# Rows, backward.


def add_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns a·(x + y) = a·x + a·y, exact (docs/numerics.md, section 4.2)."""
    return LinearBound([a, a], [])


def sub_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns a·(x − y) = a·x − a·y, exact (docs/numerics.md, section 4.2)."""
    return LinearBound([a, -a], [])


# Error terms: docs/numerics.md, section 3.1, the rows of the table that their names say.


def addition_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of x ± y: u·|result| + 3η, or that of a fused sum where it is larger."""
    size = context.m + largest(context.inputs[1])
    return _one_rounding(context, size, 3)


def shift_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of x + b: u·|result| + 3η, or that of a fused sum where it is larger."""
    return _one_rounding(context, op.magnitude(context.m), 3)


def scale_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of x·c: u·|result| + η·(m + |c| + 2)."""
    flushed = context.m + np.abs(op.weight) + 2
    return _one_rounding(context, op.magnitude(context.m), flushed)


def _one_rounding(
    context: ErrorContext, size: FloatArray, underflows: FloatArray | float
) -> FloatArray:
    """Returns E of an operation with one rounding: u·|result| + η·underflows.

    In quantised networks QLinearAdd has at most 6 roundings of each term scale·q / scale' with
    |q| and |zero point| at most 255: 12u of the magnitudes, and 16u·512 of the scales
    (docs/numerics.md, section 7.2). A fused sum: docs/numerics.md, section 3.3.
    """
    arithmetic = context.arithmetic
    error = rounded_once(context, size) + arithmetic.eta * underflows
    if arithmetic.quantised:
        error = error + arithmetic.u * (12 * size + 2**13 * sum(context.input_scales))
    whole = size
    if context.fused is not None:
        error = np.maximum(error, stored(context, context.fused.error, size))
        whole = context.fused.size
    return charged(context, error, whole, whole)


def div_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of x / c: γ_2·|x/c| + 2η·(m + 1 + 1/|c|), γ_3 where it is stored once more.

    It covers one correctly rounded division, and a rounded reciprocal with a multiplication;
    infinite where c may be flushed to zero or 1/c overflows.
    """
    arithmetic = context.arithmetic
    inverse, m = np.abs(op.weight), context.m
    size = m * inverse
    growth = float(gamma(2.0 + arithmetic.stored_again, arithmetic.u))
    own = growth * size + 2 * arithmetic.eta * (m + 1 + inverse)
    error = own * (1 + 1e-9) + arithmetic.g * size + FLOOR
    (least,) = op.constants
    usable = least >= arithmetic.eta and 2 * inverse.max() < arithmetic.greatest
    if arithmetic.u and not usable:
        error = np.full_like(m, np.inf)
    return arithmetic.finite(error, np.maximum(m, size))


def neg_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of −x: 0, and g·m for the backward pass."""
    return context.arithmetic.g * context.m


# Execution: docs/numerics.md, section 4.4.


def _added(value: FloatArray, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns a sum or difference with its error: those of the inputs, and γ64 of what is added."""
    x, y = inputs
    size = np.abs(x.value) + np.abs(y.value)
    return ExecutedValue(value, x.error + y.error + g * size)


def add_execution(op: Op, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns x + y."""
    return _added(inputs[0].value + inputs[1].value, inputs, g)


def sub_execution(op: Op, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns x − y."""
    return _added(inputs[0].value - inputs[1].value, inputs, g)


# Reading.


def read_add(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Add of two activations, or of an activation and a constant."""
    x = tensors.activation(node)
    if node.input(1) in tensors.activations:
        return _of_two("add", node, tensors, x)
    b = _constant(node, tensors, x.shape)
    return Op("shift", node.output, (x.name,), x.shape, np.ones_like(b), b)


def read_sub(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Sub of two activations, or of a constant from an activation."""
    x = tensors.activation(node)
    if node.input(1) in tensors.activations:
        return _of_two("sub", node, tensors, x)
    b = _constant(node, tensors, x.shape)
    return Op("shift", node.output, (x.name,), x.shape, np.ones_like(b), -b)


def read_mul(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Mul with a constant."""
    x = tensors.activation(node)
    c = _constant(node, tensors, x.shape)
    return Op("scale", node.output, (x.name,), x.shape, c, 0 * c)


def read_div(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Div by a constant."""
    x = tensors.activation(node)
    c = _constant(node, tensors, x.shape)
    need((c != 0).all(), "Div has a divisor 0")
    least = float(np.abs(c).min())
    return Op("div", node.output, (x.name,), x.shape, 1 / c, 0 * c, constants=(least,))


def read_neg(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Neg."""
    x = tensors.activation(node)
    c = _broadcast(np.full(1, -1.0), x.shape)
    return Op("neg", node.output, (x.name,), x.shape, c, 0 * c)


def _of_two(kind: str, node: OnnxNode, tensors: TensorTable, x: ShapedActivation) -> Op:
    """Reads an operator of two activations, whose shapes must be one: nothing is broadcast."""
    y = tensors.activations[node.input(1)]
    need(x.shape == y.shape, "an addition of two activations has two shapes")
    return Op(kind, node.output, (x.name, y.name), x.shape)


def _constant(node: OnnxNode, tensors: TensorTable, shape: Dims) -> FloatArray:
    """Returns the second input, a parameter, as one number for each element, [size]."""
    return _broadcast(tensors.numbers(node.input(1)), shape)


def _broadcast(value: FloatArray, shape: Dims) -> FloatArray:
    """Returns [size] numbers: a parameter broadcast, as ONNX does, to an activation of `shape`."""
    return np.broadcast_to(value, (1, *shape)).reshape(-1).copy()


RULES = {
    "add": OperatorRules(
        interval=add_interval,
        backward=add_backward,
        error=addition_error,
        execute=add_execution,
        on_grid=OnGrid.ADDS,
    ),
    "sub": OperatorRules(
        interval=sub_interval,
        backward=sub_backward,
        error=addition_error,
        execute=sub_execution,
        on_grid=OnGrid.ADDS,
    ),
    "shift": OperatorRules(
        interval=linear_interval,
        backward=linear_backward,
        error=shift_error,
        execute=linear_execution,
        on_grid=OnGrid.SHIFTS,
        linear=True,
        elementwise_linear=True,
    ),
    "scale": OperatorRules(
        interval=linear_interval,
        backward=linear_backward,
        error=scale_error,
        execute=linear_execution,
        linear=True,
        elementwise_linear=True,
    ),
    "div": OperatorRules(
        interval=linear_interval,
        backward=linear_backward,
        error=div_error,
        execute=linear_execution,
        linear=True,
        elementwise_linear=True,
    ),
    "neg": OperatorRules(
        interval=linear_interval,
        backward=linear_backward,
        error=neg_error,
        execute=linear_execution,
        linear=True,
        elementwise_linear=True,
    ),
}
ONNX = {
    "Add": OnnxRule(read_add, {}, inputs=2, commutes=True),
    "Sub": OnnxRule(read_sub, {}, inputs=2),
    "Mul": OnnxRule(read_mul, {}, inputs=2, commutes=True),
    "Div": OnnxRule(read_div, {}, inputs=2),
    "Neg": OnnxRule(read_neg, {}),
}
