"""Sliding windows over maps [channels, height, width]: what convolutions and pools read."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import numpy as np

from vsparse_check.arrays import Dims, FloatArray


class SlidingWindow(NamedTuple):
    """The geometry of a window over maps of the shape `source`, as in ONNX."""

    source: Dims  # the maps [C, H, W] that are read, before padding
    kernel: Dims
    stride: Dims
    pads: Dims  # top, left, bottom, right
    dilation: Dims

    @property
    def taps(self) -> int:
        """Returns how many positions a window has."""
        return prod(self.kernel)

    @property
    def padded_shape(self) -> Dims:
        """Returns the shape of the maps with their padding."""
        channels, height, width = self.source
        top, left, bottom, right = self.pads
        return channels, height + top + bottom, width + left + right

    @property
    def padded_size(self) -> int:
        """Returns the number of elements of the maps with their padding."""
        return prod(self.padded_shape)

    def taps_of(self, maps: FloatArray, shape: Dims) -> Iterable[FloatArray]:
        """Returns for each tap the part [n, C, *shape] of padded maps that it meets, as views."""
        rows, columns = (s * (size - 1) + 1 for s, size in zip(self.stride, shape, strict=True))
        row_step, column_step = self.stride
        for tap in np.ndindex(self.kernel):
            i, j = (position * d for position, d in zip(tap, self.dilation, strict=True))
            yield maps[:, :, i : i + rows : row_step, j : j + columns : column_step]

    def views(self, x: FloatArray, shape: Dims, padding: float) -> Iterable[FloatArray]:
        """Returns for each tap the part [n, C, *shape] of x [n, C·H·W] that it meets."""
        top, left, bottom, right = self.pads
        edges = ((0, 0), (0, 0), (top, bottom), (left, right))
        maps = np.pad(x.reshape(-1, *self.source), edges, constant_values=padding)
        return self.taps_of(maps, shape)

    def scattered(self, parts: Iterable[FloatArray], shape: Dims, n: int) -> FloatArray:
        """Returns the transpose of `views`: a part for each tap, all added up to [n, C·H·W]."""
        _, height, width = self.source
        top, left = self.pads[:2]
        maps = np.zeros((n, *self.padded_shape))
        for view, part in zip(self.taps_of(maps, shape), parts, strict=True):
            view += part.reshape(view.shape)
        return maps[:, :, top : top + height, left : left + width].reshape(n, -1)
