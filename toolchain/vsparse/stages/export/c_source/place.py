"""How a tensor lies in an array: row-major, or a map with a margin of zeros around it, so that a convolution reads its padding there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from vsparse.graph.ir import Conv, Shape


@dataclass(frozen=True)
class Place:
    """Element (i, j, …) of a tensor of `shape` is array[origin + i · steps[0] + j · steps[1] + …]; `size` elements belong to the array."""

    array: str
    shape: Shape
    origin: int
    steps: tuple[int, ...]
    size: int

    @property
    def is_plain(self) -> bool:
        """Whether the elements follow each other in row-major order, and nothing else lies between them."""
        return self.origin == 0 and self.size == prod(self.shape)

    def at(self, indexes: Sequence[str]) -> str:
        """Returns the C expression of an element, each index an expression of its own."""
        terms = [
            f"{index} * {step}" if step != 1 else index for index, step in zip(indexes, self.steps, strict=True) if index != "0" and step
        ]
        inner = " + ".join([*([str(self.origin)] if self.origin else []), *terms]) or "0"
        return f"{self.array}[{inner}]"


def plain(array: str, shape: Shape) -> Place:
    """Returns the place of a tensor in row-major order."""
    steps = tuple(prod(shape[d + 1 :]) for d in range(len(shape)))
    return Place(array, shape, 0, steps, prod(shape))


def padded(array: str, shape: Shape, margin: tuple[int, int, int, int]) -> Place:
    """Returns the place of a map [channels, height, width] with a margin (top, left, bottom, right) of zeros.

    The zeros on the right of a row are those on the left of the next, and the zeros below a channel those above the next.
    """
    channels, height, width = shape
    top, left, bottom, right = margin
    columns = width + max(left, right)
    step = (height + max(top, bottom)) * columns
    size = (channels - 1) * step + (top + height + bottom - 1) * columns + left + width + right
    return Place(array, shape, top * columns + left, (step, columns, 1), size)


def margin_of(node: Conv, weight_shape: Shape, shape: Shape) -> tuple[int, int, int, int]:
    """Returns the zeros (top, left, bottom, right) around a map of `shape` [channels, height, width] that a convolution reads."""
    top, left = node.pads[:2]
    ends = [
        (node.shape[d] - 1) * node.stride[d - 1] + (weight_shape[d + 1] - 1) * node.dilation[d - 1] + 1 - node.pads[d - 1] - shape[d]
        for d in (1, 2)
    ]
    return top, left, max(ends[0], 0), max(ends[1], 0)
