"""Interval bound propagation, one code for training (differentiable, any dtype) and verification (float64 with rounding terms).

An affine operator maps the centre by W and the radius by |W| (Gowal et al., arXiv 1810.12715, equations 5 and 6); sums and
differences of the ends are halved in the weight, once, instead of in both activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vsparse.bounds.affine_box import affine_box, row_major
from vsparse.bounds.ball import Box
from vsparse.bounds.region import Region, box_of
from vsparse.errors import InputError
from vsparse.graph.execute import apply, channel_affine, per_channel
from vsparse.graph.ir import Add, AddConstant, Affine, AveragePool, BatchNorm, Graph, MaxPool, MulConstant, Node, Relu, Reshape

if TYPE_CHECKING:
    from vsparse.bounds.rounding import Rounding

Params = Mapping[str, Tensor]


def interval(graph: Graph, params: Params, box: Box | Region, rounding: Rounding | None = None) -> dict[str, Box]:
    """Returns a box for every activation, the input included, that holds for all inputs in `box`.

    `box` is (lower, upper), each [batch, *input_shape], of the dtype and device of `params`; of a region that is none, the
    enclosing box is taken. Without `rounding` this is plain arithmetic in that dtype, differentiable with respect to `params` and
    `box`, for training and search. With it, everything is float64 and each box contains what any device within the contract computes
    (docs/numerics.md, section 4.2: widened by E);
    an activation that may overflow or is not a number becomes (−inf, inf), as does all that depends on it.
    InputError with `rounding`: not float64, batch normalisation not folded, or `params` that are not the graph's.
    """
    box = box_of(box)
    if rounding is None:
        boxes = {graph.input: box}
        for node in graph.nodes:
            boxes[node.name] = propagate(node, params, [boxes[name] for name in node.inputs])
        return boxes
    rounding.check(params, box)
    boxes = {graph.input: widen(box, rounding.input_error(box))}
    for node in graph.nodes:
        boxes[node.name] = deployed(node, params, boxes, rounding)
    return boxes


def deployed(node: Node, params: Params, boxes: Mapping[str, Box], rounding: Rounding) -> Box:
    """Returns the box of one node as executed: that of real arithmetic, widened by E and by the rounding of this very computation."""
    box = propagate(node, params, [boxes[name] for name in node.inputs])
    return widen(box, rounding.error(node, boxes, box))


def widen(box: Box, error: Tensor) -> Box:
    """Returns the box with both ends moved outward by `error`; whatever is then not finite becomes (−inf, inf)."""
    lower, upper = box[0] - error, box[1] + error
    bad = ~(torch.isfinite(lower) & torch.isfinite(upper))
    return lower.masked_fill(bad, -torch.inf), upper.masked_fill(bad, torch.inf)


@singledispatch
def propagate(node: Node, params: Params, inputs: list[Box]) -> Box:
    """Returns the box of one node's output from those of its inputs, in plain arithmetic; InputError for an unknown node type."""
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, for which there are no bounds')


@propagate.register
def _(node: Affine, params: Params, inputs: list[Box]) -> Box:
    return affine_box(node, params[node.weight], None if node.bias is None else params[node.bias], *inputs[0])


@propagate.register
def _(node: Reshape, params: Params, inputs: list[Box]) -> Box:
    lower, upper = inputs[0]
    return row_major(lower).reshape(len(lower), *node.shape), row_major(upper).reshape(len(upper), *node.shape)


@propagate.register
def _(node: BatchNorm, params: Params, inputs: list[Box]) -> Box:
    lower, upper = inputs[0]
    scale, shift = channel_affine(node, params)
    return _scaled(per_channel(scale, lower), per_channel(shift, lower), lower, upper)


@propagate.register
def _(node: MulConstant, params: Params, inputs: list[Box]) -> Box:
    return _scaled(params[node.constant], None, *inputs[0])


@propagate.register
def _(node: Add | Relu | AddConstant | MaxPool | AveragePool, params: Params, inputs: list[Box]) -> Box:
    # Monotone in every input, so the ends of the output come from the ends of the inputs.
    return apply(node, params, *(lower for lower, _ in inputs)), apply(node, params, *(upper for _, upper in inputs))


def _scaled(scale: Tensor, shift: Tensor | None, lower: Tensor, upper: Tensor) -> Box:
    centre, radius = (lower + upper) * (scale * 0.5), (upper - lower) * (scale.abs() * 0.5)
    if shift is not None:
        centre = centre + shift
    return centre - radius, centre + radius
