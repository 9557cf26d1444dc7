"""FakeQuant: quantised and dequantised values, whichever way a device rounds at a tie or computes x / scale.

See docs/numerics.md, section 7.3.

For x in [l, u] the integer k = q − zero point is one of k_l … k_u, and it is k only for x in scale·[k − 1/2 − τ, k + 1/2 + τ]; the least k
extends to −inf, the greatest to inf. τ is far above the rounding of any execution within the contract, and of float64 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.curves import RelaxedCurve, cut_at_ends
from vsparse.bounds.error_model import ErrorModel
from vsparse.bounds.float64 import TINY, UNIT64, magnitude
from vsparse.bounds.relaxation import LinearRelaxation
from vsparse.bounds.rules import Params, register
from vsparse.graph.ir import FakeQuant
from vsparse.graph.quantised import LARGEST_RATIO

TAU = 2.0**-10


def steps(node: FakeQuant, lower: Tensor, upper: Tensor) -> Box:
    """Returns (k_l, k_u): the least and the greatest value of q − zero point for x in [lower, upper], as floats; NaN where x is."""
    low = torch.ceil(lower / node.scale - (0.5 + TAU)).clamp(*node.steps)
    high = torch.floor(upper / node.scale + (0.5 + TAU)).clamp(*node.steps)
    return low, high


@register(FakeQuant)
class FakeQuantBounds(RelaxedCurve[FakeQuant]):
    """A staircase between two clamps."""

    def interval(self, node: FakeQuant, params: Params, inputs: list[Box]) -> Box:
        low, high = steps(node, *inputs[0])
        return low * node.scale, high * node.scale

    def relaxation(self, node: FakeQuant, lower: Tensor, upper: Tensor, outward: bool) -> LinearRelaxation:
        """Lines with the slopes of those around the clamp; the intercepts are what the staircase needs."""
        low, high = steps(node, lower, upper)
        few = high <= low + 1
        below, above = (torch.where(few, torch.zeros_like(slope), slope) for slope in _clamp_slopes(node, lower, upper))
        under, over = self.intercepts(node, lower, upper, below, above, outward)
        return LinearRelaxation(below, under, above, over)

    def intercepts(
        self, node: FakeQuant, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor, outward: bool
    ) -> tuple[Tensor, Tensor]:
        """Above: the greatest scale·k − m·x. For all k but the least, x >= scale·(k − 1/2 − τ), and the difference does not fall as k
        grows, since m <= 1; the least k may have any x. Below, likewise.
        """
        low, high = steps(node, lower, upper)
        scale, reach = node.scale, 0.5 + TAU
        left, right = torch.maximum(lower, (high - reach) * scale), torch.minimum(upper, (low + reach) * scale)
        over = torch.maximum(high * scale - above * left, low * scale - above * lower)
        under = torch.minimum(low * scale - below * right, high * scale - below * upper)
        if outward:
            slack = (torch.maximum(lower.abs(), upper.abs()) + torch.maximum(low.abs(), high.abs()) * scale) * (8 * UNIT64) + TINY
            over, under = over + slack, under - slack
        return under, over

    def unstable(self, node: FakeQuant, lower: Tensor, upper: Tensor) -> Tensor:
        a, b = (node.scale * k for k in node.steps)
        return ((lower < a) & (upper > a)) | ((lower < b) & (upper > b))

    def cut_points(self, node: FakeQuant, lower: Tensor, upper: Tensor) -> Tensor:
        return cut_at_ends(lower, upper, *(node.scale * k for k in node.steps))

    def error(self, node: FakeQuant, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        """E is 0: the value is scale·k exactly; that a float kernel rounds it once more is charged to its readers; of an output, here.

        Infinite where x / scale may leave int32: kernels that convert it before they clamp it then return the wrong end.
        """
        out, x = magnitude(box), magnitude(boxes[node.inputs[0]])
        unit = 2 * model.storage_unit if node.name == model.graph.output else 0.0
        return out * unit, torch.where(x < node.scale * LARGEST_RATIO, x + out, torch.full_like(x, inf))


def _clamp_slopes(node: FakeQuant, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the slopes, each in [0, 1], of a line below and one above clamp(x, a, b), those that leave the smaller area."""
    a, b = (node.scale * k for k in node.steps)
    one, zero = torch.ones_like(lower), torch.zeros_like(lower)
    inside, outside = (lower >= a) & (upper <= b), (upper <= a) | (lower >= b)
    middle = lower * 0.5 + upper * 0.5

    def slope(rise: Tensor, run: Tensor, wanted: Tensor) -> Tensor:
        use = wanted & (run > 0) & ~outside
        return torch.where(inside, one, torch.where(use, (rise / torch.where(use, run, one)).clamp(0, 1), zero))

    first, last = lower.clamp(a, b), upper.clamp(a, b)
    # The concave envelope rises from `lower` to b, the convex one from a to `upper`; each line is the envelope's piece at the middle.
    return slope(last - first, upper - first, middle > first), slope(last - first, last - lower, middle < last)
