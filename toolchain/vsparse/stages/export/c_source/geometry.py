"""A convolution as sums over shifted planes: where the copy of its input lies, and at which offset each weight reads it.

The padded input is copied once for each column of the kernel (and phase of the vertical stride), shifted and with exactly the columns
of the output. The value that weight (c, ky, kx) multiplies at output (y, x) then lies at offset(c, ky, kx) + y · width + x, so that all
outputs of a channel are one run of positions without a gap, whatever kernel, stride, padding and dilation are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Conv, Shape

# Whole vectors are read: the widest has 16 floats.
WIDEST = 16
# Planes of at least this many floats begin at a cache line, an odd number of lines apart, so that they do not meet in one set of a cache.
LARGE = 256


@dataclass(frozen=True)
class Planes:
    """The layout of one convolution's input.

    `taps` are the (row phase of the stride, shift of the columns) of each plane; a plane has `rows` × `columns` floats, room for `plane`,
    and channel c's planes begin at c · `step`. `offsets` int64 [in/groups · kh · kw] are relative to the group's first channel. `positions`
    counts the outputs of a channel, `extent` the floats from the first on that may be read or, in a copy, are written. `direct`: the input
    itself has this layout.
    """

    taps: tuple[tuple[int, int], ...]
    rows: int
    columns: int
    plane: int
    step: int
    offsets: NDArray[np.int64]
    positions: int
    extent: int
    direct: bool


def planes(node: Conv, weight_shape: Shape, input_shape: Shape) -> Planes:
    """Returns the layout for a convolution with a weight [out, in/groups, kh, kw] on an input [channels, height, width]."""
    _, channels, kh, kw = weight_shape
    down = [divmod(k * node.dilation[0], node.stride[0]) for k in range(kh)]
    shifts = [k * node.dilation[1] for k in range(kw)]
    taps = tuple(sorted({(phase, shift) for _, phase in down for shift in shifts}))
    height, width = node.shape[1:]
    direct = node.stride == (1, 1) and not any(node.pads) and kw == 1
    rows = input_shape[1] if direct else height + down[-1][0]
    plane = rows * width
    if plane >= LARGE and not direct:
        plane = (round_up(plane, WIDEST) // WIDEST | 1) * WIDEST
    step = len(taps) * plane
    offsets = np.array(
        [c * step + taps.index((phase, shift)) * plane + i * width for c in range(channels) for i, phase in down for shift in shifts],
        dtype=np.int64,
    )
    positions = height * width
    furthest = (node.groups - 1) * channels * step + int(offsets.max()) + max(positions, WIDEST)
    if not direct:  # a copy fills every row of a plane, also one that no weight of its phase reads
        furthest = max(furthest, (input_shape[0] - 1) * step + (len(taps) - 1) * plane + rows * width)
    return Planes(taps, rows, width, plane, offsets=offsets, step=step, positions=positions, extent=furthest, direct=direct)


def round_up(count: int, unit: int) -> int:
    """Returns the least multiple of `unit` that is at least `count`."""
    return -(-count // unit) * unit
