"""A convolution as sums over shifted planes: where the copy of its input lies, and at which offset each weight reads it.

With the padded input split into one plane for each phase of the stride, the value that weight (c, ky, kx) multiplies at output (y, x) lies
at offset(c, ky, kx) + y · columns + x. All outputs of a channel are then one run of positions, whatever stride, padding and dilation are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Conv, Shape

# Whole vectors are read and written: the widest has 16 floats.
WIDEST = 16


@dataclass(frozen=True)
class Planes:
    """The layout of one convolution's input.

    `phases` are the (row, column) phases of the stride that some weight reads; a plane has `rows` × `columns` floats, and channel c's
    planes begin at c · `step`. `offsets` int64 [in/groups · kh · kw] are relative to the group's first channel. `positions` counts what
    is computed for each channel, `extent` the floats from the first on that may be read. `direct`: the input itself has this layout.
    """

    phases: tuple[tuple[int, int], ...]
    rows: int
    columns: int
    step: int
    offsets: NDArray[np.int64]
    positions: int
    extent: int
    direct: bool


def planes(node: Conv, weight_shape: Shape, input_shape: Shape) -> Planes:
    """Returns the layout for a convolution with a weight [out, in/groups, kh, kw] on an input [channels, height, width]."""
    _, channels, kh, kw = weight_shape
    down = [divmod(k * node.dilation[0], node.stride[0]) for k in range(kh)]
    across = [divmod(k * node.dilation[1], node.stride[1]) for k in range(kw)]
    phases = tuple(sorted({(a, b) for _, a in down for _, b in across}))
    height, width = node.shape[1:]
    direct = node.stride == (1, 1) and not any(node.pads)
    rows, columns = (input_shape[1], input_shape[2]) if direct else (height + down[-1][0], width + across[-1][0])
    step = len(phases) * rows * columns
    offsets = np.array(
        [c * step + (phases.index((a, b)) * rows + i) * columns + j for c in range(channels) for i, a in down for j, b in across],
        dtype=np.int64,
    )
    positions = (height - 1) * columns + width
    furthest = (node.groups - 1) * channels * step + int(offsets.max()) + round_up(positions, WIDEST)
    return Planes(phases, rows, columns, step, offsets, positions, max(furthest, input_shape[0] * step), direct)


def round_up(count: int, unit: int) -> int:
    """Returns the least multiple of `unit` that is at least `count`."""
    return -(-count // unit) * unit
