"""Linear bounds of functions of one variable that do not decrease: the one backward rule that all of them share."""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

from torch import Tensor

from vsparse.bounds.backward import Pass, backward
from vsparse.bounds.ball import Box
from vsparse.bounds.interval import Params, propagate
from vsparse.errors import InputError
from vsparse.graph.execute import apply
from vsparse.graph.ir import Clip, FakeQuant, LeakyRelu, Node, Sigmoid, Tanh


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
    (NUMERICS 4). Slopes are then any heuristic's, and the intercept is what makes the line true. InputError where no lines are known.
    """
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, for which no linear bounds are known')


@propagate.register
def _(node: LeakyRelu | Clip | Sigmoid | Tanh, params: Params, inputs: list[Box]) -> Box:
    return apply(node, params, inputs[0][0]), apply(node, params, inputs[0][1])


@backward.register
def _(node: LeakyRelu | Clip | Sigmoid | Tanh | FakeQuant, a: Tensor, state: Pass) -> None:
    source = node.inputs[0]
    one = Lines(*(line.flatten(1).unsqueeze(1) for line in lines(node, *state.boxes[source], state.outward)))
    above, below = a.clamp(min=0), a.clamp(max=0)
    state.add(above, one.lower_intercept)
    state.add(below, one.upper_intercept)
    state.pass_on(source, above * one.lower_slope + below * one.upper_slope)
