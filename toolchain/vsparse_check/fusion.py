"""Sums that a runtime may fuse into one (docs/numerics.md, section 3.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vsparse_check.arithmetic import ContractArithmetic
from vsparse_check.arrays import FloatArray, Interval, largest
from vsparse_check.limits import CALL, ELEMENT, ResourceBudget
from vsparse_check.op import Op
from vsparse_check.sums import SumError, roundings, sum_error

ADDITIONS = ("add", "sub", "shift")  # kinds that a kernel may fuse with what they read
PASSED = (*ADDITIONS, "neg")  # kinds through which a sum goes on


class FusedTerms(NamedTuple):
    """What a runtime may add up in one sum at an addition."""

    products: list[Op]  # sums of products
    activations: list[str]
    constants: list[FloatArray]  # their magnitudes


class FusedSum(NamedTuple):
    """Those terms with N roundings in all: the errors of the products, and γ_N."""

    terms: FusedTerms
    errors: list[SumError]
    growth: FloatArray


class FusedBound(NamedTuple):
    """|fused sum as executed − exact| <= error, and the magnitudes of all its terms together."""

    error: FloatArray
    size: FloatArray


def fusable_terms(op: Op, made: Mapping[str, Op], reads: Counter[str]) -> FusedTerms:
    """Returns what may be one sum with an addition: only what nothing else reads is fused."""
    found = FusedTerms([], [], [])
    pending = [op] if op.kind in ADDITIONS else []
    while pending:
        one = pending.pop()
        if one.kind == "shift":
            found.constants.append(np.abs(one.bias))
        for name in one.inputs:
            producer = made.get(name)
            if producer is None or reads[name] > 1:
                found.activations.append(name)
            elif producer.kind == "affine":
                found.products.append(producer)
            elif producer.kind in PASSED:
                pending.append(producer)
            else:
                found.activations.append(name)
    return found


def fused_sum(
    op: Op, terms: FusedTerms, arithmetic: ContractArithmetic, budget: ResourceBudget
) -> FusedSum:
    """Returns the errors of the products when all terms are added up in one sum.

    The accumulator of a fused kernel may start with the other summand, so that every partial sum
    is as large as all terms together: with N roundings in all it errs by γ_N of all magnitudes
    (Higham 2002, section 3.1). N is counted by element of the result, as a change of shape may lie
    between an operator and the addition.
    """
    counts = (
        np.repeat(roundings(one, arithmetic), one.size // one.output_channels)
        for one in terms.products
    )
    n = sum(counts, np.zeros(op.size)) + len(terms.activations) + len(terms.constants) + 1
    budget.spend(sum(CALL + 5 * ELEMENT * (one.weight.size + one.size) for one in terms.products))
    budget.hold(sum(8.0 * (2 * one.weight.size + one.size) for one in terms.products))
    errors = [
        sum_error(one, n.reshape(one.output_channels, -1).max(axis=1), arithmetic)
        for one in terms.products
    ]
    return FusedSum(terms, errors, arithmetic.growth(n))


def fused_bound(
    fused: FusedSum, boxes: Mapping[str, Interval], arithmetic: ContractArithmetic
) -> FusedBound:
    """Returns γ_N of what is added, 3η for each summand, and the errors of the products.

    With z = Σ_i W_i·x_i + b_i + Σ_j y_j, |executed − z| <= Σ_i (kernel_i·m_i + constant_i) +
    γ_N·Σ_j |y_j| + 3η for each j (docs/numerics.md, section 3.3). What a fused operator would have
    stored in between is any value within its own E of the exact one, so that the charges of the
    fused operators add up. So η of the accumulator's format is enough here: where storage flushes
    more, a summand y_j that is read as zero is paid by the η of storage in E of the sum of products
    that is never stored (`stored` in operators/affine.py), or in E of the addition before.
    """
    magnitudes = [largest(boxes[name]) for name in fused.terms.activations]
    added = [*fused.terms.constants, *magnitudes]
    size = sum(added, np.zeros(1))
    error = fused.growth * size + 3 * arithmetic.eta_sum * len(added)
    for op, own in zip(fused.terms.products, fused.errors, strict=True):
        m = largest(boxes[op.inputs[0]])
        error = error + op.times(own.kernel, m) + own.constant
        size = size + op.magnitude(m)
    return FusedBound(error, size)
