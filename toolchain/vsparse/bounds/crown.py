"""Backward linear bound propagation (CROWN) on the deployed pre-activations.

Zhang et al., arXiv 1811.00866 (the method) and Xu et al., arXiv 2002.12920 (general graphs). The deployed pre-activation
ẑ = W·x̂ + b + e is the variable (NUMERICS 3): ReLU acts exactly on ẑ, and passing a row A through an operator costs |A|·E.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.interval import Params
from vsparse.bounds.linear import per_output, pool_weight, transposed
from vsparse.bounds.relaxation import maxpool_choice, relu_lines, scatter_to_input
from vsparse.bounds.rounding import TINY, UNIT64, Rounding, gamma
from vsparse.errors import InputError
from vsparse.graph.ir import Add, AddConstant, Affine, AveragePool, Graph, MaxPool, MulConstant, Node, Relu, Reshape

GIBIBYTE = 2**30
# Pieces of about this size run three to four times faster than pieces of a gibibyte: they stay near the caches, and are not paged in anew.
WORKING_SET = 2**25


def crown(
    graph: Graph,
    params: Params,
    box: Box,
    rows: Tensor,
    intermediate: Mapping[str, Box],
    rounding: Rounding | None = None,
    slopes: Mapping[str, Tensor] | None = None,
    target: str | None = None,
    memory_limit_bytes: int = GIBIBYTE,
) -> Tensor:
    """Returns lower bounds [batch, R] of rows · z for all inputs in `box`, z being the activation `target` (default: the output).

    `rows` is [R, K] or [batch, R, K], K the number of elements of z. `intermediate` holds a box for every activation (from
    `interval` or `refine`), of which each sample's row must be true for its inputs. `slopes` gives lower ReLU slopes by node
    name, broadcastable to [batch, R, *shape] and clamped to [0, 1]; where it says nothing they are 1 if u > −l and else 0, as
    is common. Without `rounding`: plain arithmetic in the dtype of `rows`, differentiable, for search. With it: float64, and
    each bound holds for what any device within the contract computes; what is not a number becomes −inf.
    Rows are worked on in pieces that need at most about `memory_limit_bytes`, and fewer where smaller ones are faster.
    InputError with `rounding`: not float64, or `params` that are not the graph's.
    """
    if rounding is not None:
        rounding.check(params, box)
        if rows.dtype != torch.float64:
            raise InputError(f"rows whose bounds decide a verdict must be float64, not {rows.dtype}; convert them")
    target = graph.output if target is None else target
    walk = _ancestors(graph, target)
    batch = box[0].shape[0]
    if rows.dim() == 2:
        rows = rows.expand(batch, *rows.shape)
    if rows.numel() == 0:
        return rows.new_zeros(rows.shape[:2])
    with torch.set_grad_enabled(torch.is_grad_enabled() and rounding is None):
        costs = _costs(graph, walk, intermediate, box, rounding)
        widest = max([box[0][0].numel(), *(node.size for node in walk)]) if batch else 1
        piece = max(1, min(memory_limit_bytes, WORKING_SET) // (widest * rows.element_size() * 6))
        at_once = max(1, piece // max(batch, 1))
        if at_once >= rows.shape[1] or batch <= 1:
            parts = [
                _bound(graph, walk, params, box, part, intermediate, costs, rounding, _rows_of(slopes, i, at_once))
                for i, part in _pieces(rows, at_once)
            ]
            lower = torch.cat(parts, dim=1)
        else:
            samples = max(1, batch * at_once // rows.shape[1]) if batch * at_once >= rows.shape[1] else 1
            lower = torch.cat(
                [
                    crown(
                        graph,
                        params,
                        _samples(box, i, samples),
                        rows[i : i + samples],
                        {name: _samples(value, i, samples) for name, value in intermediate.items()},
                        rounding,
                        {name: value[i : i + samples] if value.shape[0] == batch else value for name, value in (slopes or {}).items()},
                        target,
                        memory_limit_bytes,
                    )
                    for i in range(0, batch, samples)
                ]
            )
    return lower


def _samples(box: Box, start: int, count: int) -> Box:
    return box[0][start : start + count], box[1][start : start + count]


def _pieces(rows: Tensor, count: int) -> list[tuple[int, Tensor]]:
    return [(i, rows[:, i : i + count]) for i in range(0, rows.shape[1], count)]


def _rows_of(slopes: Mapping[str, Tensor] | None, start: int, count: int) -> dict[str, Tensor]:
    """Returns the slopes of a piece of the rows; those with one row hold for every row."""
    return {name: value if value.shape[1] == 1 else value[:, start : start + count] for name, value in (slopes or {}).items()}


def _ancestors(graph: Graph, target: str) -> list[Node]:
    """Returns the nodes that `target` depends on, itself included, last first."""
    needed, walk = {target}, []
    for node in reversed(graph.nodes):
        if node.name in needed:
            walk.append(node)
            needed.update(node.inputs)
    return walk


def _costs(graph: Graph, walk: list[Node], boxes: Mapping[str, Box], box: Box, rounding: Rounding | None) -> dict[str, Tensor]:
    """Returns for each activation the cost of a unit of |coefficient|, [batch, size, 1]: E and the verifier's own rounding."""
    if rounding is None:
        return {}
    costs = {graph.input: rounding.input_error(box) + rounding.coefficient_error(graph.input, boxes)}
    for node in walk:
        costs[node.name] = rounding.error(node, boxes, boxes[node.name]) + rounding.coefficient_error(node.name, boxes)
    return {name: cost.flatten(1).unsqueeze(2) for name, cost in costs.items()}


