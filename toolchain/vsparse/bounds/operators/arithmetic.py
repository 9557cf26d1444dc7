"""Sub, Neg and division by a constant: linear, with one rounding each, or none."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import torch
from torch import Tensor

from vsparse.bounds.backward import Pass, backward
from vsparse.bounds.ball import Box
from vsparse.bounds.interval import Params, propagate
from vsparse.bounds.rounding import TINY, UNIT64, Rounding, gamma, magnitude, operator_error
from vsparse.contract import LARGEST, SMALLEST_NORMAL
from vsparse.graph.ir import DivConstant, Neg, Sub


@propagate.register
def _(node: Sub, params: Params, inputs: list[Box]) -> Box:
    (first_lower, first_upper), (second_lower, second_upper) = inputs
    return first_lower - second_upper, first_upper - second_lower


@propagate.register
def _(node: Neg, params: Params, inputs: list[Box]) -> Box:
    return -inputs[0][1], -inputs[0][0]


@propagate.register
def _(node: DivConstant, params: Params, inputs: list[Box]) -> Box:
    one, other = (end / params[node.constant] for end in inputs[0])
    return torch.minimum(one, other), torch.maximum(one, other)


@backward.register
def _(node: Sub, a: Tensor, state: Pass) -> None:
    state.pass_on(node.inputs[0], a)
    state.pass_on(node.inputs[1], -a)


@backward.register
def _(node: Neg, a: Tensor, state: Pass) -> None:
    state.pass_on(node.inputs[0], -a)


@backward.register
def _(node: DivConstant, a: Tensor, state: Pass) -> None:
    state.pass_on(node.inputs[0], a / state.params[node.constant].expand(node.shape).reshape(1, 1, -1))


@operator_error.register
def _(node: Sub, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    size = magnitude(boxes[node.inputs[0]]) + magnitude(boxes[node.inputs[1]])
    return rounding.one_rounding(node, boxes, box, size, 3 * rounding.storage_floor)


@operator_error.register
def _(node: Neg, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    out = magnitude(box)
    return torch.zeros_like(out), out


@operator_error.register
def _(node: DivConstant, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    """One rounding of x / c; and that of x · fl(1/c) too, which some kernels compute: two, one more where storage is another format.

    |fl(x·fl(1/c)) − x/c| <= γ_2·|x/c| + (1 + u)·η·|x| + η, and η/|c| more where a subnormal x is read as zero. A divisor that may be
    flushed to zero, or whose reciprocal overflows, costs everything.
    """
    m, divisor = magnitude(boxes[node.inputs[0]]), rounding.params[node.constant].abs()
    contract, floor = rounding.contract, rounding.storage_floor
    size = m / divisor
    if contract.exact:
        return 16 * UNIT64 * size + TINY, torch.maximum(m, size)
    roundings = 2 + (contract.storage != contract.accumulate)
    error = gamma(roundings, rounding.storage_unit) * size + 2 * floor * (m + 1 + 1 / divisor)
    unusable = 1 / divisor >= LARGEST[contract.storage] / 2
    if contract.subnormals == "flush":
        unusable = unusable | (divisor < SMALLEST_NORMAL[contract.storage])
    error = torch.where(unusable.expand_as(error), inf, error)
    return (error + 16 * UNIT64 * size) * (1 + 2.0**-48) + TINY, torch.maximum(m, size) + error
