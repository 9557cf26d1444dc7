"""The region of a claim: every point clip(x0 + b + c·(x0 − 1/2) + δ) around a sample x0.

|b| <= B (brightness), |c| <= C (contrast) and ‖δ‖ <= ε (docs/properties.md). Where B or C is not
zero each coordinate may then move by ρ, 2^-24 times the largest magnitude of the data range,
within it: one rounding to float32. With B = C = 0 the region is the ball within the data range:
clipping is a projection, and moves nothing away from x0 (docs/numerics.md, section 1.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from vsparse_check.arrays import FLOOR, FloatArray, Interval, dot, negative, positive
from vsparse_check.refusal import need


class ClaimedRegion(NamedTuple):
    """What a certificate says of all its regions, with exact sizes."""

    norm: str  # linf, l2 or l1
    epsilon: Fraction
    brightness: Fraction
    contrast: Fraction
    clip: tuple[float, float]  # the data range
    # Of an l∞ ball whose coordinates have radii of their own: the factor of ε of each.
    scales: tuple[Fraction, ...] = ()
    delta: Fraction | None = None  # of regression: the most that the answer may change

    @property
    def is_ball(self) -> bool:
        """Returns whether there is neither brightness nor contrast."""
        return not (self.brightness or self.contrast)

    def radii(self, size: int) -> tuple[Fraction, ...]:
        """Returns the exact radius of each coordinate of an l∞ ball."""
        return tuple(self.epsilon * scale for scale in self.scales) or (self.epsilon,) * size


def point_in(clip: Sequence[float]) -> ClaimedRegion:
    """Returns the region of a point alone, within a data range: ε = B = C = 0."""
    low, high = clip
    return ClaimedRegion("linf", Fraction(0), Fraction(0), Fraction(0), (float(low), float(high)))


class ClipLine(NamedTuple):
    """slope·v + constant, a line below clip(v, low, high) on an interval, elementwise."""

    slope: FloatArray
    constant: FloatArray


class SampleRegions:
    """The regions of samples x [n, size] in float64, everything rounded outward.

    `before`: a box of what is clipped. `box`: a box of what the network reads, both [n, size].
    `is_box`: whether the region is that box, so that a bound over it is exact.
    """

    def __init__(self, claimed: ClaimedRegion, x: FloatArray) -> None:
        """Takes samples [n, size]; `before` and `box` hold every point of their regions."""
        self.claimed, self.x = claimed, x
        self.is_box = claimed.norm == "linf" and claimed.is_ball
        self.epsilon = above(claimed.epsilon)
        self.brightness = above(claimed.brightness)
        self.contrast = above(claimed.contrast)
        self.rho = 0.0
        if not claimed.is_ball:
            self.rho = 2.0**-24 * max(np.abs(claimed.clip)) * (1 + 1e-9)
        reach = self._reach(x)
        self.before = Interval(np.nextafter(x - reach, -np.inf), np.nextafter(x + reach, np.inf))
        if claimed.scales:  # what nothing may change is a point, and not one rounding wide
            fixed = np.asarray(reach) == 0
            self.before = Interval(
                np.where(fixed, x, self.before.lower), np.where(fixed, x, self.before.upper)
            )
        self.box = self._clipped_and_rounded(self.before)

    def _reach(self, x: FloatArray) -> FloatArray | float:
        """Returns how far a coordinate may move before it is clipped: ε + B + C·|x0 − 1/2|."""
        if self.claimed.scales:
            size = x.shape[-1]
            need(
                len(self.claimed.scales) == size,
                f"the property states {len(self.claimed.scales)} radii, of inputs of {size} values",
            )
            return np.array([above(radius) for radius in self.claimed.radii(size)])
        if self.is_box:
            return self.epsilon
        moved = self.epsilon + self.brightness + self.contrast * np.abs(x - 0.5)
        return np.asarray(moved * (1 + 1e-15))

    def _clipped_and_rounded(self, before: Interval) -> Interval:
        """Returns the box after clipping, a move by ρ, and clipping again."""
        clip = self.claimed.clip
        lower, upper = np.clip(before.lower, *clip), np.clip(before.upper, *clip)
        return Interval(np.clip(lower - self.rho, *clip), np.clip(upper + self.rho, *clip))

    def least(self, a: FloatArray, g: float) -> FloatArray:
        """Returns lower bounds [r] of a·x over the region of the first sample, for rows a.

        Over the box, and in regions that are no box the larger of that and of a bound in the dual
        norm. `g` is γ_K of float64.
        """
        over = over_box(a, self.box, g)
        return over if self.is_box else np.asarray(np.maximum(over, self._least_in_norm(a, g)))

    def _least_in_norm(self, a: FloatArray, g: float) -> FloatArray:
        """Returns lower bounds [r] of a·x by Hölder's inequality, for rows a [r, size].

        A ball: a·x >= a·x0 − ε‖a‖*, ‖·‖* the dual norm. Otherwise clip lies between two lines in
        each coordinate, so that a·x >= a'·v + constant − ρ|a| with v = x0 + b + c(x0 − 1/2) + δ,
        and a'·v >= a'·x0 − B|Σa'| − C|a'·(x0 − 1/2)| − ε‖a'‖*.
        """
        x, size = self.x[0], np.abs(a)
        lost = self._rounding(size, g)
        if not self.claimed.is_ball:
            lost = lost + size.sum(axis=1) * self.rho
            a, constants = self._through_clip(a)
            for constant in constants:
                lost = lost - constant
        moved = (
            self.brightness * np.abs(a.sum(axis=1))
            + self.contrast * np.abs(a @ (x - 0.5))
            + self.epsilon * dual_norm(a, self.claimed.norm)
        )
        return np.asarray(a @ x - moved - lost)

    def _rounding(self, size: FloatArray, g: float) -> FloatArray:
        """Returns the float64 error of the sums above, for rows of the magnitudes `size`."""
        low, high = self.claimed.clip
        reach = np.abs(self.before.lower[0]) + np.abs(self.before.upper[0])
        moved = 1 + self.epsilon + self.brightness + self.contrast
        return np.asarray(g * (size @ (reach + abs(low) + abs(high) + 1)) * moved + FLOOR)

    def _through_clip(self, a: FloatArray) -> tuple[FloatArray, list[FloatArray]]:
        """Returns rows a' and constants with a·clip(v) >= a'·v + Σ constants, of one sample."""
        low, high = self.claimed.clip
        lower, upper = self.before.lower[0], self.before.upper[0]
        under = line_below_clip(lower, upper, low, high)
        # clip(v, low, high) = −clip(−v, −high, −low), so a line below that gives one above.
        over = line_below_clip(-upper, -lower, -high, -low)
        a_above, a_below = positive(a), negative(a)
        # A line above clip is −(slope·(−v) + constant) = slope·v − constant.
        constants = [a_above @ under.constant, -(a_below @ over.constant)]
        return a_above * under.slope + a_below * over.slope, constants


def above(exact: Fraction) -> float:
    """Returns a float64 number that is at least an exact one, and 0 for 0.

    float() rounds to nearest, so that the next number is above.
    """
    return float(np.nextafter(float(exact), np.inf)) if exact else 0.0


def dual_norm(a: FloatArray, norm: str) -> FloatArray:
    """Returns the dual norms [r] of rows: l∞ and l1 are dual to each other, l2 to itself."""
    if norm == "linf":
        return np.asarray(np.abs(a).sum(axis=1))
    if norm == "l2":
        return np.asarray(np.sqrt((a * a).sum(axis=1)))
    return np.asarray(np.abs(a).max(axis=1))


def over_box(a: FloatArray, box: Interval, g: float) -> FloatArray:
    """Returns lower bounds [r] of a·x over boxes [1 or r, size]: a·centre − |a|·radius.

    The centre's own rounding is in the radius, and that of the sums is γ_K of their terms.
    """
    centre = (box.lower + box.upper) * 0.5
    radius = (box.upper - box.lower) * 0.5 * (1 + 1e-12) + FLOOR
    return dot(a, centre) - dot(np.abs(a), radius + g * (np.abs(centre) + radius))


def line_below_clip(lower: FloatArray, upper: FloatArray, low: float, high: float) -> ClipLine:
    """Returns a line below clip(v, low, high) for v in [lower, upper].

    Where v > high is possible the line ends at (upper, high), elsewhere its slope is that of v or
    of low, whichever is nearer. Any slope is sound: the constant is such that the line is below
    clip at its kinks and at both ends, and clip is linear between these.
    """
    start = np.maximum(lower, low)
    chord = np.clip((high - start) / np.maximum(upper - start, FLOOR), 0, 1)
    slope = np.where(upper > high, chord, upper - low > low - lower)
    points = [lower, np.clip(low, lower, upper), np.clip(high, lower, upper), upper]
    gap = np.min([np.clip(point, low, high) - slope * point for point in points], axis=0)
    slack = 1e-15 * (np.abs(lower) + np.abs(upper) + abs(low) + abs(high))
    return ClipLine(slope, gap - slack)
