"""ReLU, LeakyRelu and Clip: piecewise linear, so the relaxation is exact wherever one piece alone can be reached."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isinf
from typing import TypeVar

import torch
from torch import Tensor

from vsparse.bounds.affine_forms import AffineForm, ZonotopePass, band
from vsparse.bounds.backward import CrownPass
from vsparse.bounds.ball import Box
from vsparse.bounds.curves import RelaxedCurve, cut_at_ends
from vsparse.bounds.error_model import ErrorModel
from vsparse.bounds.float64 import TINY, UNIT64, gamma, magnitude
from vsparse.bounds.relaxation import LinearRelaxation
from vsparse.bounds.rules import exact_error, register
from vsparse.contract import LARGEST
from vsparse.graph.ir import Clip, LeakyRelu, Node, Relu

N = TypeVar("N", bound=Node)


class _Piecewise(RelaxedCurve[N]):
    """A function of pieces that meet at kinks."""

    def kinks(self, node: N) -> tuple[float, ...]:
        """Returns where the pieces meet, all finite."""
        raise NotImplementedError

    def value(self, node: N, x: Tensor) -> Tensor:
        """Returns f(x), exact or rounded once."""
        raise NotImplementedError

    def intercepts(self, node: N, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor, outward: bool) -> tuple[Tensor, Tensor]:
        """f − slope · x is linear between the ends of the box and the kinks of f, so its extremes are among these, whatever the slope."""
        kinks = self.kinks(node)
        points = [lower, upper, *(torch.minimum(torch.maximum(torch.full_like(lower, kink), lower), upper) for kink in kinks)]
        values = [self.value(node, x) for x in points]
        under = torch.stack([value - below * x for x, value in zip(points, values, strict=True)]).amin(0)
        over = torch.stack([value - above * x for x, value in zip(points, values, strict=True)]).amax(0)
        slack = _slack(lower, upper) + max([0.0, *map(abs, kinks)]) * (8 * UNIT64) if outward else 0.0
        return under - slack, over + slack


@register(Relu)
class ReluBounds(_Piecewise[Relu]):
    """max(x, 0): one slope is free, that of the lower line; splits at zero and their multipliers are `Choices` of their own."""

    two_slopes = False
    exact = True

    def kinks(self, node: Relu) -> tuple[float, ...]:
        return (0.0,)

    def value(self, node: Relu, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    def relaxation(self, node: Relu, lower: Tensor, upper: Tensor, outward: bool) -> LinearRelaxation:
        below, above, over = relu_relaxation(lower, upper, outward)
        return LinearRelaxation(below, torch.zeros_like(over), above, over)

    def usual_slopes(self, node: Relu, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        below = torch.nan_to_num(relu_relaxation(lower, upper, False)[0])
        return below, below

    def backward(self, node: Relu, a: Tensor, state: CrownPass) -> None:
        source = node.inputs[0]
        one = state.relaxations.get(node.name)
        known = (
            relu_relaxation(*state.boxes[source], state.outward) if one is None else (one.lower_slope, one.upper_slope, one.upper_intercept)
        )
        lower, upper, intercept = state.choices.relu_relaxation(node.name, known, a)
        below = a.clamp(max=0)
        state.lower_by(below, intercept)
        passed = torch.addcmul(a * lower, below, upper - lower)
        multiplier = state.choices.multiplier(node.name, a)
        state.pass_on(source, state.dual(node, passed if multiplier is None else passed - multiplier))

    def zonotope(self, node: Relu, inputs: list[AffineForm], box: Box, state: ZonotopePass) -> AffineForm:
        """λ·z <= ReLU(z) <= λ·z + r for any λ in [0, 1], so that one new symbol of size r/2 stands for the unit."""
        _, slope, r = relu_relaxation(*state.boxes[node.inputs[0]], outward=True)
        return band(inputs[0], slope, torch.zeros_like(r), r, state)

    def error(self, node: Relu, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        return exact_error(box)

    def unstable(self, node: Relu, lower: Tensor, upper: Tensor) -> Tensor:
        return (lower < 0) & (upper > 0)


@register(LeakyRelu)
class LeakyReluBounds(_Piecewise[LeakyRelu]):
    """max(x, slope · x)."""

    def kinks(self, node: LeakyRelu) -> tuple[float, ...]:
        return (0.0,)

    def value(self, node: LeakyRelu, x: Tensor) -> Tensor:
        return torch.maximum(x, x * node.slope)

    def relaxation(self, node: LeakyRelu, lower: Tensor, upper: Tensor, outward: bool) -> LinearRelaxation:
        return leaky_relu_relaxation(lower, upper, node.slope, outward)

    def unstable(self, node: LeakyRelu, lower: Tensor, upper: Tensor) -> Tensor:
        return (lower < 0) & (upper > 0)

    def error(self, node: LeakyRelu, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        """slope·x is rounded where x < 0: the product, its storage in another format, and the slope where that is not exact.

        Of a quantised x, what is read is rounded too (docs/numerics.md, section 7.2).
        """
        lower, size = boxes[node.inputs[0]][0], magnitude(boxes[node.inputs[0]])
        negative = lower.clamp(max=0).abs()
        inexact = model.constant_error(node.slope)
        roundings = 1 + (model.contract.storage != model.contract.accumulate) + (inexact > 0)
        underflow = torch.where(negative > 0, (3 + inexact) * model.storage_floor, 0.0)
        error = gamma(roundings, model.storage_unit) * (node.slope * negative) + 2 * inexact * negative + underflow
        if model.scales.get(node.inputs[0]):
            error = error + 2 * model.storage_unit * size
        return (error + 16 * UNIT64 * negative) * (1 + 2.0**-48) + TINY, size + error


@register(Clip)
class ClipBounds(_Piecewise[Clip]):
    """min(max(x, lowest), highest)."""

    def kinks(self, node: Clip) -> tuple[float, ...]:
        return tuple(end for end in (node.lowest, node.highest) if not isinf(end))

    def value(self, node: Clip, x: Tensor) -> Tensor:
        return x.clamp(node.lowest, node.highest)

    def relaxation(self, node: Clip, lower: Tensor, upper: Tensor, outward: bool) -> LinearRelaxation:
        return clip_relaxation(lower, upper, node.lowest, node.highest, outward)

    def unstable(self, node: Clip, lower: Tensor, upper: Tensor) -> Tensor:
        return ((lower < node.lowest) & (upper > node.lowest)) | ((lower < node.highest) & (upper > node.highest))

    def cut_points(self, node: Clip, lower: Tensor, upper: Tensor) -> Tensor:
        return cut_at_ends(lower, upper, node.lowest, node.highest)

    def error(self, node: Clip, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        """Exact, but for the ends of the clip where the storage format does not hold them."""
        size = magnitude(boxes[node.inputs[0]])
        error = max(_end_error(node.lowest, model, -1), _end_error(node.highest, model, 1))
        return torch.full_like(size, error), torch.maximum(size, magnitude(box)) + error


def _end_error(end: float, model: ErrorModel, side: int) -> float:
    largest = LARGEST.get(model.contract.storage, inf)
    if isinf(end) or side * end >= largest:
        return 0.0  # an end that no finite number of the format passes clips nothing
    return model.constant_error(end)


def relu_relaxation(lower: Tensor, upper: Tensor, outward: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (lower slope, upper slope, upper intercept), each of the shape of `lower`, for ReLU on [lower, upper].

    slope·x <= ReLU(x) <= upper slope·x + intercept. The lower slope is 1 if upper > −lower and else 0 (Zhang et al., arXiv
    1811.00866, section 3.3). With `outward` the intercept is rounded up so that the upper line, with its slope as computed,
    dominates ReLU at both ends and so, ReLU being convex, between them (docs/numerics.md, section 5.2).
    """
    active, dead = lower >= 0, upper <= 0
    unstable = ~(active | dead)
    width = torch.where(unstable, upper - lower, torch.ones_like(lower))
    slope = torch.where(unstable, upper / width, active.to(lower.dtype))
    intercept = torch.where(unstable, -lower * slope, torch.zeros_like(lower))
    if outward:
        slope = slope.clamp(0, 1)
        needed = torch.maximum(-lower * slope, upper - upper * slope)
        needed = needed + torch.maximum(-lower, upper) * (8 * UNIT64) + TINY
        intercept = torch.where(unstable, needed, torch.zeros_like(lower))
    adaptive = torch.where(unstable, (upper > -lower).to(lower.dtype), slope)
    return adaptive, slope, intercept


