"""Sigmoid and Tanh: S-shaped, convex below zero and concave above it.

Relaxations are those of tanh; sigmoid(x) = (1 + tanh(x/2)) / 2 in exact arithmetic. A slope is chosen first, as CROWN does (Zhang et al.,
arXiv 1811.00866, section 3.3: chord or tangent), by a computation that need not be exact. The intercept then makes the line true for that
very slope: with 0 <= a <= 1, g(x) = tanh(x) − a·x falls, rises and falls again, its stationary points being ±x* with tanh'(x*) = a. On
[lower, upper] it is therefore at most the largest of g(lower), g(upper) and, where x* is inside, g(x*) = h(a), which has a closed
form and bounds g on all of x >= 0 besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.curves import RelaxedCurve
from vsparse.bounds.error_model import ErrorModel
from vsparse.bounds.float64 import magnitude
from vsparse.bounds.relaxation import LinearRelaxation
from vsparse.bounds.rules import register
from vsparse.contract import FUNCTION_ERROR
from vsparse.errors import InputError
from vsparse.graph.ir import Node, Sigmoid, Tanh

N = TypeVar("N", bound=Node)
# More than float64's sigmoid and tanh err by (a few units in the last place of numbers up to 1), with what else a node's bounds compute.
FUNCTION_ERROR_64 = 2.0**-44
# tanh is 1 in float64 beyond this; tangent points are looked for below it.
SATURATED = 20.0
STEPS = 24
# Zero is where the two sides of a sigmoid meet; further than this fraction of the width from the nearer end it is the better cut.
CENTRAL = 0.2


class _Sigmoidal(RelaxedCurve[N]):
    """What Tanh and Sigmoid have in common."""

    def unstable(self, node: N, lower: Tensor, upper: Tensor) -> Tensor:
        return upper > lower

    def cut_points(self, node: N, lower: Tensor, upper: Tensor) -> Tensor:
        central = torch.minimum(-lower, upper) > CENTRAL * (upper - lower)
        return torch.where(central, 0.0, lower * 0.5 + upper * 0.5)

    def check(self, node: N, model: ErrorModel) -> None:
        storage = model.contract.storage
        if storage not in FUNCTION_ERROR:
            raise InputError(
                f'node "{node.name}" is a {type(node).__name__}, whose error is not known in {storage}; choose another contract'
            )

    def error(self, node: N, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        """What the contract assumes of the function (IEEE 754 fixes none), with float64's own; infinite where the input may overflow."""
        size = magnitude(boxes[node.inputs[0]])
        return torch.full_like(size, FUNCTION_ERROR[model.contract.storage] + FUNCTION_ERROR_64), size + 1


@register(Tanh)
class TanhBounds(_Sigmoidal[Tanh]):
    """Hyperbolic tangent."""

    def relaxation(self, node: Tanh, lower: Tensor, upper: Tensor, outward: bool) -> LinearRelaxation:
        return tanh_relaxation(lower, upper, outward)

    def intercepts(self, node: Tanh, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor, outward: bool) -> tuple[Tensor, Tensor]:
        return -tanh_intercept(-upper, -lower, below, outward), tanh_intercept(lower, upper, above, outward)


@register(Sigmoid)
class SigmoidBounds(_Sigmoidal[Sigmoid]):
    """1 / (1 + e^−x)."""

    steepest = 0.25

    def relaxation(self, node: Sigmoid, lower: Tensor, upper: Tensor, outward: bool) -> LinearRelaxation:
        return sigmoid_relaxation(lower, upper, outward)

    def intercepts(self, node: Sigmoid, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor, outward: bool) -> tuple[Tensor, Tensor]:
        """sigmoid(x) = (1 + tanh(x/2)) / 2, so a slope m of sigmoid is one of 4m of tanh."""
        low, high = lower * 0.5, upper * 0.5
        under, over = -tanh_intercept(-high, -low, 4 * below, outward), tanh_intercept(low, high, 4 * above, outward)
        pad = 2.0**-51 * (under.abs() + over.abs() + 2) if outward else 0.0
        under, over = (1 + under) * 0.5 - pad, (1 + over) * 0.5 + pad
        return under, over


def tanh_relaxation(lower: Tensor, upper: Tensor, outward: bool) -> LinearRelaxation:
    """Returns a relaxation of tanh on [lower, upper]; the constants −1 and 1 where an end is not finite.

    The lower line comes from the upper one of the mirrored interval, tanh being odd.
    """
    finite = torch.isfinite(lower) & torch.isfinite(upper)
    low, high = torch.where(finite, lower, 0.0), torch.where(finite, upper, 0.0)
    above, over = _upper_line(low, high, outward)
    below, under = _upper_line(-high, -low, outward)
    zero, one = torch.zeros_like(low), torch.ones_like(low)
    return LinearRelaxation(
        torch.where(finite, below, zero),
        torch.where(finite, -under, -one),
        torch.where(finite, above, zero),
        torch.where(finite, over, one),
    )


