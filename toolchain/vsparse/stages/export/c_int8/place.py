"""Where activations lie in the int8 C: channels last, so that the inputs of a sum follow each other, with margins of the step for zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Shape
from vsparse.graph.operators.quantised import FakeQuant
from vsparse.stages.export.c_source.place import Place

# Sums read whole words of four bytes, and so up to three beyond the end.
SLACK = 3
Margin = tuple[int, int, int, int]


@dataclass(frozen=True)
class Stored:
    """An activation: its place, and the grid of its steps, which are kept in int8 as (q − z) + `zero`; None: float32."""

    place: Place
    grid: FakeQuant | None

    @property
    def zero(self) -> int:
        """What int8 number stands for zero."""
        assert self.grid is not None
        return -128 - self.grid.steps[0]

    @property
    def element(self) -> int:
        """The bytes of an element."""
        return 4 if self.grid is None else 1

    @property
    def bytes(self) -> int:
        """The bytes of the array, what is read beyond its end included."""
        return self.element * self.place.size + (0 if self.grid is None else SLACK)

    @property
    def kind(self) -> str:
        """The C type of an element."""
        return "float" if self.grid is None else "int8_t"

    @property
    def has_margin(self) -> bool:
        """Whether something else lies between the elements."""
        return self.place.size != prod(self.place.shape)


def channels_last(array: str, shape: Shape, margin: Margin = (0, 0, 0, 0)) -> Place:
    """Returns the place of a map [channels, height, width] with a margin (top, left, bottom, right), or of any other tensor, row-major.

    What lies on the right of a row is also on the left of the next.
    """
    if len(shape) != 3:
        return Place(array, shape, 0, tuple(prod(shape[d + 1 :]) for d in range(len(shape))), prod(shape))
    channels, height, width = shape
    top, left, bottom, right = margin
    columns = width + max(left, right)
    size = ((top + height + bottom - 1) * columns + left + width + right) * channels
    return Place(array, shape, (top * columns + left) * channels, (1, columns * channels, channels), size)


def offsets_of(place: Place) -> NDArray[np.int64]:
    """Returns where each element lies in the array, in row-major order of the tensor."""
    index = np.indices(place.shape).reshape(len(place.shape), -1)
    return np.asarray(place.origin + (index * np.array(place.steps).reshape(-1, 1)).sum(axis=0))


def flat_expression(place: Place, index: str) -> str:
    """Returns the C expression of element number `index`, in row-major order of the tensor."""
    parts = []
    for d, size in enumerate(place.shape):
        below = prod(place.shape[d + 1 :])
        part = index if below == 1 else f"{index} / {below}"
        parts.append(f"({part} % {size})" if d and size > 1 else f"({part})" if size > 1 else "0")
    return place.at(parts)


def is_row_major(place: Place) -> bool:
    """Returns whether the elements lie one after the other in row-major order."""
    return bool(np.array_equal(offsets_of(place), np.arange(prod(place.shape)))) and place.size == prod(place.shape)


def nest(shape: Sequence[int]) -> tuple[list[str], list[str], str]:
    """Returns the loops over a tensor in the order in which it lies, the index of each axis, and what closes the loops."""
    order = (1, 2, 0) if len(shape) == 3 else tuple(range(len(shape)))
    indexes = [f"i{d}" if size > 1 else "0" for d, size in enumerate(shape)]
    lines = [f"for (int i{d} = 0; i{d} < {shape[d]}; i{d}++)" for d in order if shape[d] > 1]
    return [f"{'    ' * depth}{line}" for depth, line in enumerate(lines)], indexes, "    " * len(lines)
