"""Linear bounds of functions of one variable that do not decrease: the one backward rule that all of them share."""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

from vsparse.bounds.backward import Pass, backward
from vsparse.bounds.ball import Box
from vsparse.bounds.interval import Params, propagate
from vsparse.errors import InputError
from vsparse.graph.execute import apply
from vsparse.graph.ir import Clip, FakeQuant, LeakyRelu, Node, Sigmoid, Tanh

# Relaxed functions of one variable other than ReLU.
CURVES = LeakyRelu | Clip | Sigmoid | Tanh | FakeQuant


class Lines(NamedTuple):
    """lower_slope · x + lower_intercept <= f(x) <= upper_slope · x + upper_intercept on [lower, upper], elementwise."""

    lower_slope: Tensor
    lower_intercept: Tensor
    upper_slope: Tensor
    upper_intercept: Tensor


@singledispatch
def lines(node: Node, lower: Tensor, upper: Tensor, outward: bool) -> Lines:
    """Returns lines that bound a node's function on [lower, upper], each of the shape of `lower`.

    With `outward` (float64) they hold as computed: for the very slopes and intercepts that are returned, in exact arithmetic
    (docs/numerics.md, section 5.2). Slopes are then any heuristic's, and the intercept is what makes the line true. InputError where no
    lines are known.
    """
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, for which no linear bounds are known')


@singledispatch
def intercepts(node: Node, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor, outward: bool) -> tuple[Tensor, Tensor]:
    """Returns (under, over) with below · x + under <= f(x) <= above · x + over on [lower, upper], for any slopes from 0 to 1.

    All tensors broadcast against each other; `outward` as for `lines`. This is what makes slopes free to choose: those of a search, of
    both lines the same for a zonotope. Where an end is not finite so may the intercept be, or be no number.
    InputError where none are known.
    """
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, for which no linear bounds are known')


def chosen_lines(node: Node, state: Pass) -> Lines:
    """Returns the lines of a node in a backward pass, [batch or 1, rows or 1, size]: with chosen slopes where there are some."""
    box = state.boxes[node.inputs[0]]
    if node.name not in state.choices.curves:
        drawn = state.drawn[node.name] if node.name in state.drawn else lines(node, *box, state.outward)
        return Lines(*(line.flatten(1).unsqueeze(1) for line in drawn))
    lower, upper = (end.flatten(1).unsqueeze(1) for end in box)
    below, above = (slope.to(lower.dtype).clamp(0, 1).flatten(2) for slope in state.choices.curves[node.name])
    under, over = intercepts(node, lower, upper, below, above, state.outward)
    return Lines(below, under, above, over)


def steepest(node: Node) -> float:
    """Returns the largest slope of a node's function: steeper lines are true, and never better."""
    return 0.25 if isinstance(node, Sigmoid) else 1.0


def slopes_of(node: Node, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the usual slopes (below, above) of a node's lines, to start a search of better ones from; 0 where they are no number."""
    one = lines(node, lower, upper, False)
    return torch.nan_to_num(one.lower_slope).clamp(0, 1), torch.nan_to_num(one.upper_slope).clamp(0, 1)


@propagate.register
def _(node: LeakyRelu | Clip | Sigmoid | Tanh, params: Params, inputs: list[Box]) -> Box:
    return apply(node, params, inputs[0][0]), apply(node, params, inputs[0][1])


@backward.register
def _(node: CURVES, a: Tensor, state: Pass) -> None:
    source = node.inputs[0]
    one = chosen_lines(node, state)
    above, below = a.clamp(min=0), a.clamp(max=0)
    state.add(above, one.lower_intercept)
    state.add(below, one.upper_intercept)
    state.pass_on(source, state.dual(node, above * one.lower_slope + below * one.upper_slope))
