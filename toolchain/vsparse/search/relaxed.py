"""A network relaxed over one region, in float32: what every search evaluates, and its evaluation node by node.

The bound is that of `vsparse.bounds.crown`, without rounding terms. It is piecewise linear in slopes and multipliers; its gradient is a
forward pass of the point that attains it, written out here for the two steps that autograd would spend most of its time on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds.backward import CrownPass
from vsparse.bounds.ball import Box
from vsparse.bounds.choices import Choices
from vsparse.bounds.crown import ancestors
from vsparse.bounds.curves import has_two_slopes, linear_relaxation
from vsparse.bounds.operators.quantised import pass_rectified, rectifier
from vsparse.bounds.proof import ReluUnits
from vsparse.bounds.region import Region, box_of
from vsparse.bounds.rules import require, rules_of
from vsparse.compute_device import reading_back, to_host
from vsparse.graph.ir import FakeQuant, Graph, Node, Relu


@dataclass
class Choice:
    """The free parameters of rows: lower slopes, splits (1, -1 or 0) and multipliers of every unstable unit, each float32 [rows, units]."""

    slopes: Tensor
    splits: Tensor
    multipliers: Tensor

    def __len__(self) -> int:
        return len(self.slopes)

    def __getitem__(self, index: Tensor | slice) -> Choice:
        return Choice(self.slopes[index], self.splits[index], self.multipliers[index])

    def repeat(self, times: int) -> Choice:
        """Returns each row `times` times, one after the other."""
        return Choice(*(part.repeat_interleave(times, dim=0) for part in (self.slopes, self.splits, self.multipliers)))


@dataclass
class Evaluation:
    """Lower bounds [R] and, where the gradient was asked for, their gradients by slope and multiplier, at each unstable unit the
    coefficient of its output and the value of its input at the point that attains the bound (all [R, U]), and that point [R, inputs]."""

    bound: Tensor
    to_slopes: Tensor | None = None
    to_multipliers: Tensor | None = None
    coefficients: Tensor | None = None
    values: Tensor | None = None
    point: Tensor | None = None


@dataclass(frozen=True)
class ReluLayer:
    """One ReLU node over a region: which of its elements are unstable (`index`), which always active, and its columns among all units."""

    node: Relu
    index: Tensor
    active: Tensor
    columns: slice


class Relaxation:
    """The unstable units of a graph over one region, for which `boxes` [1, …] are sound, and their linear relaxation.

    `units` int32 [U]: the unstable ReLU units, numbered as in proofs. `ends` (lower, upper), `slope` and `intercept` of the upper bound,
    and the `default` lower slope are float32 [U].
    """

    def __init__(self, graph: Graph, box: Box | Region, boxes: Mapping[str, Box]) -> None:
        require(graph.nodes, "backward")
        self.graph, self.box, self.boxes = graph, box, boxes
        self.work = 0  # multiply-adds of one row, about
        numbering = ReluUnits.of(graph)
        self.layers: dict[str, ReluLayer] = {}
        self.device = box_of(box)[0].device
        nothing = torch.zeros(0, dtype=torch.float64, device=self.device)
        lowers, uppers, units = [nothing], [nothing], [np.zeros(0, np.int32)]
        at = 0
        for start, node in zip(numbering.starts, numbering.nodes, strict=False):
            lower, upper = (end.flatten().to(torch.float64) for end in boxes[node.inputs[0]])
            with reading_back("which units are unstable"):
                index = ((lower < 0) & (upper > 0)).nonzero().flatten()
            self.layers[node.name] = ReluLayer(node, index, lower >= 0, slice(at, at + len(index)))
            lowers.append(lower[index])
            uppers.append(upper[index])
            units.append((to_host(index).numpy() + start).astype(np.int32))
            at += len(index)
        low, up = torch.cat(lowers), torch.cat(uppers)
        self.units: NDArray[np.int32] = np.concatenate(units)
        self.slope, self.intercept = (up / (up - low)).float(), (-low * up / (up - low)).float()
        self.default = (up > -low).float()
        self.ends = low.float(), up.float()

    def choice(self, rows: int) -> Choice:
        """Returns the default choice for so many rows: default slopes, no splits."""
        none = torch.zeros(rows, len(self.units), device=self.device)
        return Choice(self.default.repeat(rows, 1), none, none.clone())

    def relaxation(self, choice: Choice) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (lower slope, upper slope, upper intercept) [R, U] under a choice."""
        free, split = choice.splits == 0, choice.splits.clamp(min=0)
        return torch.where(free, choice.slopes, split), torch.where(free, self.slope, split), self.intercept * free


