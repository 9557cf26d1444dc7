"""Two lines around a function of each element, and what a row becomes between them."""

from __future__ import annotations

from typing import NamedTuple

from vsparse_check.arrays import FloatArray, dot, negative, positive
from vsparse_check.rules import LinearBound


class ElementwiseRelaxation(NamedTuple):
    """lower_slope·x + lower_intercept <= f(x) <= upper_slope·x + upper_intercept, elementwise.

    Slopes are any numbers in [0, 1]; the intercepts make the lines true for these very slopes.
    """

    lower_slope: FloatArray
    lower_intercept: FloatArray
    upper_slope: FloatArray
    upper_intercept: FloatArray


def relaxed(a: FloatArray, relaxation: ElementwiseRelaxation) -> LinearBound:
    """Returns a·f(x) >= a⁺·(lower line) + a⁻·(upper line), a⁺ = max(a, 0), a⁻ = min(a, 0).

    Zhang et al., arXiv 1811.00866, theorem 3.2; docs/numerics.md, sections 4.2 and 5.2.
    """
    above, below = positive(a), negative(a)
    row = above * relaxation.lower_slope + below * relaxation.upper_slope
    constants = [dot(above, relaxation.lower_intercept), dot(below, relaxation.upper_intercept)]
    return LinearBound([row], constants)
