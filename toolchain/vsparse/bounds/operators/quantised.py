"""FakeQuant: quantised and dequantised values, whichever way a device rounds at a tie or computes x / scale.

See docs/numerics.md, section 7.3.

For x in [l, u] the integer k = q − zero point is one of k_l … k_u, and it is k only for x in scale·[k − 1/2 − τ, k + 1/2 + τ]; the least k
extends to −inf, the greatest to inf. τ is far above the rounding of any execution within the contract, and of float64 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf

import torch
from torch import Tensor

from vsparse.bounds.backward import CrownPass, dot
from vsparse.bounds.ball import Box
from vsparse.bounds.curves import RelaxedCurve, cut_at_ends
from vsparse.bounds.error_model import ErrorModel
from vsparse.bounds.float64 import TINY, UNIT64, magnitude
from vsparse.bounds.relaxation import LinearRelaxation
from vsparse.bounds.rules import Params, register
from vsparse.graph.ir import AddConstant, FakeQuant, Graph, MulConstant, Node, Relu, Reshape, Transpose
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
        """Lines with the slopes of the staircase's envelopes at the middle; the intercepts are what the staircase needs."""
        below, above = _envelope_slopes(node, lower, upper)
        under, over = self.intercepts(node, lower, upper, below, above, outward)
        return LinearRelaxation(below, under, above, over)

    def backward(self, node: FakeQuant, a: Tensor, state: CrownPass) -> None:
        if node.name in state.choices.curves:
            super().backward(node, a, state)
            return
        if state.over_box and is_input(node.inputs[0], state):
            # Each value of a box moves alone, so that its steps are all that there is to know.
            lower, upper = (end.flatten(1) for end in self.interval(node, state.params, [state.boxes[node.inputs[0]]]))
            state.add(a.clamp(min=0), lower)
            state.add(a.clamp(max=0), upper)
            state.pass_on(node.inputs[0], torch.zeros_like(a))
            return
        relu = rectifier(node, state.graph)
        if relu is None:
            super().backward(node, a, state)
            return
        pass_rectified(node, relu, a, state, state.choices.slopes.get(relu.name), state.choices.splits.get(relu.name))

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


def rectifier(node: FakeQuant, graph: Graph) -> Relu | None:
    """Returns the ReLU that a quantisation reads; None where it reads something else."""
    source = next((one for one in graph.nodes if one.name == node.inputs[0]), None)
    return source if isinstance(source, Relu) else None


def pass_rectified(node: FakeQuant, relu: Relu, a: Tensor, state: CrownPass, slopes: Tensor | None, splits: Tensor | None) -> None:
    """Passes coefficients a [batch, rows, size] through a quantisation of ReLU(z) and the ReLU at once, on to z.

    The two are the staircase of z whose least step is 0 (docs/numerics.md, section 7.3). `slopes` and `splits` are the ReLU's, as in
    `Choices`, [batch or 1, rows or 1, *shape]: where z may have either sign, the lower slope is the ReLU's, chosen or not.
    """
    stairs = replace(node, lowest=node.zero_point)
    low, high = (end.flatten(1).unsqueeze(1) for end in state.boxes[relu.inputs[0]])
    if splits is not None:
        split = splits.flatten(2)
        low, high = torch.where(split > 0, low.clamp(min=0), low), torch.where(split < 0, high.clamp(max=0), high)
    lower, upper = _envelope_slopes(stairs, low, high)
    chosen = (high > -low).to(low.dtype) if slopes is None else slopes.flatten(2).to(low.dtype).clamp(0, 1)
    lower = torch.where((low < 0) & (high > 0), chosen, lower)
    under, over = FakeQuantBounds().intercepts(stairs, low, high, lower, upper, state.outward)
    above, below = a.clamp(min=0), a.clamp(max=0)
    state.add(above, under)
    state.add(below, over)
    passed = above * lower + below * upper
    if state.outward:
        # z may be far larger than what the two make of it, so that the roundings of its coefficients are charged here.
        size = magnitude(state.boxes[relu.inputs[0]]).flatten(1)
        state.charge(dot(passed.abs(), size) * (8 * UNIT64), a.shape[2])
    state.pass_on(relu.inputs[0], passed)
    # The ReLU itself sees to the multipliers of its splits, and to its other readers.
    state.pass_on(relu.name, torch.zeros_like(a))


def readers_at_once(graph: Graph, name: str) -> list[Node]:
    """Returns the nodes whose relaxations an activation's box shapes: those that read it, and quantisations of its ReLU."""
    readers = graph.consumers()
    found = list(readers[name])
    for relu in [one for one in found if isinstance(one, Relu)]:
        found += [replace(one, lowest=one.zero_point) for one in readers[relu.name] if isinstance(one, FakeQuant)]
    return found


def is_input(name: str, state: CrownPass) -> bool:
    """Returns whether an activation is the network's input, moved, shifted and scaled element by element at most."""
    made = {node.name: node for node in state.graph.nodes}
    while isinstance(made.get(name), AddConstant | MulConstant | Reshape | Transpose):
        name = made[name].inputs[0]
    return name == state.graph.input


def _envelope_slopes(node: FakeQuant, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the slopes, each in [0, 1], of a line below and one above the staircase: those of its envelopes at the middle of the box.

    The concave envelope rises from (lower, s·k_l) to where k_u begins, and is flat from there; the convex one is flat as far as k_l may be
    taken, and rises to (upper, s·k_u). No slope above 1 is used.
    """
    low, high = steps(node, lower, upper)
    reach, one = 0.5 + TAU, torch.ones_like(lower)
    rise = (high - low) * node.scale
    begins, ends = torch.maximum(lower, (high - reach) * node.scale), torch.minimum(upper, (low + reach) * node.scale)
    middle = lower * 0.5 + upper * 0.5

    def slope(wanted: Tensor, run: Tensor) -> Tensor:
        use = wanted & (rise > 0) & torch.isfinite(run)
        return torch.where(use, torch.where(run > rise, rise / torch.where(run > rise, run, one), one), torch.zeros_like(lower))

    return slope(middle > ends, upper - ends), slope(middle < begins, begins - lower)
