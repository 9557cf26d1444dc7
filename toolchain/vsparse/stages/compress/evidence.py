"""Evidence that two graphs compute the same: exact rationals on a few inputs, float32 as executed on many, against its bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.graph.execute import apply, run
from vsparse.graph.ir import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    Clip,
    Conv,
    DivConstant,
    Graph,
    LeakyRelu,
    MulConstant,
    Neg,
    Node,
    Pad,
    Sigmoid,
    Sub,
    Tanh,
)
from vsparse.stages.compress.merge import Perturbation
from vsparse.stages.compress.rational import evaluate, has_exact_values

RATIONAL_BUDGET = 20_000_000  # multiply-accumulates in rational arithmetic: a few seconds
BATCH = 64
DOUBLE_INPUTS = 16


@dataclass(frozen=True)
class Arithmetic:
    """A floating-point format that both networks are run in: its unit roundoff and smallest normal number."""

    dtype: torch.dtype
    unit_roundoff: float
    smallest_normal: float


FLOAT32 = Arithmetic(torch.float32, 2.0**-24, 2.0**-126)
FLOAT64 = Arithmetic(torch.float64, 2.0**-53, 2.0**-1022)


@dataclass(frozen=True)
class Evidence:
    """What was compared, and how it came out.

    `rational_inputs` inputs gave exactly equal outputs in rational arithmetic (before merging, with unrounded biases).
    In float32 `max_difference` is the largest difference of any output over `float_inputs` inputs, `identical` of the
    `outputs` values were the same, and `bound` is what the rounding of both networks allows at the worst compared value;
    `within_bound` says that no value broke its own bound, in float32 nor in float64. The `double` pair is the same in
    float64 on a few inputs, where the bound is some nine digits smaller and so sees smaller defects.
    """

    rational_inputs: int
    rational_equal: bool
    float_inputs: int
    outputs: int
    identical: int
    max_difference: float
    bound: float
    double_difference: float
    double_bound: float
    within_bound: bool


def _nonzero_macs(graph: Graph) -> int:
    macs = 0
    for node in graph.nodes:
        if isinstance(node, Affine):
            positions = prod(node.shape[1:]) if isinstance(node, Conv) else 1
            macs += int(np.count_nonzero(graph.params[node.weight])) * positions
    return macs


def rational_check(
    before: Graph, after: Graph, biases: dict[str, list[Fraction]], inputs: NDArray[np.float32], limit: int
) -> tuple[int, bool]:
    """Returns how many inputs were evaluated (at most `limit`, fewer when the network is large, none
    where it has operators without rational values) and whether all outputs were equal."""
    if not has_exact_values(before):
        return 0, True
    cost = max(1, _nonzero_macs(before) + _nonzero_macs(after))
    count = min(limit, len(inputs), RATIONAL_BUDGET // cost)
    equal = all(evaluate(before, inputs[i]) == evaluate(after, inputs[i], biases) for i in range(count))
    return count, equal


def _gamma(n: Tensor, u: float) -> Tensor:
    """γ_n = n·u / (1 − n·u) (Higham 2002, lemma 3.1); infinite where n·u ≥ 1."""
    product = n * u
    return torch.where(product < 1, product / (1 - product), torch.inf)


def _node_error(
    graph: Graph,
    node: Node,
    inputs: list[Tensor],
    output: Tensor,
    errors: list[Tensor],
    perturbation: Perturbation | None,
    arithmetic: Arithmetic,
) -> Tensor:
    """Returns |computed − exact| after a node, given computed values and the errors of its inputs (docs/numerics.md, section 3.1)."""
    u, tiny = arithmetic.unit_roundoff, arithmetic.smallest_normal
    if isinstance(node, Affine):
        weight = torch.tensor(graph.params[node.weight]).double().abs()
        bias = torch.zeros(len(weight), dtype=torch.float64) if node.bias is None else torch.tensor(graph.params[node.bias]).double().abs()
        column = (-1, *(1 for _ in node.shape[1:]))
        terms = (weight != 0).flatten(1).sum(1).double().reshape(column)
        absolute = {node.weight: weight, **({} if node.bias is None else {node.bias: bias})}
        magnitude = apply(node, absolute, inputs[0].abs())
        zero_bias = {**absolute, **({} if node.bias is None else {node.bias: torch.zeros_like(bias)})}
        error = apply(node, zero_bias, errors[0]) + _gamma(terms + 1, u) * magnitude + 2 * (terms + 1) * tiny
        if perturbation is not None:
            moved = {node.weight: torch.from_numpy(perturbation.weight)}
            if node.bias is not None:
                moved[node.bias] = torch.from_numpy(perturbation.bias)
            error = error + apply(node, moved, inputs[0].abs() + errors[0])
        return error
    rounding = u * output.abs() * 1.001 + tiny
    if isinstance(node, Add | Sub):
        return errors[0] + errors[1] + rounding
    if isinstance(node, AddConstant):
        return errors[0] + rounding
    if isinstance(node, MulConstant):
        return errors[0] * torch.tensor(graph.params[node.constant]).double().abs() + rounding
    if isinstance(node, AveragePool):
        terms = torch.tensor(float(prod(node.kernel)))
        return apply(node, {}, errors[0]) + _gamma(terms + 1, u) * apply(node, {}, inputs[0].abs()) + tiny
    if isinstance(node, DivConstant):
        return errors[0] / torch.tensor(graph.params[node.constant]).double().abs() + rounding
    if isinstance(node, Neg | Clip):
        return errors[0]
    if isinstance(node, LeakyRelu):
        return errors[0] + rounding
    if isinstance(node, Sigmoid | Tanh):
        # Slopes are at most 1. torch's functions are far closer than 2^-20 in float32, and than 2^-44 in float64.
        return errors[0] + (2.0**-20 if arithmetic is FLOAT32 else 2.0**-44)
    if isinstance(node, Pad):
        return apply(replace(node, value=0.0), {}, *errors)
    return apply(node, {}, *errors)  # ReLU, max pool and moves of data round nothing and pass the largest error on


def execution_error(graph: Graph, x: Tensor, perturbations: dict[str, Perturbation], arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
    """Returns the outputs [batch, *shape] for x in an arithmetic, as float64, and a bound of their distance from exact arithmetic.

    A running error analysis (Higham 2002, section 3.3): each operator adds its own rounding, and affine operators carry
    the error of their input through |W|.
    """
    values = run(graph, graph.tensors(arithmetic.dtype), x.to(arithmetic.dtype), keep=True)
    doubles = {name: value.double() for name, value in values.items()}
    errors = {graph.input: torch.zeros_like(doubles[graph.input])}
    for node in graph.nodes:
        inputs, carried = [doubles[name] for name in node.inputs], [errors[name] for name in node.inputs]
        error = _node_error(graph, node, inputs, doubles[node.name], carried, perturbations.get(node.name), arithmetic)
        errors[node.name] = error * (1 + 1e-9)  # covers the rounding of this analysis, which runs in float64
    return doubles[graph.output], errors[graph.output]


@dataclass(frozen=True)
class _Difference:
    identical: int
    worst: float
    bound: float
    within: bool


@torch.no_grad()
def _difference(
    before: Graph, after: Graph, inputs: NDArray[np.float32], moved: dict[str, Perturbation], arithmetic: Arithmetic
) -> _Difference:
    identical, worst, bound, within = 0, 0.0, 0.0, True
    for start in range(0, len(inputs), BATCH):
        x = torch.tensor(inputs[start : start + BATCH])
        y0, e0 = execution_error(before, x, {}, arithmetic)
        y1, e1 = execution_error(after, x, moved, arithmetic)
        difference = (y0 - y1).abs()
        identical += int((difference == 0).sum())
        worst = max(worst, float(difference.max()))
        bound = max(bound, float((e0 + e1).max()))
        # One unit roundoff for this subtraction in float64; False for NaN.
        within = within and bool((difference * (1 - 2.0**-52) <= e0 + e1).all())
    return _Difference(identical, worst, bound, within)


def compare(
    before: Graph,
    after: Graph,
    inputs: NDArray[np.float32],
    rational: tuple[int, bool],
    perturbations: dict[str, Perturbation],
) -> Evidence:
    """Returns the evidence for `inputs` [n, *input_shape] float32; n may be 0, which is then no evidence in floating point."""
    single = _difference(before, after, inputs, perturbations, FLOAT32)
    double = _difference(before, after, inputs[-DOUBLE_INPUTS:], perturbations, FLOAT64)
    outputs = len(inputs) * prod(before.shape_of(before.output))
    within = single.within and double.within
    return Evidence(
        *rational, len(inputs), outputs, single.identical, single.worst, single.bound, double.worst, double.bound, within_bound=within
    )
