"""Convolutions and their transposes as products of whole matrices, one for each tap of the kernel, on shifted views of the maps.

A tap multiplies all maps by one matrix and moves them by a fixed distance. In maps that lie one behind the other with enough zeros between
them the move is an offset into memory, so that no columns are made: each tap is one matrix product that is added up in place. Every result
is a sum of the products that the convolution has, and of exact zeros (docs/numerics.md, section 5.5).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vsparse.graph.columns import Pair

# How much larger than the maps themselves they may be with their zeros, before all taps are multiplied at once and added up after that.
MOST_PADDED = 1.5


class _Tap(NamedTuple):
    """One element of a kernel: its place there, and by how many positions of the small map it moves."""

    place: Pair
    move: Pair


def transposed(weight: Tensor, a: Tensor, stride: Pair, dilation: Pair, groups: int, size: Pair) -> Tensor:
    """Returns the transpose of a convolution without padding, of an input of `size`, applied to a [batch, out, h, w].

    `weight` is [out, in/groups, kh, kw]; the result [batch, in, *size] has zeros where no window reaches. One group, or one input and one
    output for each.
    """
    count, channels, height, width = a.shape
    depthwise = groups > 1
    into = groups if depthwise else weight.shape[1]
    reach = [dilation[i] * (weight.shape[2 + i] - 1) // stride[i] for i in (0, 1)]
    rows, columns = height + reach[0], width + reach[1]
    if not depthwise and rows * columns > MOST_PADDED * height * width:
        return _scattered(weight, a, stride, dilation, size)
    # Maps one behind the other, `reach` zeros below and to the right of each, and zeros before the first.
    before, length = reach[0] * columns + reach[1], count * rows * columns
    flat = a.new_zeros(channels, before + length)
    flat[:, before:].view(channels, count, rows, columns)[:, :, :height, :width] = a.transpose(0, 1)
    taps = _by_phase(weight, stride, dilation)
    if stride == (1, 1):
        small = _added(weight, flat, taps[0, 0], columns, before, length, into, depthwise)
        whole = small.view(into, count, rows, columns)[:, :, : size[0], : size[1]].transpose(0, 1)
        if (rows, columns) == size:
            return whole.contiguous()
        found = a.new_zeros(count, into, *size)
        found[:, :, : whole.shape[2], : whole.shape[3]] = whole
        return found
    found = a.new_zeros(count, into, *size)
    for (down, across), mine in taps.items():
        target = found[:, :, down :: stride[0], across :: stride[1]]
        small = _added(weight, flat, mine, columns, before, length, into, depthwise).view(into, count, rows, columns)
        some = small[:, :, : target.shape[2], : target.shape[3]].transpose(0, 1)
        target[:, :, : some.shape[2], : some.shape[3]] = some
    return found


def _scattered(weight: Tensor, a: Tensor, stride: Pair, dilation: Pair, size: Pair) -> Tensor:
    """Returns `transposed` of one group by one product for all taps, whose maps are then added up: where zeros would enlarge maps most."""
    count, channels, height, width = a.shape
    into, kernel = weight.shape[1], (weight.shape[2], weight.shape[3])
    found = a.new_zeros(count, into, *size)
    if (height, width) == (1, 1):  # no two taps meet
        target = found[:, :, : dilation[0] * (kernel[0] - 1) + 1 : dilation[0], : dilation[1] * (kernel[1] - 1) + 1 : dilation[1]]
        target.copy_((a.flatten(1) @ weight.flatten(1)).view(count, into, *kernel))
        return found
    matrix = weight.permute(2, 3, 1, 0).reshape(-1, channels)
    maps = (matrix @ a.transpose(0, 1).reshape(channels, -1)).view(*kernel, into, count, height, width)
    down, across = stride[0] * (height - 1) + 1, stride[1] * (width - 1) + 1
    sums = found.transpose(0, 1)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            y, x = i * dilation[0], j * dilation[1]
            sums[:, :, y : y + down : stride[0], x : x + across : stride[1]] += maps[i, j]
    return found


def _by_phase(weight: Tensor, stride: Pair, dilation: Pair) -> dict[Pair, list[_Tap]]:
    """Returns the taps of a kernel by the positions of the input, modulo the stride, that they write to; moves are in outputs."""
    phases: dict[Pair, list[_Tap]] = {}
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            y, x = i * dilation[0], j * dilation[1]
            phases.setdefault((y % stride[0], x % stride[1]), []).append(_Tap((i, j), (y // stride[0], x // stride[1])))
    return phases


def _added(weight: Tensor, flat: Tensor, taps: list[_Tap], columns: int, before: int, length: int, into: int, depthwise: bool) -> Tensor:
    """Returns the sum over taps of their matrix times the maps, moved: [into, length]."""
    found: Tensor | None = None
    for (i, j), (down, across) in taps:
        start = before - down * columns - across
        view = flat[:, start : start + length]
        if depthwise:
            factor = weight[:, 0, i, j].unsqueeze(1)
            found = view * factor if found is None else found.addcmul_(view, factor)
        else:
            matrix = weight[:, :, i, j].t()
            found = torch.mm(matrix, view) if found is None else found.addmm_(matrix, view)
    return flat.new_zeros(into, length) if found is None else found


def convolved(weight: Tensor, x: Tensor, pads: tuple[int, int, int, int], dilation: Pair = (1, 1)) -> Tensor:
    """Returns weight [out, in, kh, kw] applied with stride 1 to x [batch, in, h, w], zero in the padding (top, left, bottom, right)."""
    count, channels, height, width = x.shape
    top, left, bottom, right = pads
    rows, columns = height + top + bottom, width + left + right
    reach = [dilation[i] * (weight.shape[2 + i] - 1) for i in (0, 1)]
    length = count * rows * columns
    flat = x.new_zeros(channels, length + reach[0] * columns + reach[1])
    flat[:, :length].view(channels, count, rows, columns)[:, :, top : top + height, left : left + width] = x.transpose(0, 1)
    taps = [_Tap((i, j), (-i * dilation[0], -j * dilation[1])) for i in range(weight.shape[2]) for j in range(weight.shape[3])]
    small = _added(weight.transpose(0, 1), flat, taps, columns, 0, length, len(weight), False)
    return small.view(-1, count, rows, columns)[:, :, : rows - reach[0], : columns - reach[1]].transpose(0, 1)
