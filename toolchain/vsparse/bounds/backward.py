"""One rule for each operator: how a row of coefficients passes from its output to its inputs (CROWN: Zhang et al., arXiv 1811.00866)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.choices import Choices
from vsparse.bounds.interval import Params
from vsparse.bounds.linear import per_output, pool_weight, transposed
from vsparse.bounds.relaxation import maxpool_choice, relu_lines, scatter_to_input
from vsparse.errors import InputError
from vsparse.graph.ir import Add, AddConstant, Affine, AveragePool, Graph, MaxPool, MulConstant, Node, Relu, Reshape


def dot(a: Tensor, value: Tensor) -> Tensor:
    """Returns a [batch, rows, size] · value [batch or 1, size] as [batch, rows]."""
    return (a @ value.expand(a.shape[0], -1).unsqueeze(2)).squeeze(2)


class Pass:
    """A backward pass under way: rows · z >= Σ coefficients[name] · activation + constant, at every step.

    `coefficients` are [batch, rows, size] by activation; `constant` and `absolute`, the sum of the absolute values of the constant's
    terms, are [batch, rows]; `terms` counts them. `outward` asks for relaxations that hold as computed (docs/numerics.md, section 5.2).
    `drawn` holds lines of curves over these very boxes, where the caller draws them once for many passes.
    """

    drawn: Mapping[str, tuple[Tensor, Tensor, Tensor, Tensor]]

    def __init__(
        self, graph: Graph, params: Params, boxes: Mapping[str, Box], choices: Choices, rows: Tensor, start: str, outward: bool
    ) -> None:
        self.graph, self.params, self.boxes, self.choices, self.outward = graph, params, boxes, choices, outward
        self.coefficients = {start: rows}
        self.constant, self.absolute = rows.new_zeros(rows.shape[:2]), rows.new_zeros(rows.shape[:2])
        self.terms = 0
        self.drawn = {}

    def add(self, a: Tensor, value: Tensor) -> None:
        """Adds the terms a · value to the constant; value is [batch or 1, size], or [batch or 1, rows or 1, size]."""
        product = dot if value.dim() == 2 else _dot_rows
        self.constant = self.constant + product(a, value)
        if self.outward:
            self.absolute = self.absolute + product(a.abs(), value.abs())
            self.terms += a.shape[2]

    def lose(self, cost: Tensor, terms: int) -> None:
        """Lowers the constant by `cost` >= 0 [batch, rows], a sum of so many terms."""
        self.constant, self.absolute, self.terms = self.constant - cost, self.absolute + cost, self.terms + terms

    def dual(self, node: Node, a: Tensor) -> Tensor:
        """Returns the coefficients a [batch, rows, size] of the input z of a relaxed node less its multipliers, and pays for them.

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


@singledispatch
def backward(node: Node, a: Tensor, state: Pass) -> None:
    """Passes the coefficients a [batch, rows, size] of a node's output on to its inputs; InputError for an unknown node type."""
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, through which no linear bound is known')


@backward.register
def _(node: Affine | AveragePool, a: Tensor, state: Pass) -> None:
    source = node.inputs[0]
    shape = state.graph.shape_of(source)
    if isinstance(node, AveragePool):
        weight = pool_weight(node, shape[0], a) / (node.kernel[0] * node.kernel[1])
    else:
        weight = state.params[node.weight]
        if node.bias is not None:
            state.add(a, per_output(node, state.params[node.bias]).expand(node.shape).reshape(1, -1))
    batch, count = a.shape[:2]
    state.pass_on(source, transposed(node, weight, a.reshape(batch * count, *node.shape), shape).reshape(batch, count, -1))


@backward.register
def _(node: Relu, a: Tensor, state: Pass) -> None:
    source = node.inputs[0]
    lower, upper, intercept = state.choices.lines(node.name, relu_lines(*state.boxes[source], state.outward), a)
    below = a.clamp(max=0)
    state.add(below, intercept)
    passed = torch.addcmul(a * lower, below, upper - lower)
    multiplier = state.choices.multiplier(node.name, a)
    state.pass_on(source, state.dual(node, passed if multiplier is None else passed - multiplier))


@backward.register
def _(node: MaxPool, a: Tensor, state: Pass) -> None:
    source = node.inputs[0]
    index, exact, top = maxpool_choice(node, state.boxes[source])
    chosen = torch.where(exact.unsqueeze(1), a, a.clamp(min=0))
    state.add(a.clamp(max=0), torch.where(exact, torch.zeros_like(top), top))
    state.pass_on(source, scatter_to_input(node, chosen, index, state.graph.shape_of(source)))


@backward.register
def _(node: Add, a: Tensor, state: Pass) -> None:
    for source in node.inputs:
        state.pass_on(source, a)


@backward.register
def _(node: AddConstant, a: Tensor, state: Pass) -> None:
    state.add(a, state.params[node.constant].expand(node.shape).reshape(1, -1))
    state.pass_on(node.inputs[0], a)


@backward.register
def _(node: MulConstant, a: Tensor, state: Pass) -> None:
    state.pass_on(node.inputs[0], a * state.params[node.constant].expand(node.shape).reshape(1, 1, -1))


@backward.register
def _(node: Reshape, a: Tensor, state: Pass) -> None:
    state.pass_on(node.inputs[0], a)