def _bound(
    graph: Graph,
    walk: list[Node],
    params: Params,
    box: Box,
    rows: Tensor,
    boxes: Mapping[str, Box],
    costs: Mapping[str, Tensor],
    rounding: Rounding | None,
    slopes: Mapping[str, Tensor],
) -> Tensor:
    batch, count = rows.shape[:2]
    start = walk[0].name if walk else graph.input
    coefficients = {start: rows}  # each [batch, rows, size]
    constant = rows.new_zeros(batch, count)
    absolute = rows.new_zeros(batch, count)  # sum of the absolute values of all terms of the constant
    terms = 0

    def add(a: Tensor, value: Tensor) -> None:
        """Adds the terms a · value to the constant, value [batch or 1, size]."""
        nonlocal constant, absolute, terms
        constant = constant + _dot(a, value)
        if rounding is not None:
            absolute = absolute + _dot(a.abs(), value.abs())
            terms += a.shape[2]

    def pass_on(name: str, a: Tensor) -> None:
        coefficients[name] = coefficients[name] + a if name in coefficients else a

    for node in walk:
        a = coefficients.pop(node.name)
        if rounding is not None:
            cost = (a.abs() @ costs[node.name]).squeeze(2)
            constant, absolute, terms = constant - cost, absolute + cost, terms + a.shape[2]
        source = node.inputs[0]
        shape = graph.shape_of(source)
        if isinstance(node, Affine | AveragePool):
            weight = params[node.weight] if isinstance(node, Affine) else pool_weight(node, shape[0], a) / (node.kernel[0] * node.kernel[1])
            if isinstance(node, Affine) and node.bias is not None:
                add(a, per_output(node, params[node.bias]).expand(node.shape).reshape(1, -1))
            pass_on(source, transposed(node, weight, a.reshape(batch * count, *node.shape), shape).reshape(batch, count, -1))
        elif isinstance(node, Relu):
            lower, upper, intercept = relu_lines(*boxes[source], rounding is not None)
            if node.name in slopes:
                lower = torch.where((lower == upper).unsqueeze(1), upper.unsqueeze(1), slopes[node.name].to(a.dtype).clamp(0, 1)).flatten(2)
            else:
                lower = lower.flatten(1).unsqueeze(1)
            below = a.clamp(max=0)
            add(below, intercept.flatten(1))
            pass_on(source, torch.addcmul(a * lower, below, upper.flatten(1).unsqueeze(1) - lower))
        elif isinstance(node, MaxPool):
            index, exact, top = maxpool_choice(node, boxes[source])
            chosen = torch.where(exact.unsqueeze(1), a, a.clamp(min=0))
            add(a.clamp(max=0), torch.where(exact, torch.zeros_like(top), top))
            pass_on(source, scatter_to_input(node, chosen, index, shape))
        elif isinstance(node, Add):
            pass_on(source, a)
            pass_on(node.inputs[1], a)
        elif isinstance(node, AddConstant):
            add(a, params[node.constant].expand(node.shape).reshape(1, -1))
            pass_on(source, a)
        elif isinstance(node, MulConstant):
            pass_on(source, a * params[node.constant].expand(node.shape).reshape(1, 1, -1))
        elif isinstance(node, Reshape):
            pass_on(source, a)
        else:
            raise InputError(f'node "{node.name}" has type {type(node).__name__}, through which no linear bound is known')

    a = coefficients[graph.input]
    lower, upper = (end.flatten(1) for end in box)
    centre = (lower + upper) * 0.5
    radius = torch.maximum(upper - centre, centre - lower)
    if rounding is None:
        return constant + _dot(a, centre) - _dot(a.abs(), radius)
    radius = radius * (1 + 4 * UNIT64) + TINY
    add(a, centre)
    cost = _dot(a.abs(), radius) + (a.abs() @ costs[graph.input]).squeeze(2)
    constant, absolute, terms = constant - cost, absolute + cost, terms + 2 * a.shape[2]
    # γ64 of the sum of the absolute values (NUMERICS 4); one further term for each step, and some for the error of `absolute`.
    constant = constant - gamma(terms + 4 * len(walk) + 64, UNIT64) * absolute * (1 + 2.0**-20) - TINY
    return torch.nan_to_num(constant, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def _dot(a: Tensor, value: Tensor) -> Tensor:
    """Returns a [batch, rows, size] · value [batch or 1, size] as [batch, rows]."""
    return (a @ value.expand(a.shape[0], -1).unsqueeze(2)).squeeze(2)
