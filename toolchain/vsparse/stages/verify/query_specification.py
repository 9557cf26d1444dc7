"""The rows that must be proved to answer a query: its exact constraints in float64, rounded so that proving them proves the query."""

from __future__ import annotations

from fractions import Fraction
from math import inf, isfinite

import torch
from torch import Tensor

from vsparse.bounds import Box
from vsparse.errors import InputError
from vsparse.search.specification import Specification
from vsparse.vnnlib import Case, Conjunction, Constraint, Query, rounded_up


def rows_of(query: Query, conjunction: Conjunction) -> tuple[Tensor, list[float]]:
    """Returns the constraints' coefficients [R, outputs], nearest float64, and their bounds, rounded up."""
    rows = torch.zeros(len(conjunction), query.outputs, dtype=torch.float64)
    for i, constraint in enumerate(conjunction):
        for j, coefficient in constraint.coefficients:
            try:
                rows[i, j] = float(coefficient)
            except OverflowError:
                raise InputError(f"the property multiplies Y_{j} by a number above 1e308; divide the constraint by it") from None
    return rows, [rounded_up(constraint.bound) for constraint in conjunction]


def specification_of(query: Query, case: Case, outputs: Box) -> Specification | None:
    """Returns the specification of a case, None where a conjunction holds for all outputs, so that only a witness can be found.

    A coefficient that is no double raises the threshold by its rounding error times the largest |Y_j| in `outputs` [1, K]. Constraints
    with infinite thresholds are dropped: that makes more outputs unsafe.
    """
    size = torch.maximum(outputs[0].abs(), outputs[1].abs())[0].tolist()
    kept: list[tuple[Tensor, float, int]] = []
    for group, conjunction in enumerate(case.unsafe):
        rows, bounds = rows_of(query, conjunction)
        for row, threshold, constraint in zip(rows, bounds, conjunction, strict=True):
            if inexact(constraint):
                finite = all(isfinite(size[j]) for j, _ in constraint.coefficients)
                threshold = rounded_up(constraint.bound + rounded_away(constraint, size)) if finite else inf
            if threshold < inf:
                kept.append((row, threshold, group))
        if not kept or kept[-1][2] != group:
            return None
    thresholds = torch.tensor([value for _, value, _ in kept], dtype=torch.float64)
    return Specification(
        torch.stack([row for row, _, _ in kept]), thresholds, torch.tensor([group for _, _, group in kept]), len(case.unsafe)
    )


def inexact(constraint: Constraint) -> bool:
    """Whether a coefficient is not exactly a double."""
    return any(c != Fraction(float(c)) for _, c in constraint.coefficients)


def rounded_away(constraint: Constraint, size: list[float]) -> Fraction:
    """Returns the largest error from rounding coefficients to float64, for outputs with |Y_j| at most `size` [outputs], finite."""
    errors = ((abs(c - Fraction(float(c))), size[j]) for j, c in constraint.coefficients)
    return sum((error * Fraction(most) for error, most in errors if error), Fraction(0))
