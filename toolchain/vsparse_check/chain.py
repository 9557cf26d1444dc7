"""The error of a sum that a kernel adds up term after term (docs/numerics.md, section 8.2).

Under the contracts of the order `chain` each output is s_0 = b, s_j = fl(s_{j-1} + w_j·x_j) by
fused multiply-add, for a convolution position by position and at each channel by channel.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vsparse_check.arithmetic import ContractArithmetic
from vsparse_check.arrays import FloatArray, Interval
from vsparse_check.limits import CALL, ELEMENT
from vsparse_check.op import Op

# Products of one sample beyond which partial sums are not looked at: E is that of any order.
MOST_PRODUCTS = 2**24
EXPONENT = np.int64(0x7FF0000000000000)


def in_chain(op: Op, arithmetic: ContractArithmetic) -> bool:
    """Returns whether the error of a sum is that of its kernel's own order."""
    if not arithmetic.chain or op.kind != "affine" or op.weight.ndim not in (2, 4):
        return False
    return op.size * _fan_in(op) <= MOST_PRODUCTS


def chain_work(op: Op, rows: int) -> float:
    """Returns the work of one bound for so many samples (limits.py)."""
    return _fan_in(op) * (20 * CALL + 12 * ELEMENT * rows * op.size)


def chain_error(op: Op, box: Interval, arithmetic: ContractArithmetic) -> FloatArray:
    """Returns E [n, size]: |s_n as executed − b − W·x| for all x in the box.

    With t_j between the sums of the least and the greatest of the first j products, step j
    rounds a number of at most |t_j| + e_{j-1}. To nearest that errs by at most u times the power
    of two in it, and by at most |w_j·x_j|, as s_{j-1} is a number of the format; and by η where
    the result is subnormal. The sums t_j are computed in float64, which errs by g of their terms.
    """
    n = len(box.lower)
    shape = (n, op.weight.shape[0], op.weight.shape[1], -1) if op.weight.ndim == 4 else (n, -1)
    bias = np.broadcast_to(op.bias, (n, op.size)).reshape(shape)
    lower, upper, error = bias.copy(), bias.copy(), np.zeros(bias.shape)
    terms = np.abs(bias)
    for weight, x in _products(op, box):
        ends = weight * x.lower, weight * x.upper
        lower += np.minimum(*ends)
        upper += np.maximum(*ends)
        size = np.maximum(np.abs(ends[0]), np.abs(ends[1]))
        terms += size
        reach = np.maximum(np.abs(lower), np.abs(upper)) + arithmetic.g * terms + error
        step = np.minimum(arithmetic.u_sum * _leading_power(reach), size) + arithmetic.eta_sum
        error += np.where(weight != 0, step, 0.0)
    return np.asarray(error.reshape(n, -1) * (1 + 1e-9))


def _fan_in(op: Op) -> int:
    """Returns how many products one output adds up."""
    return op.weight.size // op.output_channels


def _products(op: Op, box: Interval) -> Iterator[tuple[FloatArray, Interval]]:
    """Yields each weight of a row and the interval that it multiplies, in the kernel's order."""
    if op.weight.ndim == 2:
        for j in range(op.weight.shape[1]):
            yield op.weight[:, j], Interval(box.lower[:, j, None], box.upper[:, j, None])
        return
    assert op.window is not None
    groups, inputs = op.weight.shape[0], op.weight.shape[2]
    ends = (list(op.window.views(end, op.shape[1:], 0.0)) for end in box)
    for tap, (low, high) in enumerate(zip(*ends, strict=True)):
        for channel in range(inputs):
            x = (end.reshape(len(end), groups, inputs, 1, -1)[:, :, channel] for end in (low, high))
            yield op.weight[:, :, channel, tap, None], Interval(*x)


def _leading_power(value: FloatArray) -> FloatArray:
    """Returns the largest power of two that is at most each of these numbers, 0 for 0."""
    return np.asarray((value.view(np.int64) & EXPONENT).view(np.float64))
