"""The error of a sum of products z = W·x + b (docs/numerics.md, sections 3.1 and 6.1).

Every function here is about one operator with a weight: a fully connected layer, a convolution, or
an average pool, which is a convolution with the weights 1 / window.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from vsparse_check.arithmetic import ContractArithmetic, gamma
from vsparse_check.arrays import FloatArray
from vsparse_check.op import Op


class SumError(NamedTuple):
    """|executed − exact| <= kernel·m + constant for all |x| <= m."""

    kernel: FloatArray  # of the shape of the weight
    constant: FloatArray  # [size]


def roundings(op: Op, arithmetic: ContractArithmetic) -> FloatArray:
    """Returns n, by channel: how many roundings in a row a product meets in a sum.

    One for each non-zero weight (adding an exact zero is exact), and one for the bias. An average
    pool has two more, of the reciprocal of its size and of the product with it. In quantised
    networks parameters and inputs are rounded to floats, or a sum of integers is converted and
    scaled, which is 12 more at most (docs/numerics.md, section 7.2).
    """
    further = 3.0 if op.kind == "average" else 1.0
    if arithmetic.quantised:
        further += 12
    nonzero = (op.weight != 0).reshape(op.output_channels, -1).sum(axis=1)
    return np.asarray(nonzero + further)


def sum_error(op: Op, n: FloatArray, arithmetic: ContractArithmetic) -> SumError:
    """Returns the error of a sum with n roundings in a row (n by channel).

    A converted or flushed operand x' has |x' − x| <= u|x| + η, and likewise w', so that a product
    is wrong by at most

        (|w|(1 + u) + η)(m(1 + u) + η) − |w|m = m·(|w|(2u + u²) + η(1 + u)) + (|w|(1 + u) + η)η.

    The sum of products and bias errs by γ_n of their magnitudes (Higham 2002, section 3.1), and
    each of n products and partial sums by 2η where it underflows; what was wrong before grows by
    1 + γ_n. Here n counts the bias: it is the n + 1 of docs/numerics.md, section 3.1, first two
    rows of the table. Averages are sums of numbers, which no matrix unit truncates.
    """
    average = op.kind == "average"
    u, eta = (0.0 if average else arithmetic.u_operand), arithmetic.eta_operand
    weight = np.abs(op.weight).reshape(op.output_channels, -1)
    used = weight > 0
    growth = (gamma(n, arithmetic.u_accumulate) if average else arithmetic.growth(n))[:, None]
    of_products, of_bias = _growth(op, growth, arithmetic)

    # The factor of m in the error of each product, and what does not depend on m.
    operands = weight * (2 * u + u * u + _stored_reciprocal(op, arithmetic)) + eta * (1 + u)
    kernel = np.where(used, operands * (1 + growth) + weight * of_products, 0.0)
    flushed = np.where(used, (weight * (1 + u) + eta) * eta, 0.0).sum(axis=1)
    constant = (flushed + 2 * n * arithmetic.eta_sum) * (1 + growth[:, 0])

    positions = prod(op.shape[1:])
    bias = np.repeat(of_bias[:, 0], positions) * np.abs(op.bias)
    constant = np.repeat(constant, positions) + np.where(op.bias == 0, 0, bias)
    constant = constant + _flushed_bias(op, arithmetic) * (1 + np.repeat(growth[:, 0], positions))
    return SumError(kernel.reshape(op.weight.shape), constant)


def _flushed_bias(op: Op, arithmetic: ContractArithmetic) -> FloatArray:
    """Returns |b| where a bias is subnormal in a storage format other than the accumulator's.

    It may be read as zero. Where both formats are one, 2n·η covers it: k = n − 1 products, k + 1
    partial sums, the bias among them (docs/numerics.md, section 3.1, first row of the table).
    """
    size = np.abs(op.bias)
    lost = arithmetic.stored_again & (size < arithmetic.eta)
    return np.where(lost, size, 0.0)


def _roundoff(op: Op, arithmetic: ContractArithmetic) -> float:
    """Returns the unit roundoff of the running sum: averages are sums of numbers, not products."""
    return arithmetic.u_accumulate if op.kind == "average" else arithmetic.u_sum


def _growth(
    op: Op, growth: FloatArray, arithmetic: ContractArithmetic
) -> tuple[FloatArray, FloatArray]:
    """Returns the γ of each product and that of the bias, [out, terms or 1] and [out, 1].

    In any order: γ_n of both. Under `sequential` the bias is first and the k non-zero weights
    follow in order, so that product j meets k − j + 2 roundings and the bias k
    (docs/numerics.md, section 6.1).
    """
    if not arithmetic.sequential:
        return growth, growth
    used = (op.weight != 0).reshape(op.output_channels, -1)
    k = used.sum(axis=1, keepdims=True)
    u = _roundoff(op, arithmetic)
    return gamma(k - np.cumsum(used, axis=1) + 2, u), gamma(k, u)


def _stored_reciprocal(op: Op, arithmetic: ContractArithmetic) -> float:
    """Returns the roundoff of 1 / window where it is stored as the weight of a convolution.

    That is exact for powers of two (docs/numerics.md, section 3.1, average pooling).
    """
    if op.kind != "average" or not arithmetic.stored_again:
        return 0.0
    power_of_two = np.frexp(op.taps)[0] == 0.5
    return 0.0 if power_of_two else arithmetic.u
