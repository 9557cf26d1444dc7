"""Moves of data, exact in every format: all rules come from what is executed, but where views of the memory are cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from vsparse.bounds.affine_box import row_major
from vsparse.bounds.ball import Box
from vsparse.bounds.element_moves import MoveBounds
from vsparse.bounds.rules import Params, register
from vsparse.graph.execute import apply
from vsparse.graph.ir import Concat, Move, Node, Pad, Reshape, Shape, Slice, Transpose

N = TypeVar("N", bound=Node)


@register(Move)
class AnyMoveBounds(MoveBounds[Move]):
    """A move of which nothing more is known than its index map."""

    def constant(self, node: Move) -> float:
        return node.fill

    def moved(self, node: Move, constant: float, *inputs: Tensor) -> Tensor:
        out = apply(node, {}, *inputs)
        puts = node.index_map([tuple(x.shape[1:]) for x in inputs]) < 0
        return out.masked_fill(torch.from_numpy(puts).to(out.device), constant) if puts.any() else out


@register(Reshape)
class ReshapeBounds(MoveBounds[Reshape]):
    """Row-major order is kept, so that coefficients stay as they are; feature maps are brought into that order before."""

    once = True
    exact = True

    def interval(self, node: Reshape, params: Params, inputs: list[Box]) -> Box:
        lower, upper = inputs[0]
        return row_major(lower).reshape(len(lower), *node.shape), row_major(upper).reshape(len(upper), *node.shape)

    def transposed(self, node: Reshape, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return [a]


@register(Transpose)
class TransposeBounds(MoveBounds[Transpose]):
    """Dimensions in another order."""

    once = True

    def transposed(self, node: Transpose, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        back = sorted(range(len(node.order)), key=lambda i: node.order[i])
        return [_shaped(a, node).permute(0, 1, *(i + 2 for i in back)).flatten(2)]


@register(Concat)
class ConcatBounds(MoveBounds[Concat]):
    """Inputs one after the other."""

    once = True

    def transposed(self, node: Concat, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        parts = torch.split(_shaped(a, node), [shape[node.axis] for shape in shapes], dim=node.axis + 2)
        return [part.flatten(2) for part in parts]


@register(Slice)
class SliceBounds(MoveBounds[Slice]):
    """Some elements of each dimension."""

    once = True

    def transposed(self, node: Slice, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        whole = a.new_zeros(*a.shape[:2], *shapes[0])
        kept = (slice(i, j, step) for i, j, step in zip(node.starts, node.stops, node.steps, strict=True))
        whole[(slice(None), slice(None), *kept)] = _shaped(a, node)
        return [whole.flatten(2)]


@register(Pad)
class PadBounds(MoveBounds[Pad]):
    """A constant put around the input."""

    once = True

    def constant(self, node: Pad) -> float:
        return node.value

    def moved(self, node: Pad, constant: float, *inputs: Tensor) -> Tensor:
        return apply(replace(node, value=constant), {}, *inputs)

    def transposed(self, node: Pad, a: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        inner = (slice(i, size - j) for size, i, j in zip(node.shape, node.before, node.after, strict=True))
        return [_shaped(a, node)[(slice(None), slice(None), *inner)].flatten(2)]


def _shaped(a: Tensor, node: Node) -> Tensor:
    return a.reshape(*a.shape[:2], *node.shape)
