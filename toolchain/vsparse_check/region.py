"""The region of a claim: every point clip(x0 + b + c·(x0 − 1/2) + δ) with |b| <= B, |c| <= C and ‖δ‖ <= ε (docs/properties.md).

Where B or C is not zero each coordinate may then move by ρ = 2^-24 times the largest magnitude of the data range, within it: one
rounding to float32. With B = C = 0 this is the ball within the data range: clipping is a projection, and moves nothing away from x0.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from vsparse_check.op import Array
from vsparse_check.rounding import FLOOR, Box, dot


class Property(NamedTuple):
    """What a certificate says about all its regions: the norm (linf, l2, l1), exact ε, B and C, and the data range."""

    norm: str
    epsilon: Fraction
    brightness: Fraction
    contrast: Fraction
    clip: tuple[float, float]


class Region:
    """The regions of samples x [n, size]: `before` is a box of what is clipped, `box` one of what the network reads, [n, size] each."""

    def __init__(self, of: Property, x: Array) -> None:
        self.of, self.x, self.is_box = of, x, of.norm == "linf" and not of.brightness and not of.contrast
        # float() rounds to nearest, so the next double is above the exact number.
        self.reach = epsilon, b, c = [np.nextafter(float(value), np.inf) if value else 0.0 for value in of[1:4]]
        reach = epsilon if self.is_box else (epsilon + b + c * np.abs(x - 0.5)) * (1 + 1e-15)
        self.before: Box = np.nextafter(x - reach, -np.inf), np.nextafter(x + reach, np.inf)
        self.rho = 2.0**-24 * max(np.abs(of.clip)) * (1 + 1e-9) if b or c else 0.0
        lower, upper = (np.clip(end, *of.clip) for end in self.before)
        self.box: Box = np.clip(lower - self.rho, *of.clip), np.clip(upper + self.rho, *of.clip)

    def least(self, a: Array, g: float) -> Array:
        """Returns lower bounds [r] of a · x over the region of the first sample for rows a [r, size]; `g` is γ_K in float64.

        Over the box: a·centre − |a|·radius. In other regions also, where that is larger: clip lies between two lines on each coordinate,
        so a·x >= a'·v + constant − ρ|a|, and a'·v >= a'·x0 − B|Σa'| − C|a'·(x0 − 1/2)| − ε‖a'‖ in the dual norm (Hölder; l∞ and l1 are
        dual, l2 is its own).
        """
        (epsilon, b, c), x, size, (lo, hi) = self.reach, self.x[0], np.abs(a), self.of.clip
        found = over_box(a, self.box, g)
        if self.is_box:
            return found
        before = self.before[0][0], self.before[1][0]
        lost = g * (size @ (np.abs(before).sum(axis=0) + abs(lo) + abs(hi) + 1)) * (1 + epsilon + b + c) + FLOOR
        if b or c:
            (low, low_constant), (high, high_constant) = (
                _line_below(*before, lo, hi),
                _line_below(-before[1], -before[0], -hi, -lo),
            )
            above, below = np.maximum(a, 0), np.minimum(a, 0)
            a, lost = above * low + below * high, lost + size.sum(axis=1) * self.rho - above @ low_constant + below @ high_constant
        norm = {"linf": np.abs(a).sum(axis=1), "l2": np.sqrt((a * a).sum(axis=1)), "l1": np.abs(a).max(axis=1)}[self.of.norm]
        moved = b * np.abs(a.sum(axis=1)) + c * np.abs(a @ (x - 0.5)) + epsilon * norm
        return np.asarray(np.maximum(found, a @ x - moved - lost))


def over_box(a: Array, box: Box, g: float) -> Array:
    """Returns lower bounds [r] of a · x over boxes [1 or r, size] for rows a [r, size]: a·centre − |a|·radius."""
    centre, radius = (box[0] + box[1]) * 0.5, (box[1] - box[0]) * 0.5 * (1 + 1e-12) + FLOOR
    return dot(a, centre) - dot(np.abs(a), radius + g * (np.abs(centre) + radius))


def _line_below(lower: Array, upper: Array, lo: float, hi: float) -> tuple[Array, Array]:
    """Returns (slope, constant) of a line below clip(v, lo, hi) on [lower, upper]; clip(v, lo, hi) = −clip(−v, −hi, −lo) gives one above.

    Where v > hi is possible the line ends at (upper, hi), elsewhere its slope is that of v or of lo, whichever is nearer. Any slope is
    sound: the constant is such that the line is below clip at its kinks and at both ends, and clip is linear between them.
    """
    start = np.maximum(lower, lo)
    chord = np.clip((hi - start) / np.maximum(upper - start, FLOOR), 0, 1)
    slope = np.where(upper > hi, chord, upper - lo > lo - lower)
    points = [lower, np.clip(lo, lower, upper), np.clip(hi, lower, upper), upper]
    gap = np.min([np.clip(point, lo, hi) - slope * point for point in points], axis=0)
    return slope, gap - 1e-15 * (np.abs(lower) + np.abs(upper) + abs(lo) + abs(hi))
