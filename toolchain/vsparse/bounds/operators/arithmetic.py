"""Sums, differences, negation, products and quotients with constants: linear, with one rounding each, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from vsparse.bounds.additions import one_rounding
from vsparse.bounds.affine_forms import UP, AffineForm, ZonotopePass, aligned, spread_of
from vsparse.bounds.backward import CrownPass
from vsparse.bounds.ball import Box
from vsparse.bounds.element_moves import MoveBounds
from vsparse.bounds.error_model import ErrorModel
from vsparse.bounds.float64 import TINY, UNIT64, gamma, magnitude
from vsparse.bounds.monotone import Monotone
from vsparse.bounds.rules import BoundRules, Params, register
from vsparse.bounds.scaled import scaled
from vsparse.contract import LARGEST, SMALLEST_NORMAL
from vsparse.graph.ir import Add, AddConstant, DivConstant, MulConstant, Neg, Node, Shape, Sub

N = TypeVar("N", bound=Node)


class _Pair(BoundRules[N]):
    """The sum of one activation and `sign` times another."""

    linear = True
    in_sums = "adds"
    sign: ClassVar[int] = 1

    def backward(self, node: N, a: Tensor, state: CrownPass) -> None:
        state.pass_on(node.inputs[0], a)
        state.pass_on(node.inputs[1], a if self.sign > 0 else -a)

    def zonotope(self, node: N, inputs: list[AffineForm], box: Box, state: ZonotopePass) -> AffineForm:
        a, b = inputs
        first, second = aligned([a.symbols, b.symbols])
        symbols = first + self.sign * second
        rest = (a.rest + b.rest) * UP + (a.reach + b.reach) * (8 * UNIT64) + TINY
        return AffineForm(a.centre + self.sign * b.centre, symbols, rest, spread_of(symbols))

    def error(self, node: N, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        size = magnitude(boxes[node.inputs[0]]) + magnitude(boxes[node.inputs[1]])
        return one_rounding(node, model, boxes, box, size, 3 * model.storage_floor)


@register(Add)
class AddBounds(Monotone[Add], _Pair[Add]):
    """a + b."""


@register(Sub)
class SubBounds(_Pair[Sub]):
    """a − b."""

    sign = -1

    def interval(self, node: Sub, params: Params, inputs: list[Box]) -> Box:
        (first_lower, first_upper), (second_lower, second_upper) = inputs
        return first_lower - second_upper, first_upper - second_lower


@register(Neg)
class NegBounds(MoveBounds[Neg]):
    """−x: every element stays where it is, negated."""

    in_sums = "passes"
    sign = -1
    once = True

    def transposed(self, node: Neg, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return [a]


@register(AddConstant)
class AddConstantBounds(Monotone[AddConstant]):
    """x + c."""

    linear = True
    in_sums = "adds"

    def backward(self, node: AddConstant, a: Tensor, state: CrownPass) -> None:
        state.add(a, state.params[node.constant].expand(node.shape).reshape(1, -1))
        state.pass_on(node.inputs[0], a)

    def zonotope(self, node: AddConstant, inputs: list[AffineForm], box: Box, state: ZonotopePass) -> AffineForm:
        (form,), constant = inputs, state.params[node.constant]
        rest = form.rest * UP + (form.centre.abs() + constant.abs()) * (8 * UNIT64) + TINY
        return replace(form, centre=form.centre + constant, rest=rest)

    def error(self, node: AddConstant, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        size = magnitude(boxes[node.inputs[0]]) + model.params[node.constant].abs()
        return one_rounding(node, model, boxes, box, size, 3 * model.storage_floor)


@register(MulConstant)
class MulConstantBounds(BoundRules[MulConstant]):
    """x · c."""

    linear = True

    def interval(self, node: MulConstant, params: Params, inputs: list[Box]) -> Box:
        return scaled(params[node.constant], None, *inputs[0])

    def backward(self, node: MulConstant, a: Tensor, state: CrownPass) -> None:
        state.pass_on(node.inputs[0], a * state.params[node.constant].expand(node.shape).reshape(1, 1, -1))

    def zonotope(self, node: MulConstant, inputs: list[AffineForm], box: Box, state: ZonotopePass) -> AffineForm:
        (form,), constant = inputs, state.params[node.constant]
        rest = form.rest * constant.abs() * UP + (form.reach * constant.abs()) * (8 * UNIT64) + TINY
        return AffineForm(form.centre * constant, form.symbols * constant, rest, form.spread * constant.abs() * UP)

    def error(self, node: MulConstant, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        m, constant = magnitude(boxes[node.inputs[0]]), model.params[node.constant].abs()
        return one_rounding(node, model, boxes, box, m * constant, model.storage_floor * (m + constant + 2))


@register(DivConstant)
class DivConstantBounds(BoundRules[DivConstant]):
    """x / c, as a division or as a product with the reciprocal."""

    linear = True

    def interval(self, node: DivConstant, params: Params, inputs: list[Box]) -> Box:
        one, other = (end / params[node.constant] for end in inputs[0])
        return torch.minimum(one, other), torch.maximum(one, other)

    def backward(self, node: DivConstant, a: Tensor, state: CrownPass) -> None:
        state.pass_on(node.inputs[0], a / state.params[node.constant].expand(node.shape).reshape(1, 1, -1))

    def zonotope(self, node: DivConstant, inputs: list[AffineForm], box: Box, state: ZonotopePass) -> AffineForm:
        (form,), divisor = inputs, state.params[node.constant]
        size = divisor.abs()
        rest = form.rest / size * UP + form.reach / size * (8 * UNIT64) + TINY
        return AffineForm(form.centre / divisor, form.symbols / divisor, rest, form.spread / size * UP)

    def error(self, node: DivConstant, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        """One rounding of x / c; and that of x · fl(1/c) too, which some kernels compute: two, one more where storage is another format.

        |fl(x·fl(1/c)) − x/c| <= γ_2·|x/c| + (1 + u)·η·|x| + η, and η/|c| more where a subnormal x is read as zero. A divisor that may be
        flushed to zero, or whose reciprocal overflows, costs everything.
        """
        m, divisor = magnitude(boxes[node.inputs[0]]), model.params[node.constant].abs()
        contract, floor = model.contract, model.storage_floor
        size = m / divisor
        if contract.exact:
            return 16 * UNIT64 * size + TINY, torch.maximum(m, size)
        roundings = 2 + (contract.storage != contract.accumulate)
        error = gamma(roundings, model.storage_unit) * size + 2 * floor * (m + 1 + 1 / divisor)
        unusable = 1 / divisor >= LARGEST[contract.storage] / 2
        if contract.subnormals == "flush":
            unusable = unusable | (divisor < SMALLEST_NORMAL[contract.storage])
        error = torch.where(unusable.expand_as(error), inf, error)
        return (error + 16 * UNIT64 * size) * (1 + 2.0**-48) + TINY, torch.maximum(m, size) + error
