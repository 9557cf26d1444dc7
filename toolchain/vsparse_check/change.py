"""Regression: by how much one real answer changes, bounded again (docs/numerics.md, section 4.5).

A claim says that for every input p of the region around x, every execution of p and every execution
of x itself, |f(p) − f(x)| < delta − margin_lower. With lower <= f(x) <= upper by interval bounds at
x alone, delta + lower + bound(−f(p)) and delta − upper + bound(f(p)) are lower bounds of delta
minus the change in either direction.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from vsparse_check.arrays import FLOOR, FloatArray, Interval
from vsparse_check.bounds import Bounds
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model
from vsparse_check.region import ClaimedRegion, SampleRegions, point_in

DIRECTIONS = np.array([[-1.0], [1.0]])  # of the answer: from above, from below
ROUNDING = 2.0**-50  # of a float64 sum of three numbers, relative to their magnitudes
LARGEST = float(np.finfo(np.float32).max)
ANYWHERE = point_in((-LARGEST, LARGEST))


def answers(model: Model, errors: ErrorTerms, points: FloatArray) -> Interval:
    """Returns an enclosure, each end [n], of every execution of a network with one output.

    points [n, size], each alone.
    """
    bounds = Bounds(model, errors, SampleRegions(ANYWHERE, points), refine=False)
    lower, upper = bounds.boxes[model.output]
    return Interval(lower[:, 0], upper[:, 0])


def change_margins(bounds: Bounds, at: Interval, delta: Fraction, fold_only: bool) -> FloatArray:
    """Returns lower bounds [n, 2] of delta minus the change, upward and downward.

    `bounds` are over the regions of n samples, `at` enclose the answers to these; with `fold_only`
    rows are folded into the last layers, else they are passed to the input, too (n = 1).
    """
    samples = np.repeat(np.arange(len(at.lower)), 2)
    rows = np.tile(DIRECTIONS, (len(at.lower), 1))
    several = len(at.lower) > 1
    found = bounds.folded(rows, samples if several else slice(None))
    if not fold_only:
        found = np.maximum(found, bounds.backward({bounds.model.output: rows}))
    bounds.executed.check_rows(bounds.model.output, rows, found, samples)
    ends = np.stack([at.lower, -at.upper], axis=1)
    found, least = found.reshape(-1, 2), below(delta)
    size = np.abs(found) + np.abs(ends) + least
    margins = least + ends + found - size * ROUNDING - FLOOR
    return np.where(np.isnan(margins), -np.inf, margins)


def least_change_margin(
    bounds: Bounds, x: FloatArray, claimed: ClaimedRegion, fold_only: bool
) -> FloatArray:
    """Returns the lesser of both directions, [n], for samples x [n, size]."""
    assert claimed.delta is not None
    at = answers(bounds.model, bounds.errors, x)
    return np.asarray(change_margins(bounds, at, claimed.delta, fold_only).min(axis=1))


def certainly_within(one: Interval, other: Interval, delta: Fraction) -> bool:
    """Returns whether two enclosed answers certainly differ by at most delta, in exact numbers."""
    ends = (one.lower[0], one.upper[0], other.lower[0], other.upper[0])
    if not np.isfinite(ends).all():
        return False
    first, second = ([Fraction(float(end)) for end in pair] for pair in (ends[:2], ends[2:]))
    return first[1] - second[0] <= delta and second[1] - first[0] <= delta


def mean_absolute_error(claims: list[dict[str, Any]]) -> float | None:
    """Returns the mean distance of stated answers from targets; None where none is finite."""
    errors = [abs(one["value"] - one["target"]) for one in claims if one.get("value") is not None]
    return sum(errors) / len(errors) if errors else None


def below(exact: Fraction) -> float:
    """Returns a float64 number that is at most an exact one."""
    return float(np.nextafter(float(exact), -np.inf))
