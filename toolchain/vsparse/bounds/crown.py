"""Backward linear bound propagation (CROWN) on the deployed pre-activations.

Zhang et al., arXiv 1811.00866 (the method) and Xu et al., arXiv 2002.12920 (general graphs). The deployed pre-activation
ẑ = W·x̂ + b + e is the variable (docs/numerics.md, section 4.1): ReLU acts exactly on ẑ, and passing a row A through an operator costs
|A|·E.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.bounds import paths
from vsparse.bounds.backward import CrownPass, dot
from vsparse.bounds.ball import Box
from vsparse.bounds.choices import Choices
from vsparse.bounds.float64 import TINY, UNIT64, gamma64
from vsparse.bounds.region import Region, box_of, samples_of
from vsparse.bounds.relaxation import LinearRelaxation
from vsparse.bounds.rounding import Rounding
from vsparse.bounds.rules import Params, require, rules_of
from vsparse.errors import InputError
from vsparse.graph.ir import Graph, Node

GIBIBYTE = 2**30


def crown(
    graph: Graph,
    params: Params,
    box: Box | Region,
    rows: Tensor,
    intermediate: Mapping[str, Box],
    rounding: Rounding | None = None,
    choices: Choices | None = None,
    target: str | None = None,
    memory_limit_bytes: int = GIBIBYTE,
    costs: Mapping[str, Tensor] | None = None,
    stored: bool = False,
) -> Tensor:
    """Returns lower bounds [batch, R] of rows · z for all inputs in `box`, a box or another region, z being the activation `target`
    (default: the output).

    `rows` is [R, K] or [batch, R, K], K the number of elements of z. `intermediate` holds a box for every activation (from
    `interval` or `refine`), of which each sample's row must be sound for its inputs. `choices` holds lower ReLU slopes, splits and
    multipliers for each row; with splits a row's bound holds where they do. Without `rounding`: plain arithmetic in the dtype of
    `rows`, differentiable, for search. With it: float64, and each bound holds for what any device within the contract computes;
    what is not a number becomes −inf.
    `costs` are the `unit_costs` of all activations `target` depends on, where the caller has them for these very boxes. With `stored` the
    box is of what a device has stored, as that of an activation is, and not of an input that it stores first.
    Rows are worked on in pieces that need at most about `memory_limit_bytes`, and fewer where smaller ones are faster.
    InputError for a node on the way without a rule, by its name and before any work; with `rounding` also: not float64, or `params` that
    are not the graph's.
    """
    if rounding is not None:
        rounding.check(params, box_of(box))
        if rows.dtype != torch.float64:
            raise InputError(f"rows whose bounds decide a verdict must be float64, not {rows.dtype}; convert them")
    target = graph.output if target is None else target
    walk = ancestors(graph, target)
    require(walk, "backward")
    lower_end = box_of(box)[0]
    batch = lower_end.shape[0]
    if rows.dim() == 2:
        rows = rows.expand(batch, *rows.shape)
    if rows.numel() == 0:
        return rows.new_zeros(rows.shape[:2])
    choices = choices or Choices()
    with torch.set_grad_enabled(torch.is_grad_enabled() and rounding is None):
        columns = _costs(graph, walk, intermediate, None if stored else box_of(box), rounding, costs)
        widest = max([lower_end[0].numel(), *(node.size for node in walk)]) if batch else 1
        piece = max(1, min(memory_limit_bytes, paths.working_set(rows.device)) // (widest * rows.element_size() * 6))
        at_once = max(1, piece // max(batch, 1))
        if at_once >= rows.shape[1] or batch <= 1:
            parts = [
                bound_rows(graph, walk, params, box, part, intermediate, columns, rounding, choices.rows(i, at_once))
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
                        samples_of(box, slice(i, i + samples)),
                        rows[i : i + samples],
                        {name: _samples(value, i, samples) for name, value in intermediate.items()},
                        rounding,
                        choices.samples(i, samples),
                        target,
                        memory_limit_bytes,
                        None if costs is None else {name: cost[i : i + samples] for name, cost in costs.items()},
                        stored,
                    )
                    for i in range(0, batch, samples)
                ]
            )
    return lower


def _samples(box: Box, start: int, count: int) -> Box:
    return box[0][start : start + count], box[1][start : start + count]


def _pieces(rows: Tensor, count: int) -> list[tuple[int, Tensor]]:
    return [(i, rows[:, i : i + count]) for i in range(0, rows.shape[1], count)]


def ancestors(graph: Graph, target: str) -> list[Node]:
    """Returns the nodes that `target` depends on, itself included, last first."""
    needed, walk = {target}, []
    for node in reversed(graph.nodes):
        if node.name in needed:
            walk.append(node)
            needed.update(node.inputs)
    return walk


def unit_costs(walk: list[Node], boxes: Mapping[str, Box], rounding: Rounding) -> dict[str, Tensor]:
    """Returns for the output of each node what a unit of |coefficient| costs, [batch, *shape]: E and the verifier's own rounding."""
    return {node.name: rounding.error(node, boxes, boxes[node.name]) + rounding.coefficient_error(node.name, boxes) for node in walk}


