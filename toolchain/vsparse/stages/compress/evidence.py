"""Evidence that two graphs compute the same: exact rationals on a few inputs, float32 as executed on many, against its bound."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.graph.execute import run
from vsparse.graph.ir import Affine, Conv, Graph
from vsparse.stages.compress.rational import evaluate, has_exact_values
from vsparse.stages.compress.rules import rules_of
from vsparse.stages.compress.running_error import FLOAT32, FLOAT64, Arithmetic, NodeRun, ParameterError

RATIONAL_BUDGET = 20_000_000  # multiply-accumulates in rational arithmetic: a few seconds
BATCH = 64
DOUBLE_INPUTS = 16


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


def execution_error(graph: Graph, x: Tensor, moved: dict[str, ParameterError], arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
    """Returns the outputs [batch, *shape] for x in an arithmetic, as float64, and a bound of their distance from exact arithmetic.

    A running error analysis (Higham 2002, section 3.3): each operator adds its own rounding, and affine operators carry
    the error of their input through |W|.
    """
    values = run(graph, graph.tensors(arithmetic.dtype), x.to(arithmetic.dtype), keep=True)
    doubles = {name: value.double() for name, value in values.items()}
    errors = {graph.input: torch.zeros_like(doubles[graph.input])}
    for node in graph.nodes:
        inputs, carried = [doubles[name] for name in node.inputs], [errors[name] for name in node.inputs]
        step = NodeRun(graph.params, inputs, doubles[node.name], carried, moved.get(node.name), arithmetic)
        error = rules_of(node).error(node, step)
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
    before: Graph, after: Graph, inputs: NDArray[np.float32], moved: dict[str, ParameterError], arithmetic: Arithmetic
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
    moved: dict[str, ParameterError],
) -> Evidence:
    """Returns the evidence for `inputs` [n, *input_shape] float32; n may be 0, which is then no evidence in floating point."""
    single = _difference(before, after, inputs, moved, FLOAT32)
    double = _difference(before, after, inputs[-DOUBLE_INPUTS:], moved, FLOAT64)
    outputs = len(inputs) * prod(before.shape_of(before.output))
    within = single.within and double.within
    return Evidence(
        *rational, len(inputs), outputs, single.identical, single.worst, single.bound, double.worst, double.bound, within_bound=within
    )
