"""The arrays that everything is computed with, and elementwise intervals of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Dims = tuple[int, ...]  # the shape of an activation, without the batch

# Far above the error of underflow in float64 anywhere, as nothing beyond 2^100 is computed with.
FLOOR = 1e-100


class Interval(NamedTuple):
    """lower <= z <= upper for each element z of an activation; arrays [n, size], or [1, size]."""

    lower: FloatArray
    upper: FloatArray


def largest(box: Interval) -> FloatArray:
    """Returns m, the largest magnitude in each interval."""
    return np.asarray(np.maximum(np.abs(box.lower), np.abs(box.upper)))


def dot(a: FloatArray, b: FloatArray) -> FloatArray:
    """Returns the products [r] of rows a [r, size] with b, [1, size] or one row [r, size] each."""
    return np.asarray(a @ b[0] if len(b) == 1 else np.einsum("ps,ps->p", a, b))


def positive(a: FloatArray) -> FloatArray:
    """Returns max(a, 0): the coefficients that take the lower of two lines."""
    return np.asarray(np.maximum(a, 0))


def negative(a: FloatArray) -> FloatArray:
    """Returns min(a, 0): the coefficients that take the upper of two lines."""
    return np.asarray(np.minimum(a, 0))