def _costs(
    graph: Graph,
    walk: list[Node],
    boxes: Mapping[str, Box],
    box: Box | None,
    rounding: Rounding | None,
    known: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Returns the costs of every activation, the input included, as columns [batch, size, 1]; none without `rounding`.

    `box` is the region of the input, whose storing is charged; None where that is in its box already.
    """
    if rounding is None:
        return {}
    units = unit_costs(walk, boxes, rounding) if known is None else {node.name: known[node.name] for node in walk}
    units[graph.input] = rounding.coefficient_error(graph.input, boxes)
    if box is not None:
        units[graph.input] = rounding.input_error(box) + units[graph.input]
    return {name: cost.flatten(1).unsqueeze(2) for name, cost in units.items()}


def bound_rows(
    graph: Graph,
    walk: list[Node],
    params: Params,
    box: Box | Region,
    rows: Tensor,
    boxes: Mapping[str, Box],
    costs: Mapping[str, Tensor],
    rounding: Rounding | None,
    choices: Choices,
    padding: Mapping[str, Tensor] | None = None,
    relaxations: Mapping[str, LinearRelaxation] | None = None,
) -> Tensor:
    """Returns what `crown` does for rows [batch, R, K], all at once; `walk` are the nodes it passes, last first, `costs` theirs and the
    input's as columns [batch, size, 1] where there is a `rounding`. `padding`, bool [batch, size] by activation, says which elements of an
    activation are no values of its operator but constant zeros: rows pass by them. `relaxations` are those of curves, where they are known.
    """
    outward, over_box = rounding is not None, not isinstance(box, Region)
    state = CrownPass(graph, params, boxes, choices, rows, walk[0].name if walk else graph.input, outward, over_box)
    state.relaxations = relaxations or {}
    for node in walk:
        a = state.coefficients.pop(node.name)
        if padding is not None and node.name in padding:
            a = a.masked_fill(padding[node.name].unsqueeze(1), 0.0)
        if rounding is not None:
            state.charge((a.abs() @ costs[node.name]).squeeze(2), a.shape[2])
        rules_of(node).backward(node, a, state)
    a = state.coefficients[graph.input]
    if rounding is not None:
        state.charge((a.abs() @ costs[graph.input]).squeeze(2), a.shape[2])
    if isinstance(box, Region):
        lowest = box.lowest(a, outward=rounding is not None)
        if rounding is None:
            return state.constant + lowest
        state.add(lowest.unsqueeze(2), lowest.new_ones(1, 1))
    else:
        lower, upper = (end.flatten(1) for end in box)
        centre = (lower + upper) * 0.5
        radius = torch.maximum(upper - centre, centre - lower)
        if rounding is None:
            return state.constant + dot(a, centre) - dot(a.abs(), radius)
        state.add(a, centre)
        state.charge(dot(a.abs(), radius * (1 + 4 * UNIT64) + TINY), a.shape[2])
    # γ64 of the sum of the absolute values (docs/numerics.md, section 5.3); one further term for each step, and some for the error of
    # `absolute`.
    constant = state.constant - gamma64(state.terms + 4 * len(walk) + 64, a.device) * state.absolute * (1 + 2.0**-20) - TINY
    return torch.nan_to_num(constant, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