def sigmoid_relaxation(lower: Tensor, upper: Tensor, outward: bool) -> LinearRelaxation:
    """Returns a relaxation of sigmoid on [lower, upper], by its identity with tanh; halving and quartering are exact."""
    one = tanh_relaxation(lower * 0.5, upper * 0.5, outward)
    pad = 2.0**-51 * (one.lower_intercept.abs() + one.upper_intercept.abs() + 2) if outward else 0.0
    return LinearRelaxation(
        one.lower_slope * 0.25, (1 + one.lower_intercept) * 0.5 - pad, one.upper_slope * 0.25, (1 + one.upper_intercept) * 0.5 + pad
    )


def _upper_line(lower: Tensor, upper: Tensor, outward: bool) -> tuple[Tensor, Tensor]:
    """Returns (slope, intercept) of a line above tanh on [lower, upper], finite; both differentiable.

    The slope is that of the concave envelope at the middle, which makes the area under the line smallest.
    """
    width, middle = upper - lower, lower * 0.5 + upper * 0.5
    at_lower, at_upper = torch.tanh(lower), torch.tanh(upper)
    with torch.no_grad():
        tangent = _tangent_point(lower, upper)
    wide = width > 1e-6
    chord = (at_upper - at_lower) / torch.where(wide, width, torch.ones_like(width))
    point = torch.maximum(middle, tangent.clamp(max=SATURATED))
    slope = torch.where((tangent < upper) | ~wide, 1 - torch.tanh(torch.where(wide, point, middle)) ** 2, chord).clamp(0, 1)
    return slope, tanh_intercept(lower, upper, slope, outward)


def tanh_intercept(lower: Tensor, upper: Tensor, slope: Tensor, outward: bool) -> Tensor:
    """Returns the least (with `outward`, no less) t with tanh(x) <= slope · x + t on [lower, upper], for any slope from 0 to 1.

    For a slope a above 1 it is true too, if not the least: g falls everywhere, so its largest value is g(lower), one of the ends.
    """
    at_lower, at_upper = torch.tanh(lower), torch.tanh(upper)
    # Where the comparison with x* is close, h(a) is included: it bounds g whether x* is inside or not.
    doubt = FUNCTION_ERROR_64 if outward else 0.0
    inside = (upper > 0) & (1 - at_upper**2 <= slope + doubt) & ((lower <= 0) | (1 - at_lower**2 >= slope - doubt))
    ends = torch.maximum(at_lower - slope * lower, at_upper - slope * upper)
    intercept = torch.where(inside, torch.maximum(ends, _conjugate(slope)), ends)
    if outward:
        intercept = intercept + FUNCTION_ERROR_64 * (1 + slope * torch.maximum(lower.abs(), upper.abs()))
    return intercept


def _conjugate(slope: Tensor) -> Tensor:
    """Returns h(a), the largest value of tanh(x) − a·x over x >= 0, for slopes a in [0, 1].

    At its maximum tanh(x) = t = √(1 − a), so h(a) = t − a·artanh(t), with artanh(t) = log((1 + t)/√a) and no cancellation. t is kept away
    from zero for its derivative's sake: as written, h does not decrease with t, so a larger t is on the safe side. In float64 each term is
    at most 1 with an error below 16 units of it: h is right up to 2^-48, far less than the intercept is moved by.
    """
    t = torch.sqrt((1 - slope).clamp(min=1e-12))
    kept = slope.clamp(min=1e-30)
    return t - slope * torch.log((1 + t) / torch.sqrt(kept))


def _tangent_point(lower: Tensor, upper: Tensor) -> Tensor:
    """Returns where the line through (lower, tanh(lower)) touches tanh above zero, by bisection; `lower` itself where it is not below zero.

    f'(d)·(d − lower) − (f(d) − f(lower)) falls with d, and is not positive at −lower.
    """
    start = torch.tanh(lower)
    left = torch.zeros_like(lower)
    right = (-lower).clamp(0, SATURATED)
    for _ in range(STEPS):
        d = (left + right) * 0.5
        value = torch.tanh(d)
        further = (1 - value**2) * (d - lower) > value - start
        left, right = torch.where(further, d, left), torch.where(further, right, d)
    return torch.where(lower < 0, right, lower)
