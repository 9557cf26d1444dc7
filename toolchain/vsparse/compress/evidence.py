"""Evidence that two graphs compute the same: exact rationals on a few inputs, float32 as executed on many, against its bound."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.compress.merge import Perturbation
from vsparse.compress.rational import evaluate
from vsparse.graph.execute import apply, run
from vsparse.graph.ir import Add, AddConstant, Affine, AveragePool, Conv, Graph, MulConstant, Node

UNIT_ROUNDOFF = 2.0**-24
SMALLEST_NORMAL = 2.0**-126
RATIONAL_BUDGET = 20_000_000  # multiply-accumulates in rational arithmetic: a few seconds
BATCH = 64


@dataclass(frozen=True)
class Evidence:
    """What was compared, and how it came out.

    `rational_inputs` inputs gave exactly equal outputs in rational arithmetic (before merging, with unrounded biases).
    In float32 `max_difference` is the largest difference of any output over `float_inputs` inputs, `identical` of the
    `outputs` values were the same, and `bound` is what the rounding of both networks allows at the worst compared value;
    `within_bound` says that no value broke its own bound.
    """

    rational_inputs: int
    rational_equal: bool
    float_inputs: int
    outputs: int
    identical: int
    max_difference: float
    bound: float
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
    """Returns how many inputs were evaluated (at most `limit`, fewer when the network is large) and whether all outputs were equal."""
    cost = max(1, _nonzero_macs(before) + _nonzero_macs(after))
    count = min(limit, len(inputs), RATIONAL_BUDGET // cost)
    equal = all(evaluate(before, inputs[i]) == evaluate(after, inputs[i], biases) for i in range(count))
    return count, equal


def _gamma(n: Tensor) -> Tensor:
    """γ_n = n·u / (1 − n·u) (Higham 2002, lemma 3.1); infinite where n·u ≥ 1."""
    product = n * UNIT_ROUNDOFF
    return torch.where(product < 1, product / (1 - product), torch.inf)


def _node_error(
    graph: Graph, node: Node, inputs: list[Tensor], output: Tensor, errors: list[Tensor], perturbation: Perturbation | None
) -> Tensor:
    """Returns |computed − exact| after a node, given computed values and the errors of its inputs (NUMERICS 2)."""
    if isinstance(node, Affine):
        weight = torch.from_numpy(graph.params[node.weight]).double().abs()
        bias = (
            torch.zeros(len(weight), dtype=torch.float64) if node.bias is None else torch.from_numpy(graph.params[node.bias]).double().abs()
        )
        column = (-1, *(1 for _ in node.shape[1:]))
        terms = (weight != 0).flatten(1).sum(1).double().reshape(column)
        absolute = {node.weight: weight, **({} if node.bias is None else {node.bias: bias})}
        magnitude = apply(node, absolute, inputs[0].abs())
        zero_bias = {**absolute, **({} if node.bias is None else {node.bias: torch.zeros_like(bias)})}
        error = apply(node, zero_bias, errors[0]) + _gamma(terms + 1) * magnitude + 2 * (terms + 1) * SMALLEST_NORMAL
        if perturbation is not None:
            moved = {node.weight: torch.from_numpy(perturbation.weight)}
            if node.bias is not None:
                moved[node.bias] = torch.from_numpy(perturbation.bias)
            error = error + apply(node, moved, inputs[0].abs() + errors[0])
        return error
    rounding = UNIT_ROUNDOFF * output.abs() * 1.001 + SMALLEST_NORMAL
    if isinstance(node, Add):
        return errors[0] + errors[1] + rounding
    if isinstance(node, AddConstant):
        return errors[0] + rounding
    if isinstance(node, MulConstant):
        return errors[0] * torch.from_numpy(graph.params[node.constant]).double().abs() + rounding
    if isinstance(node, AveragePool):
        terms = torch.tensor(float(prod(node.kernel)))
        return apply(node, {}, errors[0]) + _gamma(terms + 1) * apply(node, {}, inputs[0].abs()) + SMALLEST_NORMAL
    return apply(node, {}, errors[0])  # ReLU, max pool and reshape round nothing and pass the largest error on


def execution_error(graph: Graph, x: Tensor, perturbations: dict[str, Perturbation]) -> tuple[Tensor, Tensor]:
    """Returns the float32 outputs [batch, *shape] for x and a bound of their distance from exact arithmetic.

    A running error analysis (Higham 2002, section 3.3): each operator adds its own rounding, and affine operators carry
    the error of their input through |W|.
    """
    values = run(graph, {name: torch.from_numpy(value) for name, value in graph.params.items()}, x, keep=True)
    doubles = {name: value.double() for name, value in values.items()}
    errors = {graph.input: torch.zeros_like(doubles[graph.input])}
    for node in graph.nodes:
        inputs = [doubles[name] for name in node.inputs]
        error = _node_error(graph, node, inputs, doubles[node.name], [errors[name] for name in node.inputs], perturbations.get(node.name))
        errors[node.name] = error * (1 + 1e-9)  # covers the rounding of this analysis, which runs in float64
    return values[graph.output], errors[graph.output]


@torch.no_grad()
def compare(
    before: Graph,
    after: Graph,
    inputs: NDArray[np.float32],
    rational: tuple[int, bool],
    perturbations: dict[str, Perturbation],
) -> Evidence:
    """Returns the evidence for `inputs` [n, *input_shape] float32; n may be 0, which is then no evidence in float32."""
    identical, worst, bound, within = 0, 0.0, 0.0, True
    for start in range(0, len(inputs), BATCH):
        x = torch.from_numpy(np.ascontiguousarray(inputs[start : start + BATCH]))
        y0, e0 = execution_error(before, x, {})
        y1, e1 = execution_error(after, x, perturbations)
        difference = (y0.double() - y1.double()).abs()
        identical += int((y0 == y1).sum())
        worst = max(worst, float(difference.max()))
        bound = max(bound, float((e0 + e1).max()))
        within = within and bool((difference <= e0 + e1).all())  # False for NaN
    outputs = len(inputs) * prod(before.shape_of(before.output))
    return Evidence(*rational, len(inputs), outputs, identical, worst, bound, within)
