"""A pass of coefficients from rows of the output back to the input (CROWN: Zhang et al., arXiv 1811.00866); operators have its rules."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.choices import Choices
from vsparse.bounds.relaxation import LinearRelaxation
from vsparse.graph.ir import Graph, Node


def dot(a: Tensor, value: Tensor) -> Tensor:
    """Returns a [batch, rows, size] · value [batch or 1, size] as [batch, rows]."""
    return (a @ value.expand(a.shape[0], -1).unsqueeze(2)).squeeze(2)


class CrownPass:
    """A backward pass under way: rows · z >= Σ coefficients[name] · activation + constant, at every step.

    `coefficients` are [batch, rows, size] by activation; `constant` and `absolute`, the sum of the absolute values of the constant's
    terms, are [batch, rows]; `terms` counts them. `outward` asks for relaxations that hold as computed (docs/numerics.md, section 5.2).
    `relaxations` holds those of curves over these very boxes, where the caller computes them once for many passes. `over_box` says that the
    input may be anywhere in its box, so that nothing is lost where the box of each element is taken alone.
    """

    relaxations: Mapping[str, LinearRelaxation]

    def __init__(
        self,
        graph: Graph,
        params: Mapping[str, Tensor],
        boxes: Mapping[str, Box],
        choices: Choices,
        rows: Tensor,
        start: str,
        outward: bool,
        over_box: bool = False,
    ) -> None:
        self.graph, self.params, self.boxes, self.choices, self.outward = graph, params, boxes, choices, outward
        self.coefficients = {start: rows}
        self.constant, self.absolute = rows.new_zeros(rows.shape[:2]), rows.new_zeros(rows.shape[:2])
        self.terms = 0
        self.relaxations, self.over_box = {}, over_box

    def add(self, a: Tensor, value: Tensor) -> None:
        """Adds the terms a · value to the constant; value is [batch or 1, size], or [batch or 1, rows or 1, size]."""
        product = dot if value.dim() == 2 else _dot_rows
        self.constant = self.constant + product(a, value)
        if self.outward:
            self.absolute = self.absolute + product(a.abs(), value.abs())
            self.terms += a.shape[2]

    def lower_by(self, a: Tensor, value: Tensor) -> None:
        """Adds the terms a · value where a <= 0 and value >= 0, so that their sum is that of their absolute values, negated."""
        product = dot(a, value) if value.dim() == 2 else _dot_rows(a, value)
        self.constant = self.constant + product
        if self.outward:
            self.absolute, self.terms = self.absolute - product, self.terms + a.shape[2]

    def charge(self, cost: Tensor, terms: int) -> None:
        """Lowers the constant by `cost` >= 0 [batch, rows], a sum of so many terms."""
        self.constant, self.absolute, self.terms = self.constant - cost, self.absolute + cost, self.terms + terms

    def dual(self, node: Node, a: Tensor) -> Tensor:
        """Returns the coefficients a [batch, rows, size] of the input z of a relaxed node less its multipliers, and charges the constant.

        For z in [l, u] and p, q >= 0, p·(z − l) and q·(u − z) are not negative, so taking both away leaves a lower bound (weak
        Lagrangian duality; Shi et al., arXiv 2405.21063, section 3.2, for cuts of general nonlinearities).
        """
        multipliers = self.choices.dual(node.name, a)
        if multipliers is None:
            return a
        for m, end, sign in zip(multipliers, self.boxes[node.inputs[0]], (1, -1), strict=True):
            # Where m is zero so is its term, whatever the end.
            value = sign * end.flatten(1).unsqueeze(1)
            self.add(m.expand_as(a), torch.where(torch.isfinite(value) | (m > 0), value, 0.0).expand_as(a))
            a = a - sign * m
        return a

    def pass_on(self, name: str, a: Tensor) -> None:
        """Adds coefficients [batch, rows, size] to those of an activation."""
        self.coefficients[name] = self.coefficients[name] + a if name in self.coefficients else a


def _dot_rows(a: Tensor, value: Tensor) -> Tensor:
    if value.shape[1] == 1:
        return dot(a, value.squeeze(1))
    return (a * value).sum(2)
