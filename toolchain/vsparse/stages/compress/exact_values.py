"""Exact rational values as integers with one common scale, and what is computed with them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntegerArray = NDArray[Any]  # object array of Python integers


@dataclass(frozen=True)
class ExactValues:
    """The value `integers · scale`, exactly; the scale is positive, so that integers are ordered as the values are."""

    integers: IntegerArray
    scale: Fraction

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"the scale {self.scale} is not positive")

    def reshape(self, shape: tuple[int, ...]) -> ExactValues:
        """Returns the same values in another shape."""
        return ExactValues(self.integers.reshape(shape), self.scale)

    def fractions(self) -> list[Fraction]:
        """Returns the values as a flat list."""
        return [value * self.scale for value in self.integers.reshape(-1).tolist()]

    def __add__(self, other: ExactValues) -> ExactValues:
        left, right, scale = aligned(self, other)
        return ExactValues(left + right, scale)

    def __neg__(self) -> ExactValues:
        return ExactValues(-self.integers, self.scale)

    def __mul__(self, other: ExactValues) -> ExactValues:
        return ExactValues(self.integers * other.integers, self.scale * other.scale)


def from_floats(values: NDArray[np.floating[Any]]) -> ExactValues:
    """Returns finite binary floating-point values as they are."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    integers = (mantissa * 2.0**53).astype(np.int64)
    exponent = exponent.astype(np.int64) - 53
    lowest = int(exponent[integers != 0].min(initial=0))
    shifts = np.where(integers == 0, 0, exponent - lowest)
    return ExactValues(integers.astype(object) << shifts.astype(object), Fraction(2) ** lowest)


def from_fractions(values: list[Fraction]) -> ExactValues:
    """Returns rationals over their least common denominator."""
    denominator = lcm(*(value.denominator for value in values)) if values else 1
    integers = np.array([value.numerator * (denominator // value.denominator) for value in values], dtype=object)
    return ExactValues(integers, Fraction(1, denominator))


def aligned(a: ExactValues, b: ExactValues) -> tuple[IntegerArray, IntegerArray, Fraction]:
    """Returns both values over their greatest common scale."""
    left, right = a.scale.numerator * b.scale.denominator, b.scale.numerator * a.scale.denominator
    common = gcd(left, right)
    return a.integers * (left // common), b.integers * (right // common), Fraction(common, a.scale.denominator * b.scale.denominator)


def padded(x: IntegerArray, pads: tuple[int, int, int, int], value: int = 0) -> IntegerArray:
    """Returns a map [channels, height, width] with `value` put around it."""
    top, left, bottom, right = pads
    channels, height, width = x.shape
    result = np.full((channels, height + top + bottom, width + left + right), value, dtype=object)
    result[:, top : top + height, left : left + width] = x
    return result


def window(x: IntegerArray, row: int, column: int, stride: tuple[int, int], size: tuple[int, ...]) -> IntegerArray:
    """Returns the positions that tap (row, column) meets, as [..., size]."""
    return x[..., row : row + stride[0] * (size[0] - 1) + 1 : stride[0], column : column + stride[1] * (size[1] - 1) + 1 : stride[1]]
