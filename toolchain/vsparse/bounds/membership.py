"""Membership in a region, decided in rational arithmetic (docs/properties.md)."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds.ball import inside
from vsparse.perturbation import PerturbationSet

# (b, c): a change of brightness and of contrast.
PhotometricChange = tuple[float, float]
# Ternary search keeps 2/3 of an interval a step: 3e-11 of it is left.
SEARCH_STEPS = 60
HALF = Fraction(1, 2)


def member(x: Tensor, x0: Tensor, perturbation: PerturbationSet, hint: PhotometricChange | None = None) -> bool:
    """Returns True only where x is exactly a member of the region around x0; x and x0 have one shape and any floating dtype.

    For balls this is a decision: False means that x is not a member. With brightness or contrast a pair (b, c) has to be found:
    `hint` is tried first, then the pair of least ‖δ‖ as a search in float64 finds it; False means that neither proves membership.
    """
    if x.shape != x0.shape:
        return False
    if perturbation.is_box:
        return inside(x, x0, perturbation.epsilon, perturbation.clip, perturbation.radii())
    a, b = (value.detach().to(torch.float64).flatten() for value in (x, x0))
    lo, hi = perturbation.clip
    if not bool((torch.isfinite(a) & torch.isfinite(b) & (a >= lo) & (a <= hi)).all()):
        return False
    point, centre = a.cpu().numpy(), b.cpu().numpy()
    if not perturbation.photometric:
        changed = point != centre
        pairs = zip(point[changed].tolist(), centre[changed].tolist(), strict=True)
        return _within([abs(Fraction(p) - Fraction(q)) for p, q in pairs], perturbation)
    if hint is not None and _proves(point, centre, perturbation, hint):
        return True
    return _proves(point, centre, perturbation, _search(point, centre, perturbation))


def _within(distances: list[Fraction], perturbation: PerturbationSet) -> bool:
    """Returns whether the vector with these absolute values is at most ε long."""
    if perturbation.norm == "linf":
        return all(one <= perturbation.epsilon for one in distances)
    if perturbation.norm == "l1":
        return sum(distances, Fraction(0)) <= perturbation.epsilon
    return sum((one * one for one in distances), Fraction(0)) <= perturbation.epsilon**2


def _proves(point: NDArray[np.float64], centre: NDArray[np.float64], perturbation: PerturbationSet, pair: PhotometricChange) -> bool:
    """Returns whether x is a member by this pair (b, c): |x − clip(v)| <= ρ where δ, in each coordinate, is the least that reaches it."""
    if not all(np.isfinite(pair)):
        return False
    limits = perturbation.brightness, perturbation.contrast
    b, c = (max(-most, min(most, Fraction(value))) for value, most in zip(pair, limits, strict=True))
    lo, hi, rho = Fraction(perturbation.clip[0]), Fraction(perturbation.clip[1]), Fraction(perturbation.rounding)
    distances = []
    for p, q in zip(point.tolist(), centre.tolist(), strict=True):
        x, x0 = Fraction(p), Fraction(q)
        w = x0 + b + c * (x0 - HALF)
        # clip(v) lies in [x − ρ, x + ρ] for v there, and also for all v further out where that interval reaches the data range's end.
        if x - rho > lo and w < x - rho:
            distances.append(x - rho - w)
        elif x + rho < hi and w > x + rho:
            distances.append(w - x - rho)
    return _within(distances, perturbation)


def _search(point: NDArray[np.float64], centre: NDArray[np.float64], perturbation: PerturbationSet) -> PhotometricChange:
    """Returns approximately the pair (b, c) that minimises ‖δ‖: nested ternary search of a convex function of two variables."""
    lo, hi, rho = *perturbation.clip, perturbation.rounding
    least = np.where(point - rho > lo, point - rho, -np.inf)
    most = np.where(point + rho < hi, point + rho, np.inf)
    tilt = centre - 0.5
    b_most, c_most = float(perturbation.brightness), float(perturbation.contrast)

    def length(b: float, c: float) -> float:
        w = centre + b + c * tilt
        left = np.maximum(np.maximum(least - w, w - most), 0.0)
        if perturbation.norm == "linf":
            return float(left.max(initial=0.0))
        return float(left.sum() if perturbation.norm == "l1" else left @ left)

    def best_b(c: float) -> PhotometricChange:
        b = _least(lambda value: length(value, c), b_most)
        return length(b, c), b

    c = _least(lambda value: best_b(value)[0], c_most)
    return best_b(c)[1], c


def _least(function: Callable[[float], float], most: float) -> float:
    """Returns approximately the minimiser of a convex function on [−most, most]; the middle of an interval of them."""
    low, high = -most, most
    for _ in range(SEARCH_STEPS if most else 0):
        third = (high - low) / 3
        left, right = function(low + third), function(high - third)
        # At equal values both outer thirds are dropped: a pair at the boundary of the feasible ones may fail in rational arithmetic.
        low, high = low if left < right else low + third, high if left > right else high - third
    return (low + high) / 2
