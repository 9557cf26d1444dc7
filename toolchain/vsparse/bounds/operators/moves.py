"""Transpose, Concat, Slice and Pad: data that moves, exact in every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vsparse.bounds.backward import Pass, backward
from vsparse.bounds.ball import Box
from vsparse.bounds.interval import Params, propagate
from vsparse.bounds.rounding import Rounding, magnitude, operator_error
from vsparse.graph.execute import apply
from vsparse.graph.ir import Concat, Node, Pad, Slice, Transpose


@propagate.register
def _(node: Transpose | Concat | Slice | Pad, params: Params, inputs: list[Box]) -> Box:
    return apply(node, params, *(lower for lower, _ in inputs)), apply(node, params, *(upper for _, upper in inputs))


def _shaped(a: Tensor, node: Node) -> Tensor:
    return a.reshape(*a.shape[:2], *node.shape)


@backward.register
def _(node: Transpose, a: Tensor, state: Pass) -> None:
    back = sorted(range(len(node.order)), key=lambda i: node.order[i])
    state.pass_on(node.inputs[0], _shaped(a, node).permute(0, 1, *(i + 2 for i in back)).flatten(2))


@backward.register
def _(node: Concat, a: Tensor, state: Pass) -> None:
    sizes = [state.graph.shape_of(name)[node.axis] for name in node.inputs]
    for name, part in zip(node.inputs, torch.split(_shaped(a, node), sizes, dim=node.axis + 2), strict=True):
        state.pass_on(name, part.flatten(2))


@backward.register
def _(node: Slice, a: Tensor, state: Pass) -> None:
    source = node.inputs[0]
    whole = a.new_zeros(*a.shape[:2], *state.graph.shape_of(source))
    places = (slice(i, j, step) for i, j, step in zip(node.starts, node.stops, node.steps, strict=True))
    whole[(slice(None), slice(None), *places)] = _shaped(a, node)
    state.pass_on(source, whole.flatten(2))


@backward.register
def _(node: Pad, a: Tensor, state: Pass) -> None:
    if node.value != 0:
        inside = a.new_zeros(1, *state.graph.shape_of(node.inputs[0]))
        state.add(a, apply(node, {}, inside).flatten(1))
    places = (slice(i, size - j) for size, i, j in zip(node.shape, node.before, node.after, strict=True))
    state.pass_on(node.inputs[0], _shaped(a, node)[(slice(None), slice(None), *places)].flatten(2))


@operator_error.register
def _(node: Transpose | Concat | Slice, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    out = magnitude(box)
    return torch.zeros_like(out), out


@operator_error.register
def _(node: Pad, rounding: Rounding, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
    """Exact, but for a value that the storage format does not hold."""
    inside = torch.zeros_like(boxes[node.inputs[0]][0])
    error = apply(replace(node, value=rounding.constant_error(node.value)), {}, inside)
    return error, magnitude(box) + error
