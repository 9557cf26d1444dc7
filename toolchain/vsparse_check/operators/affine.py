"""Fully connected layers and convolutions, z = W·x + b; and the rules of all that is linear.

Kind `affine`: `weight` [out, in] or [groups, out, in, taps], `bias` [size], `window` for
convolutions. The functions for W·x + b also serve average pools and operations with a constant.
"""

from __future__ import annotations

from math import prod

import numpy as np

from vsparse_check.arrays import FLOOR, Dims, FloatArray, Interval, largest, negative, positive
from vsparse_check.integers import OnGrid
from vsparse_check.onnx_rules import OnnxRule
from vsparse_check.op import Op
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

MAX_TAPS, MAX_PAD = 2**14, 64


# The steps of the theorem.


def linear_interval(op: Op, boxes: list[Interval]) -> Interval:
    """Returns W·c + b ± |W|·r for a box with the centre c and the radius r.

    Interval arithmetic of a linear map (Gowal et al., arXiv 1810.12715, section 3);
    docs/numerics.md, section 4.2.
    """
    (box,) = boxes
    centre = op.times(op.weight, (box.lower + box.upper) * 0.5) + op.bias
    radius = op.times(np.abs(op.weight), (box.upper - box.lower) * 0.5)
    return Interval(centre - radius, centre + radius)


def linear_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns a·(W·x + b) = (a·W)·x + a·b: exact, up to the rounding that g covers.

    docs/numerics.md, section 4.2.
    """
    return LinearBound([op.transposed_times(a)], constant_terms(a, op.bias))


def constant_terms(a: FloatArray, bias: FloatArray) -> list[FloatArray]:
    """Returns a·b as two sums, each of terms of one sign.

    So the magnitudes of the two are those of all terms, of which γ64 is taken at the end
    (docs/numerics.md, section 5.3).
    """
    if not bias.any():
        return []
    above, below = positive(a), negative(a)
    bias_above, bias_below = positive(bias), negative(bias)
    return [above @ bias_above + below @ bias_below, above @ bias_below + below @ bias_above]


def affine_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of a sum of products.

    kernel·m + constant, which sums.py derives, and one rounding more where the sum is stored in
    another format than its own (docs/numerics.md, section 3.1, first row of the table); or the
    error of the kernel's own order (docs/numerics.md, section 8.2), where that is less.
    """
    assert context.sum_error is not None
    own = op.times(context.sum_error.kernel, context.m) + context.sum_error.constant
    if context.chain is not None:
        own = np.minimum(own, context.chain)
    size = op.magnitude(context.m)
    if not context.unrounded:
        own = stored(context, own, size)
    return charged(context, own, size, size)