@dataclass
class _Trace:
    coefficients: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    point: Tensor | None = None
    # Coefficients of ReLUs' outputs that passed them by, through a quantisation of them.
    quantised: dict[str, Tensor] = field(default_factory=dict)


class GraphRelaxation(Relaxation):
    """Evaluation through every node of the graph, whatever its type; the form of rows is (rows, target)."""

    def __init__(self, graph: Graph, params: Mapping[str, Tensor], box: Box | Region, boxes: Mapping[str, Box]) -> None:
        super().__init__(graph, box, boxes)
        self.params = params
        self.region = box.to(torch.float32) if isinstance(box, Region) else None
        lower, upper = (end.flatten().to(torch.float32) for end in box_of(box))
        self.centre, self.radius = (upper + lower) / 2, (upper - lower) / 2
        self.boxes32 = {name: (one[0].float(), one[1].float()) for name, one in boxes.items()}
        with torch.no_grad():
            curves = [node for node in graph.nodes if has_two_slopes(node)]
            found = {node.name: rectifier(node, graph) for node in curves if isinstance(node, FakeQuant)}
            self.rectifiers = {name: relu for name, relu in found.items() if relu is not None}
            self.relaxations = {node.name: linear_relaxation(node, *self.boxes32[node.inputs[0]], False) for node in curves}
        self.masks = {name: layer.active.float() for name, layer in self.layers.items()}
        self.row_bytes = 4 * (4 * sum(node.size for node in graph.nodes) + 4 * len(self.centre) + 16 * len(self.units))
        self._walks: dict[str, list[Node]] = {}

    def form(self, rows: Tensor, target: str | None = None) -> tuple[Tensor, str]:
        """Returns rows [R, K] of an activation (default: the output) as `evaluate` takes them."""
        return rows.float(), target or self.graph.output

    def evaluate(self, form: tuple[Tensor, str], choice: Choice, gradient: bool) -> Evaluation:
        """Returns lower bounds for the rows of a form (as many as the choice has, or one for all) under a choice."""
        rows, target = form
        if target not in self._walks:
            self._walks[target] = ancestors(self.graph, target)
        trace = _Trace()
        with torch.set_grad_enabled(gradient):
            slopes, multipliers = choice.slopes.detach(), choice.multipliers.detach()
            if gradient:
                slopes, multipliers = slopes.clone().requires_grad_(), multipliers.clone().requires_grad_()
            relaxation = self.relaxation(Choice(slopes.detach(), choice.splits, multipliers))
            bound = self._bound(rows, target, (slopes, multipliers, choice.splits), relaxation, trace)
            if not gradient:
                return Evaluation(bound)
            # Where no ReLU stands between the rows and the input (other curves only), the bound depends on no choice.
            total = bound.sum() if bound.requires_grad else (slopes.sum() + multipliers.sum()) * 0
            to_slopes, to_multipliers = torch.autograd.grad(total, [slopes, multipliers], materialize_grads=True)
        none = torch.zeros_like(to_slopes)
        coefficients, values = none.clone(), none
        for name, found in trace.coefficients.items():
            coefficients[:, self.layers[name].columns], values[:, self.layers[name].columns] = found, trace.values[name]
        for name, found in trace.quantised.items():
            coefficients[:, self.layers[name].columns] += found
        return Evaluation(bound.detach(), to_slopes, to_multipliers, coefficients, values, trace.point)

    def points(self, point: Tensor) -> Tensor:
        """Returns the inputs [R, n] that the points of an evaluation stand for."""
        return point

    def _bound(self, rows: Tensor, target: str, parts: tuple[Tensor, ...], relaxation: tuple[Tensor, ...], trace: _Trace) -> Tensor:
        start = rows.expand(len(parts[0]), -1).unsqueeze(0)
        state = CrownPass(self.graph, self.params, self.boxes32, Choices(), start, target, outward=False, over_box=self.region is None)
        state.relaxations = self.relaxations
        for node in self._walks[target]:
            a = state.coefficients.pop(node.name)
            if node.name in self.rectifiers and isinstance(node, FakeQuant):
                self._quantise(node, a, state, parts, trace)
                continue
            if not isinstance(node, Relu):
                rules_of(node).backward(node, a, state)
                continue
            layer = self.layers[node.name]
            mine = [part[:, layer.columns] for part in (*parts, *relaxation)]
            passed, constant = ReluStep.apply(a[0], *mine, layer, self.masks[node.name], trace)  # type: ignore[no-untyped-call]
            state.constant = state.constant + constant
            state.pass_on(node.inputs[0], passed.unsqueeze(0))
        a = state.coefficients[self.graph.input]
        lowest = self._lowest(a, trace)
        bound: Tensor = state.constant[0] + lowest
        return bound

    def _quantise(self, node: FakeQuant, a: Tensor, state: CrownPass, parts: tuple[Tensor, ...], trace: _Trace) -> None:
        """Passes coefficients through a quantisation of a ReLU, with the ReLU's slopes and splits among `parts`."""
        relu = self.rectifiers[node.name]
        layer = self.layers[relu.name]
        slopes, _, splits = (part[:, layer.columns] for part in parts)
        every = slopes.new_zeros(len(slopes), node.size)
        chosen = (every.index_copy(1, layer.index, part).unsqueeze(0) for part in (slopes, splits))
        pass_rectified(node, relu, a, state, *chosen)
        at = a[0][:, layer.index].detach()
        trace.quantised[relu.name] = trace.quantised[relu.name] + at if relu.name in trace.quantised else at

    def _lowest(self, a: Tensor, trace: _Trace) -> Tensor:
        """Returns the least value of a · x over the region, [R], for coefficients a [1, R, inputs]."""
        if self.region is None:
            lowest: Tensor = Lowest.apply(a[0], self.centre, self.radius, trace)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return lowest
        if a.requires_grad:
            a.register_hook(lambda gradient: setattr(trace, "point", gradient[0]))  # type: ignore[no-untyped-call]
        return self.region.lowest(a, outward=False)[0]


