"""Windows over maps of fingerprints: how many fit, and which elements they have at each position of the kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

HashArray = NDArray[np.uint64]
TwoSizes = tuple[int, int]
FourPads = tuple[int, int, int, int]


def window_shape(shape: Sequence[int], kernel: TwoSizes, stride: TwoSizes, pads: FourPads, dilation: TwoSizes = (1, 1)) -> TwoSizes:
    """Returns how many windows fit, vertically and horizontally."""
    rows, columns = ((size + pads[i] + pads[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i, size in enumerate(shape))
    return rows, columns


def windows(
    x: HashArray, kernel: TwoSizes, stride: TwoSizes, pads: FourPads, dilation: TwoSizes = (1, 1)
) -> list[tuple[TwoSizes, HashArray]]:
    """Returns for each position (i, j) of the kernel the elements of [batch, channels, h, w] that the windows have there; 0 outside."""
    rows, columns = window_shape(x.shape[2:], kernel, stride, pads, dilation)
    cut = x[:, :, max(-pads[0], 0) : x.shape[2] + min(pads[2], 0), max(-pads[1], 0) : x.shape[3] + min(pads[3], 0)]
    (top, left, bottom, right) = (max(pad, 0) for pad in pads)
    wide = np.pad(cut, ((0, 0), (0, 0), (top, bottom), (left, right))) if any((top, left, bottom, right)) else cut
    taps = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            first, second = i * dilation[0], j * dilation[1]
            taps.append(
                (
                    (i, j),
                    wide[
                        :,
                        :,
                        first : first + (rows - 1) * stride[0] + 1 : stride[0],
                        second : second + (columns - 1) * stride[1] + 1 : stride[1],
                    ],
                )
            )
    return taps
