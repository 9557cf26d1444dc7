"""Zonotopes with the rounding of the device: forward bounds that cost little where the input has few dimensions.

Singh et al., "Fast and Effective Robustness Certification", NeurIPS 2018 (DeepZ). Where backward bounds cost a row for each neuron of
each layer, here every neuron is a linear form in a few symbols: one for each input, and one for each unstable ReLU so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.interval import propagate, widen
from vsparse.bounds.linear import forward, per_output, pool_weight
from vsparse.bounds.relaxation import relu_lines
from vsparse.bounds.rounding import TINY, UNIT64, Rounding, gamma
from vsparse.graph.ir import Add, AddConstant, Affine, AveragePool, Graph, MulConstant, Node, Relu, Reshape

# Outward rounding of sums of fewer than 2^20 non-negative terms.
UP = 1 + 2.0**-30


@dataclass(frozen=True)
class Form:
    """Values centre + Σ symbols · ε + δ with ε in [−1, 1] and |δ| <= rest, for what a device computes.

    `centre` and `rest` are [batch, *shape], `symbols` [batch, count, *shape]; float64. `spread` [batch, *shape] is Σ |symbols|, rounded
    up. A symbol's place is the same in all forms of one network, and a form without the last ones has zeros there.
    """

    centre: Tensor
    symbols: Tensor
    rest: Tensor
    spread: Tensor

    @property
    def reach(self) -> Tensor:
        """The largest |centre + Σ symbols · ε| of each element, rounded up."""
        return (self.centre.abs() + self.spread) * UP

    def box(self) -> Box:
        """Returns the box around the form, rounded outward; an end that is not a number is left so."""
        radius = self.spread + self.rest
        radius = radius + (self.centre.abs() + radius) * (8 * UNIT64) + TINY
        return self.centre - radius, self.centre + radius


@dataclass
class State:
    """A forward pass: boxes (the better of form and interval), the form of the output, and what the symbols stem from.

    `shares` [batch, count, inputs] is non-negative: how much of each symbol is owed to the width of each input. The first symbols are the
    inputs; that of a ReLU is owed to the symbols of what it reads. It guides where to cut a domain, and nothing is proved with it.
    """

    graph: Graph
    params: Mapping[str, Tensor]
    boxes: dict[str, Box]
    output: Form
    shares: Tensor
    most: int


def zonotope(graph: Graph, box: Box, rounding: Rounding, most_symbols: int = 4096) -> State:
    """Returns a box for every activation, and the form of the output, for all inputs in `box` (float64 [batch, *input_shape]).

    The boxes hold for what any device within the contract computes, as those of `interval` do, and are never wider. Once there are
    `most_symbols`, further unstable ReLUs go into the rest, which bounds memory. InputError when `box` is not float64.
    """
    rounding.check(rounding.params, box)
    lower, upper = (end.flatten(1) for end in box)
    centre = (lower + upper) * 0.5
    radius = torch.maximum(upper - centre, centre - lower) * (1 + 4 * UNIT64) + TINY
    error = rounding.input_error(box)
    symbols = torch.diag_embed(radius).view(*radius.shape, *graph.input_shape)
    first = Form(centre.view_as(box[0]), symbols, error, radius.view_as(box[0]))
    shares = torch.eye(radius.shape[1], dtype=radius.dtype).expand(len(radius), -1, -1)
    state = State(graph, rounding.params, {graph.input: widen(box, error)}, first, shares, most_symbols)
    forms = {graph.input: first}
    readers = {name: len(nodes) for name, nodes in graph.consumers().items()}
    for node in graph.nodes:
        around = propagate(node, rounding.params, [state.boxes[name] for name in node.inputs])
        error = rounding.error(node, state.boxes, around)
        form = advance(node, [forms[name] for name in node.inputs], around, state)
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


def lower_bounds(form: Form, rows: Tensor) -> Tensor:
    """Returns lower bounds [batch, R] of rows · output, rounded downward; `rows` is [batch, R, K], the output's form [batch, K]."""
    across = rows.transpose(1, 2)
    centre, moved = form.centre.unsqueeze(1) @ across, (form.symbols @ across).abs().sum(1, keepdim=True)
    lost = (form.rest + form.reach * gamma(rows.shape[2] + 16, UNIT64)).unsqueeze(1) @ across.abs() * UP + TINY
    lower = centre - moved * UP - lost
    lower = lower - (centre.abs() + moved + lost) * (8 * UNIT64)
    return torch.nan_to_num(lower.squeeze(1), nan=-torch.inf, posinf=-torch.inf)


