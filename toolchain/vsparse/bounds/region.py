"""Regions other than l∞ balls: l2 and l1 balls, and changes of brightness and contrast (docs/properties.md).

A region is the set of v = x0 + b + c·(x0 − 1/2) + δ with |b| <= B, |c| <= C, ‖δ‖ <= ε, clipped to the data range. Where B or C is not zero,
each coordinate may then move by ρ = 2^-24·max(|lo|, |hi|) within the data range: one rounding to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vsparse.bounds.ball import Box, ball, checked_centre, radius_up
from vsparse.bounds.float64 import TINY, UNIT64, unit64
from vsparse.compute_device import reading_back
from vsparse.perturbation import Norm, PerturbationSet


@dataclass(frozen=True)
class Region:
    """Regions of a batch, in the form that bounds use; all tensors have one dtype, float64 where they decide a verdict.

    `lower`, `upper` [batch, *shape] enclose every member. `centre` is x0 [batch, size]; `relaxation` is (lower slope, lower intercept,
    upper slope, upper intercept) of the clip, [batch, size] each, None where the region is a ball. `radius`, `brightness` and
    `contrast` are ε, B and C rounded up, `rounding` is ρ.
    """

    norm: Norm
    lower: Tensor
    upper: Tensor
    centre: Tensor
    relaxation: tuple[Tensor, Tensor, Tensor, Tensor] | None
    radius: float
    brightness: float
    contrast: float
    rounding: float

    @property
    def box(self) -> Box:
        """The enclosing box."""
        return self.lower, self.upper

    def to(self, to: torch.dtype | torch.device) -> Region:
        """Returns the region on another device, or in another dtype, for search: only float64 encloses with certainty."""
        with reading_back("regions that are moved to the processor"):
            return self._each(lambda value: value.to(to))

    def samples(self, index: slice | Tensor) -> Region:
        """Returns the regions of some of the samples."""
        return self._each(lambda value: value[index])

    def copy(self) -> Region:
        """Returns the regions in memory of their own."""
        return self._each(lambda value: value.clone(memory_format=torch.contiguous_format))

    def lowest(self, a: Tensor, outward: bool = True) -> Tensor:
        """Returns lower bounds [batch, rows] of a · x over the region, for a [batch, rows, size] of the region's dtype.

        The larger of two bounds. Over the box: a·centre − |a|·half width. Over the ball, or where v is clipped: with its linear relaxation
        s·v + t <= clip(v) <= S·v + T, a' = a·s where a >= 0 and a·S elsewhere, and Hölder's inequality,

            a·x >= Σ a·(t or T) + a'·x0 − B|Σa'| − C|a'·(x0 − 1/2)| − ε‖a'‖_dual − ρ‖a‖₁.

        With `outward` it holds in real arithmetic, for the float64 numbers `a`. Each of the sums has at most n = size terms, a product
        rounds a' once and x0 − 1/2 is rounded once, so each sum differs from the exact one by at most γ_{n+8} times the sum of the
        absolute values of its terms, in any order (Higham 2002, section 3.1), and so does ‖a'‖ from its own value (for l2: γ_{n+4} under
        the root). γ_{n+64}, times all absolute values together, covers these, the sums of the parts and the error of the absolute values.
        Without `outward`: plain arithmetic, differentiable.
        """
        return torch.fmax(self._over_box(a, outward), self._over_latent(a, outward))

    def _over_box(self, a: Tensor, outward: bool) -> Tensor:
        lower, upper = self.lower.flatten(1), self.upper.flatten(1)
        centre = (lower + upper) * 0.5
        # The larger half as computed; both ends lie within this of the centre as computed, up to one rounding of the difference.
        half = torch.maximum(upper - centre, centre - lower)
        size = a.abs()
        if not outward:
            return _dot(a, centre) - _dot(size, half)
        half = half * (1 + 4 * UNIT64) + TINY
        return self._lowered(_dot(a, centre) - _dot(size, half), _dot(size, centre.abs() + half), a.shape[2])

    def _over_latent(self, a: Tensor, outward: bool) -> Tensor:
        x0, size = self.centre, a.abs()
        passed, value = a, torch.zeros_like(a[:, :, 0])
        absolute = _dot(size, x0.abs())
        if self.relaxation is not None:
            slope, intercept, upper_slope, upper_intercept = self.relaxation
            positive, negative = a.clamp(min=0), a.clamp(max=0)
            passed = positive * slope.unsqueeze(1) + negative * upper_slope.unsqueeze(1)
            tilt = x0 - 0.5
            value = _dot(positive, intercept) + _dot(negative, upper_intercept)
            value = value - self.brightness * passed.sum(2).abs() - self.contrast * _dot(passed, tilt).abs()
            value = value - self.rounding * size.sum(2)
            # Slopes are at most 1, so |a'| <= |a|.
            offsets = torch.maximum(intercept.abs(), upper_intercept.abs()) + self.brightness + self.contrast * tilt.abs() + self.rounding
            absolute = absolute + _dot(size, offsets)
        reach = self.radius * self._dual(passed)
        value = value + _dot(passed, x0) - reach
        return self._lowered(value, absolute + reach, a.shape[2]) if outward else value

    def _dual(self, a: Tensor) -> Tensor:
        """Returns the dual norm of each row."""
        if self.norm == "linf":
            return a.abs().sum(2)
        if self.norm == "l1":
            return a.abs().amax(2) if a.shape[2] else a.sum(2)
        # Underflow takes from the sum of squares less than its least normal number, and so its root less than that one's. The clamp
        # keeps the gradient finite at zero.
        tiny = torch.finfo(a.dtype).tiny
        length: Tensor = (a * a).sum(2).clamp(min=tiny).sqrt() + tiny**0.5
        return length

    def _lowered(self, value: Tensor, absolute: Tensor, terms: int) -> Tensor:
        count = (terms + 64) * unit64(value.device)
        return value - (count / (1 - count)) * (1 + 2.0**-20) * absolute - TINY

    def _each(self, part: Callable[[Tensor], Tensor]) -> Region:
        relaxation = None
        if self.relaxation is not None:
            s, t, upper_s, upper_t = self.relaxation
            relaxation = part(s), part(t), part(upper_s), part(upper_t)
        return replace(self, lower=part(self.lower), upper=part(self.upper), centre=part(self.centre), relaxation=relaxation)


def box_of(region: Box | Region) -> Box:
    """Returns the box of a region that may be a box itself."""
    return region.box if isinstance(region, Region) else region


def placed(region: Box | Region, device: torch.device) -> Box | Region:
    """Returns the regions on a device."""
    return region.to(device) if isinstance(region, Region) else (region[0].to(device), region[1].to(device))


def centre_of(box: Box | Region) -> Tensor:
    """Returns a point of the region for each sample, float64 [batch, *shape]: the middle of a box, else the sample itself."""
    if isinstance(box, Region):
        return box.centre.view_as(box.lower)
    return torch.minimum(torch.maximum(box[0] + (box[1] - box[0]) * 0.5, box[0]), box[1])


def samples_of(region: Box | Region, index: slice | Tensor) -> Box | Region:
    """Returns the regions of some of the samples."""
    return region.samples(index) if isinstance(region, Region) else (region[0][index], region[1][index])


def region(x: Tensor, perturbation: PerturbationSet) -> Box | Region:
    """Returns a float64 enclosure of the perturbation sets around x [batch, *shape]: the box of a plain l∞ ball, a Region for the others.

    x as for `ball`, with the same errors.
    """
    epsilon, clip = perturbation.epsilon, perturbation.clip
    if perturbation.is_box:
        return ball(x, epsilon, clip, perturbation.radii())
    wide = checked_centre(x, epsilon, clip)
    if not perturbation.photometric:
        lower, upper = ball(x, epsilon, clip)
        return Region(perturbation.norm, lower, upper, wide.flatten(1), None, radius_up(epsilon), 0.0, 0.0, 0.0)
    radius, b, c = (radius_up(value) for value in (epsilon, perturbation.brightness, perturbation.contrast))
    # Four roundings, each at most one unit of the result, all terms being non-negative.
    reach = (b + c * (wide - 0.5).abs() + radius) * (1 + 8 * UNIT64) + TINY
    before = _down(wide - reach), _up(wide + reach)
    rho = perturbation.rounding
    after = tuple(end.clamp(*clip) for end in before)
    lower, upper = (_down(after[0] - rho).clamp(*clip), _up(after[1] + rho).clamp(*clip))
    relaxation = clip_relaxation(before[0].flatten(1), before[1].flatten(1), clip)
    return Region(perturbation.norm, lower, upper, wide.flatten(1), relaxation, radius, b, c, rho)


def clip_relaxation(lower: Tensor, upper: Tensor, clip: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (s, t, S, T) with s·v + t <= clip(v) <= S·v + T for v in [lower, upper], float64, s and S in [0, 1]; as computed.

    The slopes are those of the convex and the concave envelope, or of one of its two sides (docs/properties.md). clip(v) − s·v is linear
    between lower, the two ends of the data range and upper, so that its extremes are among these four; each is computed with two
    roundings, and the intercept is moved outward by more.
    """
    lo, hi = clip
    p, q = lower.clamp(min=lo), upper.clamp(max=hi)
    under, over = lower < lo, upper > hi
    one, zero = torch.ones_like(lower), torch.zeros_like(lower)
    below = torch.where(under, torch.where(upper - lo > lo - lower, one, zero), one)
    below = torch.where(over, (hi - p) / torch.where(over, upper - p, one), below).clamp(0, 1)
    above = torch.where(over, torch.where(hi - lower > upper - hi, one, zero), one)
    above = torch.where(under, (q - lo) / torch.where(under, q - lower, one), above).clamp(0, 1)
    inner = [torch.minimum(torch.maximum(lower.new_tensor(end), lower), upper) for end in clip]
    kinks = [lower, *inner, upper]
    size = torch.maximum(lower.abs(), upper.abs()) + max(abs(lo), abs(hi))
    slack = size * (8 * UNIT64) + TINY
    least = torch.stack([v.clamp(lo, hi) - below * v for v in kinks]).amin(0) - slack
    most = torch.stack([v.clamp(lo, hi) - above * v for v in kinks]).amax(0) + slack
    return below, least, above, most


def _dot(a: Tensor, value: Tensor) -> Tensor:
    return (a @ value.unsqueeze(2)).squeeze(2)


def _down(x: Tensor) -> Tensor:
    return torch.nextafter(x, x.new_tensor(-torch.inf))


def _up(x: Tensor) -> Tensor:
    return torch.nextafter(x, x.new_tensor(torch.inf))
