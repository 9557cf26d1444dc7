"""Operators that only move elements: each output is one element of an input, perhaps negated, or a constant.

The operator's execution is the whole description: every rule is derived from what it does with the elements' own numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from vsparse.bounds.affine_forms import AffineForm, ZonotopePass, aligned
from vsparse.bounds.backward import CrownPass
from vsparse.bounds.ball import Box
from vsparse.bounds.error_model import ErrorModel
from vsparse.bounds.float64 import magnitude
from vsparse.bounds.rules import BoundRules, Params, exact_error, rules_of
from vsparse.graph.execute import apply
from vsparse.graph.ir import Node, Shape

N = TypeVar("N", bound=Node)


class MoveBounds(BoundRules[N]):
    """Rules of a move, exact in every format; a subclass overrides what differs from that, most often nothing.

    `sign` is −1 where the moved elements are negated. An operator that also puts in a constant says which by `constant`, and moves with
    another one in its place by `moved`. `transposed` may be replaced by a faster way to the same numbers (views).
    """

    linear: ClassVar[bool] = True
    sign: ClassVar[int] = 1
    # Whether no element can be moved to several places; where it can, coefficients of these are added up.
    once: ClassVar[bool] = False

    def constant(self, node: N) -> float:
        """Returns the constant that stands where no element is moved to, 0 where there is none."""
        return 0.0

    def moved(self, node: N, constant: float, *inputs: Tensor) -> Tensor:
        """Returns the elements of the inputs [batch, *shape] where the node moves them, with their sign, and `constant` for its own."""
        return apply(node, {}, *inputs)

    def overlap(self, node: N, shapes: Sequence[Shape]) -> int:
        if self.once:
            return 0
        source = element_sources(node, shapes)
        most = int(torch.bincount(source[source >= 0], minlength=1).max())
        return most if most > 1 else 0

    def transposed(self, node: N, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """Returns coefficients a [batch, rows, size] of the outputs, without sign, as those of each input: [batch, rows, its size]."""
        source = element_sources(node, shapes)
        kept = source >= 0
        whole = a.new_zeros(*a.shape[:2], sum(map(prod, shapes)))
        moved = a if bool(kept.all()) else a[:, :, kept.nonzero().flatten().to(a.device)]
        whole.index_add_(2, source[kept].to(a.device), moved)
        return list(torch.split(whole, [prod(shape) for shape in shapes], dim=2))

    def interval(self, node: N, params: Params, inputs: list[Box]) -> Box:
        lower, upper = (apply(node, params, *ends) for ends in zip(*inputs, strict=True))
        return (lower, upper) if self.sign > 0 else (upper, lower)

    def backward(self, node: N, a: Tensor, state: CrownPass) -> None:
        shapes = [state.graph.shape_of(name) for name in node.inputs]
        if (constant := self.constant(node)) != 0:
            state.add(a, self.moved(node, constant, *(a.new_zeros(1, *shape) for shape in shapes)).flatten(1))
        for name, part in zip(node.inputs, self.transposed(node, a, shapes), strict=True):
            state.pass_on(name, part if self.sign > 0 else -part)

    def zonotope(self, node: N, inputs: list[AffineForm], box: Box, state: ZonotopePass) -> AffineForm:
        parts = aligned([form.symbols for form in inputs])
        count = parts[0].shape[1]
        symbols = self.moved(node, 0.0, *(part.flatten(0, 1) for part in parts))
        rest, spread = (self._sizes(node, *values) for values in zip(*((form.rest, form.spread) for form in inputs), strict=True))
        centre = self.moved(node, self.constant(node), *(form.centre for form in inputs))
        return AffineForm(centre, symbols.view(len(centre), count, *symbols.shape[1:]), rest, spread)

    def error(self, node: N, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        """Exact, but for a constant that the storage format does not hold."""
        inexact = model.constant_error(self.constant(node))
        if inexact == 0:
            return exact_error(box)
        nothing = (torch.zeros_like(boxes[name][0]) for name in node.inputs)
        error = self.moved(node, inexact, *nothing)
        return error, magnitude(box) + error

    def _sizes(self, node: N, *inputs: Tensor) -> Tensor:
        """Returns what is no value but a size of one, moved: without the sign, and 0 for the constant."""
        value = self.moved(node, 0.0, *inputs)
        return value if self.sign > 0 else -value


def move_rules(node: Node) -> MoveBounds[Node]:
    """Returns the rules of a node that moves elements."""
    rules = rules_of(node)
    assert isinstance(rules, MoveBounds), node
    return rules


def element_sources(node: Node, shapes: Sequence[Shape]) -> Tensor:
    """Returns where each element of a node's output comes from, int64 [size]: its number among the elements of all inputs, −1 a constant.

    `shapes` are those of the inputs. Elements are numbered row-major, those of the second input after those of the first, and so on.
    """
    starts = [sum(map(prod, shapes[:i])) for i in range(len(shapes))]
    numbers = [
        torch.arange(start + 1, start + 1 + prod(shape), dtype=torch.float64).view(1, *shape)
        for start, shape in zip(starts, shapes, strict=True)
    ]
    return move_rules(node).moved(node, 0.0, *numbers).abs().flatten().to(torch.int64) - 1
