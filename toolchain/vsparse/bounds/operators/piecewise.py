"""LeakyRelu and Clip: piecewise linear, so the lines are exact wherever one piece alone can be reached."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isinf

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.operators.curves import Lines, intercepts, lines
from vsparse.bounds.relaxation import unsettled
from vsparse.bounds.rounding import TINY, UNIT64, Rounding, gamma, magnitude, operator_error
from vsparse.contract import LARGEST
from vsparse.graph.ir import Clip, LeakyRelu


def leaky_relu_lines(lower: Tensor, upper: Tensor, slope: float, outward: bool) -> Lines:
    """Returns lines for max(x, slope·x), 0 <= slope <= 1, on [lower, upper].

    Below: through the origin with slope 1 if upper > −lower and else `slope`, exact as it stands. Above: the chord; the function being
    convex, the line dominates it once it does so at both ends, which the intercept sees to.
    """
    active, off = lower >= 0, upper <= 0
    crosses = ~(active | off)
    settled = torch.where(active, torch.ones_like(lower), torch.full_like(lower, slope))
    below = torch.where(crosses, torch.where(upper > -lower, torch.ones_like(lower), torch.full_like(lower, slope)), settled)
    low, high = lower * slope, upper
    chord = ((high - low) / torch.where(crosses, upper - lower, torch.ones_like(lower))).clamp(slope, 1)
    above = torch.where(crosses, chord, settled)
    needed = torch.maximum(low - above * lower, high - above * upper)
    if outward:
        needed = needed + _slack(lower, upper)
    zero = torch.zeros_like(lower)
    return Lines(below, zero, above, torch.where(crosses, needed, zero))


def clip_lines(lower: Tensor, upper: Tensor, lowest: float, highest: float, outward: bool) -> Lines:
    """Returns lines for min(max(x, lowest), highest) on [lower, upper], where both ends of the clip may be reached.

    With a slope a in [0, 1], f(x) − a·x does not increase below `lowest`, does not decrease between the two, and does not increase
    beyond `highest`. So its maximum on [lower, upper] stands at `lower` or where `highest` lies, and its minimum at `upper` or where
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
    return Lines(below, under, above, over)


def _slack(lower: Tensor, upper: Tensor) -> Tensor:
    """Returns more than float64 loses in value − slope·x for values, slopes·x and x up to the larger end: three roundings."""
    return torch.maximum(lower.abs(), upper.abs()) * (8 * UNIT64) + TINY


@lines.register
def _(node: LeakyRelu, lower: Tensor, upper: Tensor, outward: bool) -> Lines:
    return leaky_relu_lines(lower, upper, node.slope, outward)


@lines.register
def _(node: Clip, lower: Tensor, upper: Tensor, outward: bool) -> Lines:
    return clip_lines(lower, upper, node.lowest, node.highest, outward)


@intercepts.register
def _(node: LeakyRelu | Clip, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor, outward: bool) -> tuple[Tensor, Tensor]:
    """f − slope · x is linear between the ends of the box and the kinks of f, so its extremes are among these, whatever the slope."""
    kinks = (0.0,) if isinstance(node, LeakyRelu) else tuple(end for end in (node.lowest, node.highest) if not isinf(end))
    points = [lower, upper, *(torch.minimum(torch.maximum(torch.full_like(lower, kink), lower), upper) for kink in kinks)]
    values = [torch.maximum(x, x * node.slope) if isinstance(node, LeakyRelu) else x.clamp(node.lowest, node.highest) for x in points]
    under = torch.stack([value - below * x for x, value in zip(points, values, strict=True)]).amin(0)
    over = torch.stack([value - above * x for x, value in zip(points, values, strict=True)]).amax(0)
    slack = _slack(lower, upper) + max([0.0, *map(abs, kinks)]) * (8 * UNIT64) if outward else 0.0
    return under - slack, over + slack


@unsettled.register
def _(node: LeakyRelu, lower: Tensor, upper: Tensor) -> Tensor:
    return (lower < 0) & (upper > 0)


@unsettled.register
def _(node: Clip, lower: Tensor, upper: Tensor) -> Tensor:
    return ((lower < node.lowest) & (upper > node.lowest)) | ((lower < node.highest) & (upper > node.highest))


@operator_error.register
def _(node: LeakyRelu, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    """slope·x is rounded where x < 0: the product, its storage in another format, and the slope where that is not exact."""
    lower, size = boxes[node.inputs[0]][0], magnitude(boxes[node.inputs[0]])
    negative = lower.clamp(max=0).abs()
    inexact = rounding.constant_error(node.slope)
    roundings = 1 + (rounding.contract.storage != rounding.contract.accumulate) + (inexact > 0)
    lost = torch.where(negative > 0, (3 + inexact) * rounding.storage_floor, 0.0)
    error = gamma(roundings, rounding.storage_unit) * (node.slope * negative) + 2 * inexact * negative + lost
    return (error + 16 * UNIT64 * negative) * (1 + 2.0**-48) + TINY, size + error


@operator_error.register
def _(node: Clip, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    """Exact, but for the ends of the clip where the storage format does not hold them."""
    size = magnitude(boxes[node.inputs[0]])
    error = max(_end_error(node.lowest, rounding, -1), _end_error(node.highest, rounding, 1))
    return torch.full_like(size, error), torch.maximum(size, magnitude(box)) + error


def _end_error(end: float, rounding: Rounding, side: int) -> float:
    largest = LARGEST.get(rounding.contract.storage, inf)
    if isinf(end) or side * end >= largest:
        return 0.0  # an end that no finite number of the format passes clips nothing
    return rounding.constant_error(end)
