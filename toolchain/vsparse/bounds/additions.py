"""Operators whose result is rounded once: one rounding, or one sum with the operators that a runtime may fuse them with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.chain import any_order
from vsparse.bounds.error_model import ErrorModel, OneSum
from vsparse.bounds.float64 import TINY, UNIT64, gamma, magnitude
from vsparse.bounds.linear import INTEGER_ROUNDINGS, sum_rules
from vsparse.graph.ir import Node

# |q| + |zero point| of a quantised activation is below this.
QUANTISED_REACH = 512


def one_rounding(
    node: Node, model: ErrorModel, boxes: Mapping[str, Box], box: Box, size: Tensor, underflow: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Returns E and the magnitude of an operator whose result is rounded once, or summed up with operators it is fused with.

    `size` is the magnitude of its terms, `underflow` what underflow may cost.
    """
    error = model.relative_to_result(magnitude(box) + 16 * UNIT64 * size, size) + underflow
    if model.contract.integers:
        widest = QUANTISED_REACH * sum(model.scales[name] for name in node.inputs)
        error = error + model.storage_unit * (INTEGER_ROUNDINGS * size + 16 * widest)
    if node.name in model.fused:
        together, reach = _fused_error(model, model.fused[node.name], boxes)
        error, size = torch.maximum(error, together), torch.maximum(size, reach)
    return (error + 16 * UNIT64 * size) * (1 + 2.0**-48) + TINY, size + error


def _fused_error(model: ErrorModel, terms: OneSum, boxes: Mapping[str, Box]) -> tuple[Tensor, Tensor]:
    """Returns E and the magnitude of one sum over the terms of affine operators and what is added to them, in any order.

    With N roundings in all, an operator's own error grows from γ_n to at most γ_N/γ_n times itself, as (1+γ_N)/(1+γ_n) <=
    γ_N/γ_n, and each added term loses γ_N of its magnitude; where partial sums are rounded to nearest, N·u(1 + u) stands for γ_N. In the
    unfused execution E is the larger of this and its own.
    """
    accumulate = model.contract.accumulate
    unit, floor = model.sum_unit(), model.floor(accumulate)
    count = sum(model.sums[node.name].terms for node in terms.affine) + float(terms.added + 1)
    grows = any_order if model.contract.rounds_partial_sums else gamma
    growth = torch.tensor([grows(n, unit) for n in torch.as_tensor(count).tolist()], dtype=torch.float64).to(model.device)
    up = 1 + 2.0**-30
    error = size = torch.zeros((), dtype=torch.float64, device=model.device)
    for node in terms.affine:
        rules, one, m = sum_rules(node), model.sums[node.name], magnitude(boxes[node.inputs[0]])
        own = torch.tensor([grows(n, unit) for n in one.terms.tolist()], dtype=torch.float64).to(m.device)
        ratio = rules.per_output(node, torch.where(torch.isfinite(own), growth / own, torch.full_like(own, torch.inf)))
        if one.wide is not None:
            together, reach = rules.error_sums(node, model, m)
            error, size = error + ratio * together, size + reach
            continue
        error = error + ratio * (rules.forward(node, one.error, m) + rules.per_output(node, one.error_constant))
        size = size + rules.forward(node, one.size, m) + rules.per_output(node, one.size_constant)
    others = [magnitude(boxes[name]) for name in terms.values] + [model.params[name].abs() for name in terms.constants]
    for other in others:
        error = error + sum_rules(terms.affine[0]).per_output(terms.affine[0], growth) * other + 3 * floor
        size = size + other
    error, size = error * up, size * up
    if model.contract.storage != accumulate:
        error = error + 2 * model.storage_unit * (size + error) + model.storage_floor
    return error, size
