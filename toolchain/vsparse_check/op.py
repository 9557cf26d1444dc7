"""One operator of a network on flat activations [samples, size]: its geometry, and the linear maps that it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsparse_check.limits import CALL, ELEMENT

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Shape = tuple[int, ...]
Grid = tuple[float, ...]  # scale, least and greatest step q − zero point, least q; the scale alone where values are no longer all steps
EMPTY: Array = np.zeros(0)


class Op(NamedTuple):
    """One operator: the activation it makes, those it reads, its output shape, and what its kind needs.

    Kinds and forms: `linear` z = W·x + b (forms sum, pool, and on single elements shift, scale, div, neg); `add` of two activations (form
    sub: the second is subtracted); `relu`; `maxpool`; `quant` (scale · step); `curve`, a function of each element that does not decrease
    (forms leaky, clip, sigmoid, tanh); `move`, elements put elsewhere (form move of one activation, concat of several).
    """

    kind: str
    output: str
    inputs: tuple[str, ...]
    shape: Shape
    form: str = ""
    weight: Array = EMPTY  # linear: [size] of a diagonal, [out, in] or [groups, out, in, taps]
    bias: Array = EMPTY  # linear, and the constants of a move: [size]
    source: Shape = ()  # the map [C, H, W] that is read, before padding
    kernel: Shape = ()
    stride: Shape = ()
    pads: Shape = ()  # top, left, bottom, right
    dilation: Shape = ()
    grid: Grid = ()  # quant
    ends: tuple[float, ...] = ()  # curve: the slope of leaky, the two ends of clip; div: the least |divisor|; move: the padded value
    places: tuple[tuple[Ints, Ints], ...] = ()  # move: for each input the places in the output, and the elements that stand there

    @property
    def size(self) -> int:
        """Returns the number of elements of the output."""
        return prod(self.shape)

    @property
    def padded(self) -> int:
        """Returns the number of elements of the map that a window reads, padding included."""
        if not self.pads:
            return 0
        return self.source[0] * (self.source[1] + self.pads[0] + self.pads[2]) * (self.source[2] + self.pads[1] + self.pads[3])

    @property
    def room(self) -> int:
        """Returns how many numbers one row of this operator takes at once: what it reads, padded, and what it makes."""
        return 2 * self.padded + 2 * self.size + max((len(out) for out, _ in self.places), default=0)

    def work(self, rows: int) -> float:
        """Returns the work of one pass of so many rows (limits.py)."""
        taps = prod(self.kernel) if self.kernel else 1
        products = self.weight.size if self.weight.ndim == 2 else self.weight.size * (self.size // max(1, self.shape[0]))
        products = products if self.weight.ndim in (2, 4) else 0
        elements = self.size * (taps if self.kind == "maxpool" else 1) + self.padded
        return CALL * (4 + taps) + rows * (products + ELEMENT * elements)

    def _tapped(self, maps: Array) -> Iterable[Array]:
        """Returns for each tap of the kernel the part of padded maps [n, C, H, W] that it meets, as views."""
        reach = [s * (t - 1) + 1 for s, t in zip(self.stride, self.shape[1:], strict=True)]
        for place in np.ndindex(self.kernel):
            i, j = (p * d for p, d in zip(place, self.dilation, strict=True))
            yield maps[:, :, i : i + reach[0] : self.stride[0], j : j + reach[1] : self.stride[1]]

    def views(self, x: Array, padding: float) -> Iterable[Array]:
        """Returns for each tap the part [n, C, *output map] of x [n, size in] that it meets."""
        top, left, bottom, right = self.pads
        edges = ((0, 0), (0, 0), (top, bottom), (left, right))
        return self._tapped(np.pad(x.reshape(-1, *self.source), edges, constant_values=padding))

    def largest_view(self, x: Array, padding: float = -np.inf) -> Array:
        """Returns the largest element of each window of x [n, size in], [n, size out]."""
        largest: Array | None = None
        for view in self.views(x, padding):
            largest = view.copy() if largest is None else np.maximum(largest, view, out=largest)
        assert largest is not None
        return largest.reshape(len(x), -1)

    def scattered(self, parts: Iterable[Array], n: int) -> Array:
        """Returns the transpose of `views`: for each tap a part, all added up to [n, size in]."""
        (channels, height, width), (top, left, bottom, right) = self.source, self.pads
        maps = np.zeros((n, channels, height + top + bottom, width + left + right))
        for view, part in zip(self._tapped(maps), parts, strict=True):
            view += part.reshape(view.shape)
        return maps[:, :, top : top + height, left : left + width].reshape(n, -1)

    def forward(self, weight: Array, x: Array) -> Array:
        """Returns weight · x for x [n, size in], [n, size out]; `weight` has the shape of the operator's own."""
        if weight.ndim < 4:
            return np.asarray(x * weight if weight.ndim == 1 else x @ weight.T)
        total: Array | None = None
        for k, view in enumerate(self.views(x, 0.0)):
            part = weight[..., k] @ view.reshape(len(x), len(weight), weight.shape[2], -1)
            total = part if total is None else np.add(total, part, out=total)
        assert total is not None
        return total.reshape(len(x), -1)

    def backward(self, a: Array) -> Array:
        """Returns a · W for rows a [r, size out], [r, size in]."""
        if self.weight.ndim < 4:
            return np.asarray(a * self.weight if self.weight.ndim == 1 else a @ self.weight)
        maps = a.reshape(len(a), *self.weight.shape[:2], -1)
        return self.scattered((self.weight[..., k].transpose(0, 2, 1) @ maps for k in range(self.weight.shape[3])), len(a))

    def moved(self, values: list[Array]) -> Array:
        """Returns the output [n, size] of a move of values [n, size in] for each input; padding is its constant."""
        out = np.repeat(self.bias[None], len(values[0]), axis=0)
        for value, (target, element) in zip(values, self.places, strict=True):
            out[:, target] = value[:, element]
        return out

    def moved_back(self, a: Array, sizes: list[int]) -> list[Array]:
        """Returns rows [r, size in] for each input, of so many elements, for rows a [r, size out] of a move: its transpose."""
        parts = []
        for size, (target, element) in zip(sizes, self.places, strict=True):
            part = np.zeros((len(a), size))
            part[:, element] = a[:, target]
            parts.append(part)
        return parts
