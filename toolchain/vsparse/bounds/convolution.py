"""Convolutions of coefficients and values with any weight, and their transposes: what the rules of Conv and of average pools share."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.bounds import paths, shifted
from vsparse.graph import columns


class Geometry(NamedTuple):
    """How a convolution lies on its input: `pads` are (top, left, bottom, right)."""

    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int


def convolved(geometry: Geometry, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns weight applied to x [batch, channels, height, width] plus bias [out]; x is zero in the padding."""
    stride, (top, left, bottom, right), dilation, groups = geometry
    apply = columns.convolution if columns.by_columns(x) else F.conv2d
    if (top, left) == (bottom, right):
        return apply(x, weight, bias, stride, (top, left), dilation, groups)
    return apply(F.pad(x, (left, right, top, bottom)), weight, bias, stride, (0, 0), dilation, groups)


def transposed_convolution(geometry: Geometry, weight: Tensor, a: Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """Returns the transpose of `convolved` applied to a [batch, *output shape]: [batch, *input_shape]."""
    if by_matrix(geometry, weight, a, input_shape):
        # The rows of the matrix are the transpose of each single output; zeros add nothing, exactly.
        single = torch.eye(prod(a.shape[1:]), dtype=a.dtype, device=a.device).view(-1, *a.shape[1:])
        return (a.flatten(1) @ _spread(geometry, weight, single, input_shape).flatten(1)).view(-1, *input_shape)
    return _spread(geometry, weight, a, input_shape)


def by_matrix(geometry: Geometry, weight: Tensor, a: Tensor, input_shape: tuple[int, ...]) -> bool:
    """Returns whether one matrix product beats many small transposed convolutions: many rows, and not many more multiplications."""
    top, left, bottom, right = geometry.pads
    outputs, positions = prod(a.shape[1:]), a.shape[2] * a.shape[3]
    matrix = outputs * weight.shape[1] * geometry.groups * (input_shape[1] + top + bottom) * (input_shape[2] + left + right)
    most = min(paths.MATRIX_ELEMENTS, paths.MATRIX_WORK * positions * weight.numel())
    return len(a) >= paths.MATRIX_ROWS * outputs and matrix <= most


def _spread(geometry: Geometry, weight: Tensor, a: Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """Returns the transpose by a transposed convolution."""
    stride, (top, left, bottom, right), dilation, groups = geometry
    height, width = input_shape[1] + top + bottom, input_shape[2] + left + right
    if columns.by_columns(a):
        full = columns.transposed_convolution(a, weight, stride, dilation, groups, (height, width))
        return full[:, :, top : top + input_shape[1], left : left + input_shape[2]]
    if (
        a.dtype == torch.float64
        and weight[0, 0].numel() <= paths.SHIFTED_TAPS
        and (groups == 1 or (groups == len(weight) and weight.shape[1] == 1))
    ):
        full = shifted.transposed(weight, a, stride, dilation, groups, (height, width))
        return full[:, :, top : top + input_shape[1], left : left + input_shape[2]]
    reach = [(a.shape[2 + i] - 1) * stride[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in (0, 1)]
    full = F.conv_transpose2d(a, weight, None, stride, 0, 0, groups, dilation)
    # Rows and columns that no window reaches have coefficient zero.
    if (reach[0], reach[1]) != (height, width):
        full = F.pad(full, (0, width - reach[1], 0, height - reach[0]))
    return full[:, :, top : top + input_shape[1], left : left + input_shape[2]]
