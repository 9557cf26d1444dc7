"""Zonotopes with the rounding of the device: forward bounds that cost little where the input has few dimensions.

Singh et al., "Fast and Effective Robustness Certification", NeurIPS 2018 (DeepZ). Where backward bounds cost a row for each neuron of
each layer, here every neuron is a linear form in a few symbols: one for each input, and one for each unsettled curve so far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.interval import propagate, widen
from vsparse.bounds.linear import forward, per_output, pool_weight
from vsparse.bounds.operators.curves import intercepts
from vsparse.bounds.relaxation import maxpool_choice, relu_lines
from vsparse.bounds.rounding import TINY, UNIT64, Rounding, gamma
from vsparse.errors import InputError
from vsparse.graph.execute import apply
from vsparse.graph.ir import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    Clip,
    Concat,
    DivConstant,
    FakeQuant,
    Graph,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Node,
    Pad,
    Relu,
    Reshape,
    Sigmoid,
    Slice,
    Sub,
    Tanh,
    Transpose,
)

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

    `shares` [batch, count, moving] is non-negative: how much of each symbol is owed to the width of each input that moves, of which
    `moving` holds the places. The first symbols are these inputs; that of a curve is owed to the symbols of what it reads. It guides
    where to cut a domain, and nothing is proved with it.
    """

    graph: Graph
    params: Mapping[str, Tensor]
    boxes: dict[str, Box]
    output: Form
    shares: Tensor
    moving: Tensor
    most: int


