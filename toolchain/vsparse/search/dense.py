"""The relaxed network as two matrices: how each unstable unit depends on the input and on the unstable units before it.

Over a small region most ReLUs are stable, and between unstable ones a network of linear operators is one affine map. With

    z = c + A·x + B·h,   h the outputs of the unstable units, B strictly lower triangular by layers,

a bound of hundreds of rows is one product with A and one with B, and its gradient one with each transposed. It is the same number as
`GraphRelaxation` computes, up to float32's rounding, many times faster where a network is large and few of its units are unstable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vsparse.bounds.backward import CrownPass
from vsparse.bounds.ball import Box
from vsparse.bounds.choices import Choices
from vsparse.bounds.crown import ancestors
from vsparse.bounds.rules import rules_of
from vsparse.compute_device import reading_back
from vsparse.graph.ir import Graph, Relu
from vsparse.search.relaxed import Choice, Evaluation, Relaxation

# Rows are made into forms in pieces that need about this much memory.
FORM_BYTES = 2**27


@dataclass(frozen=True)
class AffineRows:
    """Rows as affine functions of the input, scaled to its box, and of the unstable units' outputs: float32 [R, n], [R, U], [R]."""

    inputs: Tensor
    units: Tensor
    constant: Tensor

    def __getitem__(self, index: Tensor | slice) -> AffineRows:
        return AffineRows(self.inputs[index], self.units[index], self.constant[index])

    def __neg__(self) -> AffineRows:
        return AffineRows(-self.inputs, -self.units, -self.constant)


def applies(graph: Graph) -> bool:
    """Returns whether every operator other than ReLU is linear."""
    return all(rules_of(node).linear or isinstance(node, Relu) for node in graph.nodes)


def _equal(one: Tensor, other: Tensor) -> bool:
    with reading_back("whether a layer has changed"):
        return torch.equal(one, other)


class DenseRelaxation(Relaxation):
    """Evaluation by matrices; `params` are float64, as the maps are composed in float64 before they are rounded.

    `earlier` is the relaxation of the same network over the same input box with wider boxes: layers that have not changed are reused.
    """

    inputs: Tensor
    couplings: Tensor
    constants: Tensor

    def __init__(
        self, graph: Graph, params: Mapping[str, Tensor], box: Box, boxes: Mapping[str, Box], earlier: DenseRelaxation | None = None
    ) -> None:
        super().__init__(graph, box, boxes)
        self.params = params
        lower, upper = (end.flatten().to(torch.float64) for end in box)
        centre, radius = (upper + lower) / 2, (upper - lower) / 2
        # Inputs that cannot move are part of the constant.
        with reading_back("which inputs move"):
            self.moving = (radius > 0).nonzero().flatten()
        self.centre, self.radius = centre, radius[self.moving]
        forms = []
        same = True
        for layer in self.layers.values():
            old = earlier.layers[layer.node.name] if earlier is not None and same else None
            same = old is not None and _equal(old.index, layer.index) and _equal(old.active, layer.active)
            if not len(layer.index):
                continue
            if earlier is not None and old is not None:
                # The layers before have not changed; of this one some units may have become stable.
                kept = torch.searchsorted(old.index, layer.index) + old.columns.start
                units = torch.zeros(len(kept), len(self.units), device=self.device)
                units[:, : layer.columns.start] = earlier.couplings[kept, : layer.columns.start]
                forms.append(AffineRows(earlier.inputs[kept], units, earlier.constants[kept]))
                continue
            rows = torch.zeros(len(layer.index), layer.node.size, dtype=torch.float64, device=self.device)
            rows.scatter_(1, layer.index.unsqueeze(1), 1.0)
            forms.append(self.form(rows, layer.node.inputs[0]))
        count = len(self.units)
        nothing = AffineRows(*(torch.zeros(0, *size, device=self.device) for size in ((len(self.moving),), (count,), ())))
        forms = forms or [nothing]
        self.inputs = torch.cat([form.inputs for form in forms])
        self.couplings = torch.cat([form.units for form in forms])
        self.constants = torch.cat([form.constant for form in forms])
        self.row_bytes = 4 * (4 * len(self.moving) + 20 * count)

    def form(self, rows: Tensor, target: str | None = None) -> AffineRows:
        """Returns rows [R, K] of an activation (default: the output) as affine functions of input and unstable units."""
        target = target or self.graph.output
        step = max(1, FORM_BYTES // (32 * sum(node.size for node in self.graph.nodes)))
        parts = [self._form(part.to(torch.float64), target) for part in torch.split(rows, step)]
        return AffineRows(*(torch.cat([getattr(part, name) for part in parts]) for name in ("inputs", "units", "constant")))

    def _form(self, rows: Tensor, target: str) -> AffineRows:
        units = torch.zeros(len(rows), len(self.units), dtype=torch.float64, device=self.device)
        state = CrownPass(self.graph, self.params, self.boxes, Choices(), rows.unsqueeze(0), target, outward=False)
        for node in ancestors(self.graph, target):
            a = state.coefficients.pop(node.name)
            if isinstance(node, Relu):
                layer = self.layers[node.name]
                units[:, layer.columns] = a[0][:, layer.index]
                passed = a * layer.active
                passed[:, :, layer.index] = 0.0
                state.pass_on(node.inputs[0], passed)
            else:
                rules_of(node).backward(node, a, state)
        a = state.coefficients[self.graph.input][0]
        constant = state.constant[0] + a @ self.centre
        return AffineRows((a[:, self.moving] * self.radius).float(), units.float(), constant.float())

    def evaluate(self, form: AffineRows, choice: Choice, gradient: bool) -> Evaluation:
        """Returns lower bounds for the rows of a form (as many as the choice has, or one for all) under a choice."""
        lower, upper, intercept = self.relaxation(choice)
        count = len(choice)
        coefficients = form.units.expand(count, -1).clone()
        passed = choice.multipliers * choice.splits
        used: list[slice] = []
        for layer in reversed(self.layers.values()):
            columns = layer.columns
            if columns.start == columns.stop:
                continue
            used.append(columns)
            at = coefficients[:, columns]
            passed[:, columns] = torch.where(at > 0, lower[:, columns], upper[:, columns]) * at - passed[:, columns]
            if columns.start:
                coefficients[:, : columns.start].addmm_(passed[:, columns], self.couplings[columns, : columns.start])
        reach = torch.addmm(form.inputs, passed, self.inputs)
        constant = form.constant + (coefficients.clamp(max=0) * intercept).sum(1) + passed @ self.constants
        bound = constant - reach.abs().sum(1)
        if not gradient:
            return Evaluation(bound)
        corner = reach.sign_()
        values = torch.addmm(self.constants, corner, self.inputs.T, alpha=-1)
        above = coefficients > 0
        slope, offset = torch.where(above, lower, upper), intercept * ~above
        outputs = torch.empty_like(values)
        for columns in reversed(used):
            value = values[:, columns]
            if columns.start:
                value.addmm_(outputs[:, : columns.start], self.couplings[columns, : columns.start].T)
            torch.addcmul(offset[:, columns], slope[:, columns], value, out=outputs[:, columns])
        free = choice.splits == 0
        return Evaluation(bound, coefficients * values * (above & free), -choice.splits * values, coefficients, values, corner)

    def points(self, corner: Tensor) -> Tensor:
        """Returns the inputs [R, n] in float64 that the corners of an evaluation stand for."""
        x = self.centre.repeat(len(corner), 1)
        x[:, self.moving] -= corner.to(torch.float64) * self.radius
        return x