class ReluStep(torch.autograd.Function):
    """Coefficients [R, size] through a ReLU, and what they add to the constant [R]; choices and relaxation are [R, unstable]."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        slopes: Tensor,
        multipliers: Tensor,
        splits: Tensor,
        lower: Tensor,
        upper: Tensor,
        intercept: Tensor,
        layer: ReluLayer,
        active: Tensor,
        trace: _Trace,
    ) -> tuple[Tensor, Tensor]:
        at = a[:, layer.index]
        passed = a * active
        passed[:, layer.index] = torch.where(at > 0, lower, upper) * at - multipliers * splits
        ctx.save_for_backward(at, lower, upper, intercept, splits, active)
        ctx.layer, ctx.trace = layer, trace
        return passed, (at.clamp(max=0) * intercept).sum(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_constant: Tensor) -> tuple[Tensor | None, ...]:
        at, lower, upper, intercept, splits, active = ctx.saved_tensors
        layer: ReluLayer = ctx.layer
        value = grad[:, layer.index]
        ctx.trace.coefficients[layer.node.name], ctx.trace.values[layer.node.name] = at, value
        above = at > 0
        to_a = None
        if ctx.needs_input_grad[0]:
            to_a = grad * active
            to_a[:, layer.index] = torch.where(above, lower * value, upper * value + intercept * grad_constant.unsqueeze(1))
        to_slopes = torch.where(above & (splits == 0), at * value, 0.0)
        return to_a, to_slopes, -splits * value, None, None, None, None, None, None, None


class Lowest(torch.autograd.Function):
    """The least value of a · x over the box, [R], for coefficients a [R, inputs]; its gradient is the point that attains it."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, centre: Tensor, radius: Tensor, trace: _Trace) -> Tensor:
        ctx.save_for_backward(a, centre, radius)
        ctx.trace = trace
        return a @ centre - a.abs() @ radius

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, centre, radius = ctx.saved_tensors
        ctx.trace.point = centre - a.sign() * radius
        return ctx.trace.point * grad.unsqueeze(1), None, None, None