def zonotope(graph: Graph, box: Box, rounding: Rounding, most_symbols: int = 4096) -> State:
    """Returns a box for every activation, and the form of the output, for all inputs in `box` (float64 [batch, *input_shape]).

    The boxes hold for what any device within the contract computes, as those of `interval` do, and are never wider. Once there are
    `most_symbols`, further curves go into the rest, which bounds memory. InputError when `box` is not float64.
    """
    rounding.check(rounding.params, box)
    lower, upper = (end.flatten(1) for end in box)
    centre = (lower + upper) * 0.5
    radius = torch.maximum(upper - centre, centre - lower) * (1 + 4 * UNIT64) + TINY
    # An input that is fixed in every domain needs no symbol: its radius, which is rounding alone, goes into the rest.
    moving = (upper > lower).any(0).nonzero().flatten()
    symbols = radius.new_zeros(len(radius), len(moving), radius.shape[1])
    symbols[:, torch.arange(len(moving)), moving] = radius[:, moving]
    fixed = radius.index_fill(1, moving, 0.0).view_as(box[0])
    error = rounding.input_error(box)
    first = Form(
        centre.view_as(box[0]), symbols.view(*symbols.shape[:2], *graph.input_shape), error + fixed, radius.view_as(box[0]) - fixed
    )
    shares = torch.eye(len(moving), dtype=radius.dtype).expand(len(radius), -1, -1)
    state = State(graph, rounding.params, {graph.input: widen(box, error)}, first, shares, moving, most_symbols)
    forms = {graph.input: first}
    readers = {name: len(nodes) for name, nodes in graph.consumers().items()}
    readers[graph.output] += 1
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

    InputError for a node type without a rule.
    """
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, for which no zonotope is known')


def box_form(box: Box) -> Form:
    """Returns the form without symbols of a box."""
    centre = (box[0] + box[1]) * 0.5
    rest = torch.maximum(box[1] - centre, centre - box[0]) * (1 + 4 * UNIT64) + TINY
    return Form(centre, centre.new_zeros(len(centre), 0, *centre.shape[1:]), rest, torch.zeros_like(centre))


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


def _band(form: Form, slope: Tensor, under: Tensor, over: Tensor, state: State) -> Form:
    """Returns the form of f(z) where slope · z + under <= f(z) <= slope · z + over: a new symbol of half the band for each open unit."""
    half = (over - under) * 0.5
    middle = under + half
    half = torch.maximum(over - middle, middle - under).clamp(min=0) * (1 + 4 * UNIT64)
    rest = form.rest * slope * UP + (form.reach * slope + middle.abs() + half) * (8 * UNIT64) + TINY
    # Bands that rounding alone makes need no symbol.
    flat = half.masked_fill(half <= (form.reach * slope + middle.abs()) * 2.0**-40, 0.0).flatten(1)
    known, count = form.symbols.shape[1], state.shares.shape[1]
    new = min(int((flat > 0).sum(1).max()) if len(flat) else 0, max(0, state.most - count))
    sizes, places = flat.topk(new, dim=1)
    symbols = form.symbols.new_zeros(len(flat), count + new, flat.shape[1])
    symbols[:, :known] = (form.symbols * slope.unsqueeze(1)).flatten(2)
    symbols[:, count:].scatter_(2, places.unsqueeze(2), sizes.unsqueeze(2))
    read = form.symbols.flatten(2).gather(2, places.unsqueeze(1).expand(-1, known, -1)).abs()
    owed = read.transpose(1, 2) @ state.shares[:, :known]
    state.shares = torch.cat([state.shares, owed / (owed.sum(2, keepdim=True) + TINY)], dim=1)
    taken = torch.zeros_like(flat).scatter(1, places, sizes).view_as(rest)
    spread = (form.spread * slope + taken) * UP
    rest = (rest + half.masked_fill(taken > 0, 0.0)) * UP
    return Form(form.centre * slope + middle, symbols.view(*symbols.shape[:2], *form.centre.shape[1:]), rest, spread)


@advance.register
def _(node: Relu, inputs: list[Form], box: Box, state: State) -> Form:
    """λ·z <= ReLU(z) <= λ·z + r for any λ in [0, 1], so that one new symbol of size r/2 stands for the unit."""
    _, slope, r = relu_lines(*state.boxes[node.inputs[0]], outward=True)
    return _band(inputs[0], slope, torch.zeros_like(r), r, state)


@advance.register
def _(node: LeakyRelu | Clip | Sigmoid | Tanh | FakeQuant, inputs: list[Form], box: Box, state: State) -> Form:
    """Two parallel lines with the slope of the chord; where an end is not finite, the box."""
    (form,) = inputs
    lower, upper = state.boxes[node.inputs[0]]
    width = upper - lower
    finite = torch.isfinite(width) & torch.isfinite(form.reach + form.rest)
    # A slope that comes of rounding alone would be any number.
    usable = finite & (width > 2.0**-40 * (1 + torch.maximum(lower.abs(), upper.abs())))
    slope = torch.where(usable, (box[1] - box[0]) / torch.where(usable, width, 1.0), 0.0).clamp(0, 1)
    low, high = torch.where(finite, lower, 0.0), torch.where(finite, upper, 0.0)
    under, over = intercepts(node, low, high, slope, slope, True)
    flat = slope == 0
    under, over = torch.where(flat, box[0] - TINY, under), torch.where(flat, box[1] + TINY, over)
    if not bool(finite.all()):
        zero, each = form.centre.new_zeros(()), finite.unsqueeze(1)
        parts = [torch.where(finite, part, zero) for part in (form.centre, form.rest, form.spread)]
        form = Form(parts[0], torch.where(each, form.symbols, zero), parts[1], parts[2])
    return _band(form, slope, under, over, state)


@advance.register
def _(node: MaxPool, inputs: list[Form], box: Box, state: State) -> Form:
    """The input that wins wherever one surely does, elsewhere the box."""
    (form,) = inputs
    index, exact, _ = maxpool_choice(node, state.boxes[node.inputs[0]])
    top, left, bottom, right = node.pads

    def chosen(value: Tensor) -> Tensor:
        flat = F.pad(value, (left, right, top, bottom)).flatten(-3)
        places = index.view(len(index), *[1] * (flat.dim() - 2), -1).expand(*flat.shape[:-1], -1)
        return flat.gather(-1, places).view(*flat.shape[:-1], *node.shape)

    whole, exact = box_form(box), exact.view(-1, *node.shape)
    return Form(
        torch.where(exact, chosen(form.centre), whole.centre),
        torch.where(exact.unsqueeze(1), chosen(form.symbols), 0.0),
        torch.where(exact, chosen(form.rest), whole.rest),
        torch.where(exact, chosen(form.spread), 0.0),
    )


@advance.register
def _(node: Add | Sub, inputs: list[Form], box: Box, state: State) -> Form:
    a, b = inputs
    first, second = _aligned([a.symbols, b.symbols])
    sign = 1 if isinstance(node, Add) else -1
    symbols = first + sign * second
    rest = (a.rest + b.rest) * UP + (a.reach + b.reach) * (8 * UNIT64) + TINY
    return Form(a.centre + sign * b.centre, symbols, rest, _spread(symbols))


@advance.register
def _(node: Neg, inputs: list[Form], box: Box, state: State) -> Form:
    (form,) = inputs
    return replace(form, centre=-form.centre, symbols=-form.symbols)


@advance.register
def _(node: Transpose | Slice, inputs: list[Form], box: Box, state: State) -> Form:
    return _moved(inputs[0], lambda value: apply(node, {}, value))


@advance.register
def _(node: Concat, inputs: list[Form], box: Box, state: State) -> Form:
    centre, rest, spread = (apply(node, {}, *parts) for parts in zip(*((f.centre, f.rest, f.spread) for f in inputs), strict=True))
    symbols = torch.cat(_aligned([form.symbols for form in inputs]), dim=node.axis + 2)
    return Form(centre, symbols, rest, spread)


@advance.register
def _(node: Pad, inputs: list[Form], box: Box, state: State) -> Form:
    moved = _moved(inputs[0], lambda value: apply(replace(node, value=0.0), {}, value))
    return replace(moved, centre=apply(node, {}, inputs[0].centre))


@advance.register
def _(node: DivConstant, inputs: list[Form], box: Box, state: State) -> Form:
    (form,), divisor = inputs, state.params[node.constant]
    size = divisor.abs()
    rest = form.rest / size * UP + form.reach / size * (8 * UNIT64) + TINY
    return Form(form.centre / divisor, form.symbols / divisor, rest, form.spread / size * UP)


@advance.register
def _(node: AddConstant, inputs: list[Form], box: Box, state: State) -> Form:
    (form,), constant = inputs, state.params[node.constant]
    rest = form.rest * UP + (form.centre.abs() + constant.abs()) * (8 * UNIT64) + TINY
    return replace(form, centre=form.centre + constant, rest=rest)


@advance.register
def _(node: MulConstant, inputs: list[Form], box: Box, state: State) -> Form:
    (form,), constant = inputs, state.params[node.constant]
    rest = form.rest * constant.abs() * UP + (form.reach * constant.abs()) * (8 * UNIT64) + TINY
    return Form(form.centre * constant, form.symbols * constant, rest, form.spread * constant.abs() * UP)


@advance.register
def _(node: Reshape, inputs: list[Form], box: Box, state: State) -> Form:
    return _moved(inputs[0], lambda value: value.reshape(len(value), *node.shape))


def _moved(form: Form, move: Callable[[Tensor], Tensor]) -> Form:
    """Returns a form whose elements are moved; `move` takes a batch."""
    symbols = move(form.symbols.flatten(0, 1))
    return Form(move(form.centre), symbols.view(*form.symbols.shape[:2], *symbols.shape[1:]), move(form.rest), move(form.spread))


def _aligned(parts: list[Tensor]) -> list[Tensor]:
    """Returns symbols [batch, count, …] with zeros behind those that have fewer."""
    most = max(part.shape[1] for part in parts)
    return [torch.cat([part, part.new_zeros(len(part), most - part.shape[1], *part.shape[2:])], 1) for part in parts]


def _spread(symbols: Tensor) -> Tensor:
    return symbols.abs().sum(1) * UP