def linear_execution(op: Op, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns W·x + b in float64: errors pass |W|, and the sum errs by γ64 of its magnitudes.

    docs/numerics.md, section 4.4.
    """
    ((x, error),) = inputs
    size = np.abs(op.weight)
    spread = np.broadcast_to(error, x.shape) if error.any() else np.zeros((1, x.shape[1]))
    passed = op.times(size, spread) * (1 + g)
    return ExecutedValue(
        op.times(op.weight, x) + op.bias, passed + g * op.magnitude(np.abs(x)) + FLOOR
    )


# Parts of E that all sums have.


def rounded_once(context: ErrorContext, size: FloatArray) -> FloatArray:
    """Returns u·|result|, the result being in the box `out` and at most `size` in magnitude."""
    return context.arithmetic.once(np.minimum(largest(context.out), size))


def stored(context: ErrorContext, own: FloatArray, size: FloatArray) -> FloatArray:
    """Returns the error `own` of a sum after it is stored: one rounding more if formats differ."""
    arithmetic = context.arithmetic
    if not arithmetic.stored_again:
        return own
    return own * (1 + 2 * arithmetic.u) + rounded_once(context, size) + arithmetic.eta


def charged(
    context: ErrorContext, error: FloatArray, size: FloatArray, largest_sum: FloatArray
) -> FloatArray:
    """Returns E with the float64 rounding of bounds through the operator, g·(Σ|w|m + |b|).

    Infinite where a partial sum, or an operand by itself, may overflow (docs/numerics.md, section
    3.1; for g docs/checker.md, section 5).
    """
    reach = np.maximum(largest_sum, context.m.max(axis=1, keepdims=True))
    g = context.arithmetic.g
    # What float64 loses here: E is a sum of terms >= 0, as long as the operator's own, of products
    # of a dozen factors. γ_K covers them twice over, with K from 8 times that length and 1000 on.
    whole = (error + g * size) * (1 + 4 * g) + FLOOR
    return context.arithmetic.finite(whole, reach)


# Reading.


def read_gemm(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Gemm: x·Wᵀ + b with transB = 1, x·W + b without."""
    x = tensors.activation(node)
    weight = tensors.numbers(node.input(1))
    if node.transposes_weight:
        weight = weight.T
    need(
        weight.ndim == 2 and x.shape == weight.shape[1:],
        f"Gemm has a weight of shape {weight.shape} on {x.shape}",
    )
    bias = tensors.numbers(node.input(2), len(weight))
    return Op("affine", node.output, (x.name,), weight.shape[:1], weight, bias)


def read_conv(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Conv, of any number of groups."""
    x = tensors.activation(node)
    weight = tensors.numbers(node.input(1))
    window = read_window(node, x.shape, weight.shape[2:])
    channels, groups = len(weight), node.attributes.get("group", 1)
    shape = possible((channels, *map_shape(window)))
    grouped = groups >= 1 and channels % groups == 0
    need(
        grouped and weight.shape[1] * groups == x.shape[0],
        f"a convolution has {groups} groups and a weight of shape {weight.shape} on {x.shape}",
    )
    bias = np.repeat(tensors.numbers(node.input(2), channels), prod(shape[1:]))
    kernel = weight.reshape(groups, channels // groups, -1, window.taps)
    return Op("affine", node.output, (x.name,), shape, kernel, bias, window)


def read_window(node: OnnxNode, source: Dims, kernel: Dims) -> SlidingWindow:
    """Returns the window of a convolution or pool."""
    attributes = node.attributes
    given = tuple(attributes.get("kernel_shape", ()))
    stride = tuple(attributes.get("strides", (1, 1)))
    pads = tuple(attributes.get("pads", (0,) * 4))
    dilation = tuple(attributes.get("dilations", (1, 1)))
    lengths = [len(source), len(kernel), len(stride), len(pads), len(dilation)]
    fits = lengths == [3, 2, 2, 4, 2] and given in ((), kernel)
    fits = fits and min(kernel + stride + dilation) >= 1 and prod(kernel) <= MAX_TAPS
    need(
        fits and 0 <= min(pads) <= max(pads) <= MAX_PAD,
        f"a window on {source} has kernel {given}, strides {stride}, "
        f"pads {pads}, dilations {dilation}",
    )
    return SlidingWindow(source, kernel, stride, pads, dilation)


def window_reach(window: SlidingWindow) -> Dims:
    """Returns how many rows and columns a window spans."""
    return tuple(d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel, strict=True))


def map_shape(window: SlidingWindow) -> Dims:
    """Returns the height and width of the output maps, which may be impossible ones."""
    padded = possible(window.padded_shape)[1:]
    sizes = zip(padded, window_reach(window), window.stride, strict=True)
    return tuple((size - reach) // stride + 1 for size, reach, stride in sizes)


WINDOW_ATTRIBUTES = {
    "kernel_shape": None,
    "strides": None,
    "auto_pad": b"NOTSET",
    "pads": None,
    "dilations": None,
}
RULES = {
    "affine": OperatorRules(
        interval=linear_interval,
        backward=linear_backward,
        error=affine_error,
        execute=linear_execution,
        on_grid=OnGrid.SUMS,
        linear=True,
    ),
}
ONNX = {
    "Conv": OnnxRule(read_conv, WINDOW_ATTRIBUTES | {"group": None}, inputs=3),
    "Gemm": OnnxRule(read_gemm, {"transB": None, "transA": 0, "alpha": 1.0, "beta": 1.0}, inputs=3),
}
