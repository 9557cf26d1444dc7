"""Zonotopes with the rounding of the device: forward bounds that cost little where the input has few dimensions.

Singh et al., "Fast and Effective Robustness Certification", NeurIPS 2018 (DeepZ). Where backward bounds cost a row for each neuron of
each layer, here every neuron is a linear form in a few symbols (`affine_forms`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vsparse.bounds.affine_forms import UP, AffineForm, ZonotopePass
from vsparse.bounds.ball import Box
from vsparse.bounds.float64 import TINY, UNIT64, gamma64
from vsparse.bounds.interval import propagate, widen
from vsparse.bounds.rounding import Rounding
from vsparse.bounds.rules import require, rules_of
from vsparse.compute_device import reading_back
from vsparse.graph.ir import Graph


def zonotope(graph: Graph, box: Box, rounding: Rounding, most_symbols: int = 4096) -> ZonotopePass:
    """Returns a box for every activation, and the form of the output, for all inputs in `box` (float64 [batch, *input_shape]).

    The boxes hold for what any device within the contract computes, as those of `interval` do, and are never wider. Once there are
    `most_symbols`, further curves go into the rest, which bounds memory. InputError when `box` is not float64, or a node has no rule.
    """
    require(graph.nodes, "zonotope")
    rounding.check(rounding.params, box)
    lower, upper = (end.flatten(1) for end in box)
    centre = (lower + upper) * 0.5
    radius = torch.maximum(upper - centre, centre - lower) * (1 + 4 * UNIT64) + TINY
    # An input that is fixed in every domain needs no symbol: its radius, which is rounding alone, goes into the rest.
    with reading_back("the inputs that move"):
        moving = (upper > lower).any(0).nonzero().flatten()
    symbols = radius.new_zeros(len(radius), len(moving), radius.shape[1])
    symbols[:, torch.arange(len(moving), device=radius.device), moving] = radius[:, moving]
    fixed = radius.index_fill(1, moving, 0.0).view_as(box[0])
    error = rounding.input_error(box)
    first = AffineForm(
        centre.view_as(box[0]), symbols.view(*symbols.shape[:2], *graph.input_shape), error + fixed, radius.view_as(box[0]) - fixed
    )
    fractions = torch.eye(len(moving), dtype=radius.dtype, device=radius.device).expand(len(radius), -1, -1)
    state = ZonotopePass(graph, rounding.params, {graph.input: widen(box, error)}, first, fractions, moving, most_symbols)
    forms = {graph.input: first}
    readers = {name: len(nodes) for name, nodes in graph.consumers().items()}
    readers[graph.output] += 1
    for node in graph.nodes:
        around = propagate(node, rounding.params, [state.boxes[name] for name in node.inputs])
        error = rounding.error(node, state.boxes, around)
        form = rules_of(node).zonotope(node, [forms[name] for name in node.inputs], around, state)
        form = forms[node.name] = replace(form, rest=form.rest + error)
        (lower, upper), around = form.box(), widen(around, error)
        # Where something may overflow the form is NaN; fmax and fmin then keep the interval's end.
        state.boxes[node.name] = torch.fmax(lower, around[0]), torch.fmin(upper, around[1])
        for name in node.inputs:
            readers[name] -= 1
            if not readers[name]:
                del forms[name]
    state.output = forms[graph.output]
    return state


def lower_bounds(form: AffineForm, rows: Tensor) -> Tensor:
    """Returns lower bounds [batch, R] of rows · output, rounded downward; `rows` is [batch, R, K], the output's form [batch, K]."""
    across = rows.transpose(1, 2)
    centre, moved = form.centre.unsqueeze(1) @ across, (form.symbols @ across).abs().sum(1, keepdim=True)
    charged = (form.rest + form.reach * gamma64(rows.shape[2] + 16, across.device)).unsqueeze(1) @ across.abs() * UP + TINY
    lower = centre - moved * UP - charged
    lower = lower - (centre.abs() + moved + charged) * (8 * UNIT64)
    return torch.nan_to_num(lower.squeeze(1), nan=-torch.inf, posinf=-torch.inf)
