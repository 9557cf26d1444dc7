"""Non-decreasing functions of one variable: what each must define, and the backward and zonotope rules derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from vsparse.bounds.affine_forms import AffineForm, ZonotopePass, band
from vsparse.bounds.backward import CrownPass
from vsparse.bounds.ball import Box
from vsparse.bounds.error_model import ErrorModel
from vsparse.bounds.float64 import TINY
from vsparse.bounds.monotone import Monotone
from vsparse.bounds.relaxation import LinearRelaxation
from vsparse.bounds.rules import rules_of
from vsparse.compute_device import to_host
from vsparse.errors import InputError
from vsparse.graph.ir import Node

N = TypeVar("N", bound=Node)


class RelaxedCurve(Monotone[N]):
    """y = f(x) elementwise, f non-decreasing: a subclass defines `relaxation`, `intercepts`, `unstable` and `error`."""

    # The largest slope of f: steeper lines are true, and never better.
    steepest: ClassVar[float] = 1.0
    # Whether both slopes are free to choose (`Choices.curves`); ReLU alone has one (`Choices.slopes`), and splits at zero.
    two_slopes: ClassVar[bool] = True

    def relaxation(self, node: N, lower: Tensor, upper: Tensor, outward: bool) -> LinearRelaxation:
        """Returns a linear relaxation of f on [lower, upper], each part of the shape of `lower`.

        With `outward` (float64) it holds as computed: for the very slopes and intercepts that are returned, in exact arithmetic
        (docs/numerics.md, section 5.2). Slopes may then come from any heuristic; the intercept makes the line sound.
        """
        raise NotImplementedError

    def intercepts(self, node: N, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor, outward: bool) -> tuple[Tensor, Tensor]:
        """Returns (under, over) with below · x + under <= f(x) <= above · x + over on [lower, upper], for any slopes from 0 to 1.

        All tensors broadcast against each other; `outward` as for `relaxation`. This is what makes slopes free to choose: those of a
        search, of both lines the same for a zonotope. Where an end is not finite so may the intercept be, or be no number.
        """
        raise NotImplementedError

    def unstable(self, node: N, lower: Tensor, upper: Tensor) -> Tensor:
        raise NotImplementedError

    def error(self, node: N, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def cut_points(self, node: N, lower: Tensor, upper: Tensor) -> Tensor:
        """Returns where a search cuts the box of each unit: at a kink of f inside, or at another point that parts it well."""
        middle = lower * 0.5 + upper * 0.5
        return torch.where((lower < 0) & (upper > 0), 0.0, middle)

    def usual_slopes(self, node: N, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the slopes (below, above) of the relaxation, to start a search of better ones from; 0 where they are no number."""
        one = self.relaxation(node, lower, upper, False)
        return torch.nan_to_num(one.lower_slope).clamp(0, 1), torch.nan_to_num(one.upper_slope).clamp(0, 1)

    def chosen(self, node: N, state: CrownPass) -> LinearRelaxation:
        """Returns the relaxation in a backward pass, [batch or 1, rows or 1, size]: with chosen slopes where there are some."""
        box = state.boxes[node.inputs[0]]
        if node.name not in state.choices.curves:
            known = state.relaxations.get(node.name)
            return LinearRelaxation(
                *(part.flatten(1).unsqueeze(1) for part in (self.relaxation(node, *box, state.outward) if known is None else known))
            )
        lower, upper = (end.flatten(1).unsqueeze(1) for end in box)
        below, above = (slope.to(lower.dtype).clamp(0, 1).flatten(2) for slope in state.choices.curves[node.name])
        under, over = self.intercepts(node, lower, upper, below, above, state.outward)
        return LinearRelaxation(below, under, above, over)

    def backward(self, node: N, a: Tensor, state: CrownPass) -> None:
        one = self.chosen(node, state)
        above, below = a.clamp(min=0), a.clamp(max=0)
        state.add(above, one.lower_intercept)
        state.add(below, one.upper_intercept)
        state.pass_on(node.inputs[0], state.dual(node, above * one.lower_slope + below * one.upper_slope))

    def zonotope(self, node: N, inputs: list[AffineForm], box: Box, state: ZonotopePass) -> AffineForm:
        """Two parallel lines with the slope of the chord; where an end is not finite, the box."""
        (form,) = inputs
        lower, upper = state.boxes[node.inputs[0]]
        width = upper - lower
        finite = torch.isfinite(width) & torch.isfinite(form.reach + form.rest)
        # A slope that comes of rounding alone would be any number.
        usable = finite & (width > 2.0**-40 * (1 + torch.maximum(lower.abs(), upper.abs())))
        slope = torch.where(usable, (box[1] - box[0]) / torch.where(usable, width, 1.0), 0.0).clamp(0, 1)
        low, high = torch.where(finite, lower, 0.0), torch.where(finite, upper, 0.0)
        under, over = self.intercepts(node, low, high, slope, slope, True)
        flat = slope == 0
        under, over = torch.where(flat, box[0] - TINY, under), torch.where(flat, box[1] + TINY, over)
        if not bool(to_host(finite.all())):
            zero, each = form.centre.new_zeros(()), finite.unsqueeze(1)
            parts = [torch.where(finite, part, zero) for part in (form.centre, form.rest, form.spread)]
            form = AffineForm(parts[0], torch.where(each, form.symbols, zero), parts[1], parts[2])
        return band(form, slope, under, over, state)


def is_curve(node: Node) -> bool:
    """Returns whether a node is a relaxed function of one variable, ReLU included."""
    return isinstance(rules_of(node), RelaxedCurve)


def has_two_slopes(node: Node) -> bool:
    """Returns whether a node is a relaxed function of one variable other than ReLU: one that `Choices.curves` may hold slopes of."""
    rules = rules_of(node)
    return isinstance(rules, RelaxedCurve) and rules.two_slopes


def curve_rules(node: Node) -> RelaxedCurve[Node]:
    """Returns the rules of a node that is a relaxed function of one variable; InputError for any other."""
    rules = rules_of(node)
    if not isinstance(rules, RelaxedCurve):
        raise InputError(f'node "{node.name}" has type {type(node).__name__}, for which no linear relaxation is known')
    return rules


def linear_relaxation(node: Node, lower: Tensor, upper: Tensor, outward: bool) -> LinearRelaxation:
    """Returns the linear relaxation of a node's function on [lower, upper] (`RelaxedCurve.relaxation`); InputError where none is known."""
    return curve_rules(node).relaxation(node, lower, upper, outward)


def cut_at_ends(lower: Tensor, upper: Tensor, lowest: float, highest: float) -> Tensor:
    """Returns the end of a clip that lies inside [lower, upper], of two the one nearer to the middle, and the middle where none does."""
    middle = lower * 0.5 + upper * 0.5
    inside = [(lower < end) & (upper > end) for end in (lowest, highest)]
    point = torch.where(inside[0], lowest, torch.where(inside[1], highest, middle))
    return torch.where(inside[0] & inside[1] & ((middle - highest).abs() < (middle - lowest).abs()), highest, point)