@singledispatch
def advance(node: Node, inputs: list[Form], box: Box, state: State) -> Form:
    """Returns the form of an exact operator on deployed inputs, float64's rounding in its rest; `box` is the interval of the result.

    Operators without a rule of their own give a form without symbols, the box itself.
    """
    centre = (box[0] + box[1]) * 0.5
    rest = torch.maximum(box[1] - centre, centre - box[0]) * (1 + 4 * UNIT64) + TINY
    return Form(centre, centre.new_zeros(len(centre), 0, *node.shape), rest, torch.zeros_like(centre))


@advance.register
def _(node: Affine | AveragePool, inputs: list[Form], box: Box, state: State) -> Form:
    (form,) = inputs
    if isinstance(node, AveragePool):
        weight = pool_weight(node, node.shape[0], form.centre) / (node.kernel[0] * node.kernel[1])
        bias = None
    else:
        weight, bias = state.params[node.weight], None if node.bias is None else state.params[node.bias]
    symbols = forward(node, weight, form.symbols.flatten(0, 1)).view(*form.symbols.shape[:2], *node.shape)
    size, rest = forward(node, weight.abs(), torch.cat([form.reach, form.rest])).chunk(2)
    if bias is not None:
        size = size + per_output(node, bias.abs())
    # γ of one more than the fan-in for each of centre and symbols, and some to spare (Higham 2002, section 3.1).
    lost = size * (gamma(weight[0].numel() + 16, UNIT64) * UP)
    return Form(forward(node, weight, form.centre, bias), symbols, rest * UP + lost + TINY, _spread(symbols))


@advance.register
def _(node: Relu, inputs: list[Form], box: Box, state: State) -> Form:
    """λ·z <= ReLU(z) <= λ·z + r for any λ in [0, 1], so that one new symbol of size r/2 stands for the unit."""
    (form,) = inputs
    _, slope, r = relu_lines(*state.boxes[node.inputs[0]], outward=True)
    half = r * 0.5
    rest = form.rest * slope + (form.reach * slope + r) * (8 * UNIT64) + TINY
    flat = half.flatten(1)
    known, count = form.symbols.shape[1], state.shares.shape[1]
    new = min(int((flat > 0).sum(1).max()) if len(flat) else 0, max(0, state.most - count))
    sizes, places = flat.topk(new, dim=1)
    symbols = form.symbols.new_zeros(len(flat), count + new, flat.shape[1])
    symbols[:, :known] = (form.symbols * slope.unsqueeze(1)).flatten(2)
    symbols[:, count:].scatter_(2, places.unsqueeze(2), sizes.unsqueeze(2))
    read = form.symbols.flatten(2).gather(2, places.unsqueeze(1).expand(-1, known, -1)).abs()
    owed = read.transpose(1, 2) @ state.shares[:, :known]
    state.shares = torch.cat([state.shares, owed / (owed.sum(2, keepdim=True) + TINY)], dim=1)
    left = flat.scatter(1, places, 0.0).view_as(rest)
    spread = (form.spread * slope + (half - left)) * UP
    return Form(form.centre * slope + half, symbols.view(*symbols.shape[:2], *node.shape), rest + left, spread)


@advance.register
def _(node: Add, inputs: list[Form], box: Box, state: State) -> Form:
    a, b = inputs
    few, many = sorted((a.symbols, b.symbols), key=lambda symbols: symbols.shape[1])
    symbols = many.clone()
    symbols[:, : few.shape[1]] += few
    return Form(a.centre + b.centre, symbols, a.rest + b.rest + (a.reach + b.reach) * (8 * UNIT64) + TINY, _spread(symbols))


@advance.register
def _(node: AddConstant, inputs: list[Form], box: Box, state: State) -> Form:
    (form,), constant = inputs, state.params[node.constant]
    rest = form.rest + (form.centre.abs() + constant.abs()) * (8 * UNIT64) + TINY
    return replace(form, centre=form.centre + constant, rest=rest)


@advance.register
def _(node: MulConstant, inputs: list[Form], box: Box, state: State) -> Form:
    (form,), constant = inputs, state.params[node.constant]
    rest = form.rest * constant.abs() + (form.reach * constant.abs()) * (8 * UNIT64) + TINY
    return Form(form.centre * constant, form.symbols * constant, rest, form.spread * constant.abs() * UP)


@advance.register
def _(node: Reshape, inputs: list[Form], box: Box, state: State) -> Form:
    (form,) = inputs
    centre, rest, spread = (value.reshape(-1, *node.shape) for value in (form.centre, form.rest, form.spread))
    return Form(centre, form.symbols.reshape(*form.symbols.shape[:2], *node.shape), rest, spread)


def _spread(symbols: Tensor) -> Tensor:
    return symbols.abs().sum(1) * UP