def leaky_relu_relaxation(lower: Tensor, upper: Tensor, slope: float, outward: bool) -> LinearRelaxation:
    """Returns a relaxation of max(x, slope·x), 0 <= slope <= 1, on [lower, upper].

    Below: through the origin with slope 1 if upper > −lower and else `slope`, exact as it is. Above: the chord; the function being
    convex, the line dominates it once it does so at both ends, which the intercept sees to.
    """
    active, off = lower >= 0, upper <= 0
    crosses = ~(active | off)
    stable = torch.where(active, torch.ones_like(lower), torch.full_like(lower, slope))
    below = torch.where(crosses, torch.where(upper > -lower, torch.ones_like(lower), torch.full_like(lower, slope)), stable)
    low, high = lower * slope, upper
    chord = ((high - low) / torch.where(crosses, upper - lower, torch.ones_like(lower))).clamp(slope, 1)
    above = torch.where(crosses, chord, stable)
    needed = torch.maximum(low - above * lower, high - above * upper)
    if outward:
        needed = needed + _slack(lower, upper)
    zero = torch.zeros_like(lower)
    return LinearRelaxation(below, zero, above, torch.where(crosses, needed, zero))


def clip_relaxation(lower: Tensor, upper: Tensor, lowest: float, highest: float, outward: bool) -> LinearRelaxation:
    """Returns a relaxation of min(max(x, lowest), highest) on [lower, upper], where both ends of the clip may be reached.

    With a slope a in [0, 1], f(x) − a·x does not increase below `lowest`, does not decrease between the two, and does not increase
    beyond `highest`. So its maximum on [lower, upper] is at `lower` or where `highest` lies, and its minimum at `upper` or where
    `lowest` lies, both moved into [lower, upper]: the intercepts. The slope of each line is that of the (concave above, convex below)
    envelope at the middle, which makes the area under it smallest, as the adaptive slope of ReLU does.
    """
    first = torch.minimum(torch.maximum(torch.full_like(lower, lowest), lower), upper)
    last = torch.minimum(torch.maximum(torch.full_like(lower, highest), lower), upper)
    at_lower, at_upper = lower.clamp(lowest, highest), upper.clamp(lowest, highest)
    inside = (lower >= lowest) & (upper <= highest)
    constant = (upper <= lowest) | (lower >= highest)
    open_ = ~(inside | constant)
    one, zero = torch.ones_like(lower), torch.zeros_like(lower)
    middle = lower * 0.5 + upper * 0.5

    def chord(rise: Tensor, run: Tensor, wanted: Tensor) -> Tensor:
        use = wanted & open_ & (run > 0)
        return torch.where(use, (rise / torch.where(use, run, one)).clamp(0, 1), zero)

    above = torch.where(inside, one, chord(last.clamp(lowest, highest) - at_lower, last - lower, middle < last))
    below = torch.where(inside, one, chord(at_upper - first.clamp(lowest, highest), upper - first, middle > first))
    over = torch.maximum(at_lower - above * lower, last.clamp(lowest, highest) - above * last)
    under = torch.minimum(at_upper - below * upper, first.clamp(lowest, highest) - below * first)
    if outward:
        slack = _slack(lower, upper)
        over, under = over + slack, under - slack
    # Where one piece alone is reached the value is exact: x itself, or one of the clip's ends.
    over = torch.where(open_, over, torch.where(inside, zero, at_lower))
    under = torch.where(open_, under, torch.where(inside, zero, at_lower))
    return LinearRelaxation(below, under, above, over)


def _slack(lower: Tensor, upper: Tensor) -> Tensor:
    """Returns more than float64 loses in value − slope·x for values, slopes·x and x up to the larger end: three roundings."""
    return torch.maximum(lower.abs(), upper.abs()) * (8 * UNIT64) + TINY
