"""The normal form of a VNN-LIB property: boxes of inputs, and for each the outputs that would be unsafe, all in exact numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf, nextafter
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Constraint:
    """Σ coefficient · Y_j <= bound, over `coefficients` = ((j, coefficient), …) with j ascending and no coefficient zero."""

    coefficients: tuple[tuple[int, Fraction], ...]
    bound: Fraction

    def value(self, outputs: NDArray[np.floating[Any]]) -> float:
        """Returns Σ coefficient · Y_j in floating point, for comparing violations and for nothing that must be exact."""
        return sum(float(c) * float(outputs[j]) for j, c in self.coefficients)

    def holds(self, outputs: NDArray[np.floating[Any]]) -> bool:
        """Whether the outputs [outputs] satisfy it, in exact arithmetic; never where one that it reads is not finite."""
        if not all(np.isfinite(outputs[j]) for j, _ in self.coefficients):
            return False
        return sum((c * Fraction(float(outputs[j])) for j, c in self.coefficients), Fraction(0)) <= self.bound


@dataclass(frozen=True)
class InputBox:
    """A box of inputs with exact ends, each end included: lower[i] <= X_i <= upper[i]."""

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]

    def outward(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the smallest float64 box [inputs] that contains this one: what a proof is about."""
        lower = np.array([_rounded_down(value) for value in self.lower])
        upper = np.array([-_rounded_down(-value) for value in self.upper])
        return lower, upper

    def inward(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the largest float32 box [inputs] inside this one; where lower exceeds upper there is no float32 input."""
        # The largest float32 below a number is the largest float32 below the largest float64 below it.
        lower = -_float32_down(np.array([_rounded_down(-value) for value in self.lower]))
        upper = _float32_down(np.array([_rounded_down(value) for value in self.upper]))
        return lower, upper

    def device(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the smallest box [inputs] with float32 ends, as float64, that contains this one: a proof about a device is about it.

        It holds the box and whatever its decimals may be rounded to. Beyond float32's range an end is infinite.
        """
        lower = _float32_down(np.array([_rounded_down(value) for value in self.lower]))
        upper = -_float32_down(np.array([_rounded_down(-value) for value in self.upper]))
        return lower.astype(np.float64), upper.astype(np.float64)

    def executable(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Returns a box [inputs] of float32 numbers that a device can be given, and which inputs had to be rounded for it.

        It is `inward`, but for inputs between whose ends no float32 lies: there the ends are the float32 numbers nearest to those of the
        box, ties to even, as a decimal is read.
        """
        lower, upper = self.inward()
        rounded = lower > upper
        for i in np.flatnonzero(rounded).tolist():
            lower[i], upper[i] = _nearest_float32(self.lower[i]), _nearest_float32(self.upper[i])
        return lower, upper, rounded

    def nearest(self, point: NDArray[np.floating[Any]]) -> tuple[Fraction, ...]:
        """Returns the member of the box that is nearest to a finite point [inputs]."""
        return tuple(min(max(Fraction(float(x)), low), high) for x, low, high in zip(point, self.lower, self.upper, strict=True))

    def contains(self, point: NDArray[np.floating[Any]]) -> bool:
        """Whether a point [inputs] is a member, in exact arithmetic."""
        values = [float(value) for value in point]
        return all(
            np.isfinite(value) and low <= Fraction(value) <= high for value, low, high in zip(values, self.lower, self.upper, strict=True)
        )


Conjunction = tuple[Constraint, ...]


@dataclass(frozen=True)
class Case:
    """One box and its unsafe outputs: those that satisfy every constraint of one of the conjunctions (an empty one: any output)."""

    box: InputBox
    unsafe: tuple[Conjunction, ...]


@dataclass(frozen=True)
class Query:
    """A property in normal form: it is satisfied (`sat`) by an input of one of the cases whose outputs are unsafe in that case."""

    inputs: int
    outputs: int
    cases: tuple[Case, ...]


def rounded_up(value: Fraction) -> float:
    """Returns the smallest double that is at least the value, infinity where there is none."""
    return -_rounded_down(-value)


def satisfied(conjunction: Sequence[Constraint], outputs: NDArray[np.floating[Any]]) -> bool:
    """Whether finite outputs [outputs] satisfy every constraint, in exact arithmetic."""
    return bool(np.isfinite(outputs).all()) and all(constraint.holds(outputs) for constraint in conjunction)


def _rounded_down(value: Fraction) -> float:
    try:
        nearest = float(value)
    except OverflowError:
        return nextafter(inf, 0) if value > 0 else -inf
    if nearest == inf:
        return nextafter(inf, 0)
    return nextafter(nearest, -inf) if nearest > -inf and Fraction(nearest) > value else nearest


def _nearest_float32(value: Fraction) -> np.float32:
    """Returns the float32 nearest to a number, ties to even, rounded once; the largest one where the number is beyond float32's range."""
    with np.errstate(over="ignore"):
        below = _float32_down(np.array([_rounded_down(value)]))[0]
        above = -_float32_down(np.array([_rounded_down(-value)]))[0]
    if not np.isfinite(below) or not np.isfinite(above):
        return np.float32(above if np.isfinite(above) else below)
    down, up = value - Fraction(float(below)), Fraction(float(above)) - value
    if down == up:
        return np.float32(below if int(below.view(np.uint32)) % 2 == 0 else above)
    return np.float32(below if down < up else above)


def _float32_down(values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
        below = np.nextafter(nearest, np.float32(-np.inf))
    return np.where(nearest.astype(np.float64) > values, below, nearest).astype(np.float32)
