"""Functions of each element that do not decrease: leaky ReLU, clip, sigmoid and tanh; their values, kinks and lines around them.

A slope is any number in [0, 1]; the intercept is what makes the line true for that very slope, computed from the few points where
f(x) − slope·x can be largest or least, and moved outward by more than float64 loses there (docs/numerics.md, section 5.2).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsparse_check.op import Array, Op
from vsparse_check.rounding import FLOOR, FUNCTION_ERROR_64

SATURATED, HALVINGS, NARROW = 20.0, 30, 1e-6  # where tanh is 1 in float64; steps of a bisection; below this width chords mean nothing


class Lines(NamedTuple):
    """below · x + under <= f(x) <= above · x + over on [lower, upper], elementwise."""

    below: Array
    under: Array
    above: Array
    over: Array


def value(op: Op, x: Array) -> Array:
    """Returns f(x), within FUNCTION_ERROR_64 of it for sigmoid and tanh and exact to one rounding for the others."""
    if op.form == "leaky":
        return np.where(x >= 0, x, op.ends[0] * x)
    if op.form == "clip":
        return np.clip(x, op.ends[0], op.ends[1])
    return np.tanh(x) if op.form == "tanh" else 0.5 + 0.5 * np.tanh(0.5 * x)


def unsettled(op: Op, lower: Array, upper: Array) -> NDArray[np.bool_]:
    """Returns where tighter bounds of x would make tighter lines: where a kink lies inside, everywhere for sigmoid and tanh."""
    if op.form == "leaky":
        return (lower < 0) & (upper > 0)
    if op.form == "clip":
        return np.asarray(np.logical_or.reduce([(lower < end) & (upper > end) for end in op.ends]))
    return upper > lower


def lines(op: Op, lower: Array, upper: Array) -> Lines:
    """Returns lines around the function of an operator on [lower, upper]; NaN, which proves nothing, where an end is not finite."""
    if op.form == "leaky":
        return _leaky(lower, upper, op.ends[0])
    if op.form == "clip":
        return _clip(lower, upper, *op.ends)
    if op.form == "tanh":
        return _tanh(lower, upper)
    half = _tanh(0.5 * lower, 0.5 * upper)  # sigmoid(x) = (1 + tanh(x/2)) / 2
    return Lines(half.below / 4, (1 + half.under) / 2 - 1e-15, half.above / 4, (1 + half.over) / 2 + 1e-15)


def _slack(lower: Array, upper: Array) -> Array:
    """Returns more than float64 loses in f(x) − slope·x for |f(x)|, |slope·x| and |x| up to the larger end."""
    return 1e-15 * np.maximum(np.abs(lower), np.abs(upper)) + FLOOR


def _leaky(lower: Array, upper: Array, slope: float) -> Lines:
    """Convex: the lower line through the origin with slope 1 if u > −l, else `slope`; the upper one the chord, true at both ends."""
    crosses, settled = (lower < 0) & (upper > 0), np.where(lower >= 0, 1.0, slope)
    below = np.where(crosses, np.where(upper > -lower, 1.0, slope), settled)
    chord = np.clip((upper - slope * lower) / np.where(crosses, upper - lower, 1), slope, 1)
    above = np.where(crosses, chord, settled)
    over = np.maximum(slope * lower - above * lower, upper - above * upper) + _slack(lower, upper)
    zero = 0 * (lower + upper)
    return Lines(below, zero, above, np.where(crosses, over, zero))


def _clip(lower: Array, upper: Array, lowest: float, highest: float) -> Lines:
    """Piecewise linear: f(x) − slope·x is largest and least at an end or a kink. Slopes: of the envelope's piece at the middle."""
    first, last = np.clip(lowest, lower, upper), np.clip(highest, lower, upper)
    at_lower, at_upper, middle = np.clip(lower, lowest, highest), np.clip(upper, lowest, highest), 0.5 * (lower + upper)
    inside, flat = (lower >= lowest) & (upper <= highest), (upper <= lowest) | (lower >= highest)

    def chord(rise: Array, run: Array, wanted: NDArray[np.bool_]) -> Array:
        use = wanted & ~inside & ~flat & (run > 0)
        return np.where(inside, 1.0, np.where(use, np.clip(rise / np.where(use, run, 1), 0, 1), 0.0))

    above = chord(np.clip(last, lowest, highest) - at_lower, last - lower, middle < last)
    below = chord(at_upper - np.clip(first, lowest, highest), upper - first, middle > first)
    points = np.stack([lower, first, last, upper])
    values = np.clip(points, lowest, highest)
    slack = np.where(inside | flat, 0, _slack(lower, upper))
    return Lines(below, (values - below * points).min(axis=0) - slack, above, (values - above * points).max(axis=0) + slack)


def _tanh(lower: Array, upper: Array) -> Lines:
    """The lower line is the upper one of the mirrored interval, tanh being odd."""
    above, over = _over_tanh(lower, upper)
    below, over_mirrored = _over_tanh(-upper, -lower)
    return Lines(below, -over_mirrored, above, over)


def _over_tanh(lower: Array, upper: Array) -> tuple[Array, Array]:
    """Returns slope and intercept of a line above tanh on [lower, upper].

    g(x) = tanh(x) − a·x falls up to −x*, rises up to x* and falls beyond, where tanh'(x*) = 1 − tanh²(x*) = a, so tanh(x*) = t = √(1 − a)
    and x* = artanh(t) = log((1 + t)/√a). Its largest value on [lower, upper] is at an end, or at x* where that lies inside; g(x*) is the
    largest for all x >= 0, so counting x* where it is close to an end loses nothing.
    """
    a = _slope_over_tanh(lower, upper)
    t = np.sqrt(1 - a)
    star = np.log((1 + t) / np.sqrt(np.maximum(a, 1e-300)))
    near = 1e-9 * (1 + star)
    ends = np.maximum(np.tanh(lower) - a * lower, np.tanh(upper) - a * upper)
    inside = (star + near >= lower) & (star - near <= upper)
    over = np.where(inside, np.maximum(ends, t - a * star), ends)
    return a, over + FUNCTION_ERROR_64 * (1 + a * np.maximum(np.abs(lower), np.abs(upper)))


def _slope_over_tanh(lower: Array, upper: Array) -> Array:
    """Returns the slope of the concave envelope of tanh on [lower, upper] at the middle: any number in [0, 1] is sound.

    It is that of the chord where the line from the lower end that touches tanh would do so beyond the upper end; else that of the tangent
    at the middle, or at the touching point if that lies further right (Zhang et al., arXiv 1811.00866), found by bisection.
    """
    width, middle, start = upper - lower, 0.5 * (lower + upper), np.tanh(lower)
    left, right = np.zeros_like(lower), np.clip(-lower, 0, SATURATED)
    for _ in range(HALVINGS):
        point = 0.5 * (left + right)
        further = (1 - np.tanh(point) ** 2) * (point - lower) > np.tanh(point) - start
        left, right = np.where(further, point, left), np.where(further, right, point)
    touching, wide = np.where(lower < 0, right, lower), width > NARROW
    at = np.where(wide, np.maximum(middle, np.minimum(touching, SATURATED)), middle)
    chord = (np.tanh(upper) - start) / np.where(wide, width, 1)
    return np.clip(np.where((touching < upper) | ~wide, 1 - np.tanh(at) ** 2, chord), 0, 1)
