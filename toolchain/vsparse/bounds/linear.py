"""The linear part of an operator, forwards and transposed, with any weight: W, |W| or a kernel of error coefficients."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.bounds import paths
from vsparse.graph.ir import Affine, AveragePool, Conv, Gemm
from vsparse.graph.scaling import is_scaling, scaling

Linear = Affine | AveragePool


def forward(node: Linear, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns weight applied to x [batch, *input shape] as the node lays it out, plus bias [out]; x is zero in the padding."""
    if isinstance(node, Gemm):
        return F.linear(x, weight, bias)
    if isinstance(node, AveragePool):
        return F.conv2d(x, weight, bias, node.stride, groups=x.shape[1])
    assert isinstance(node, Conv)
    if is_scaling(node, weight):
        return scaling(weight, x, bias)
    top, left, bottom, right = node.pads
    if (top, left) == (bottom, right):
        return F.conv2d(x, weight, bias, node.stride, (top, left), node.dilation, node.groups)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, node.stride, 0, node.dilation, node.groups)


def transposed(node: Linear, weight: Tensor, a: Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """Returns the transpose of `forward` applied to a [batch, *output shape]: [batch, *input_shape]."""
    if isinstance(node, Gemm):
        return a @ weight
    if _small(node, a, weight, input_shape):
        # The rows of the matrix are the transpose of each single output; zeros add nothing, exactly.
        single = torch.eye(prod(a.shape[1:]), dtype=a.dtype, device=a.device).view(-1, *a.shape[1:])
        return (a.flatten(1) @ _spread(node, weight, single, input_shape).flatten(1)).view(-1, *input_shape)
    return _spread(node, weight, a, input_shape)


def _geometry(node: Linear, input_shape: tuple[int, ...]) -> tuple[tuple[int, int, int, int], tuple[int, int], int]:
    """Returns (pads, dilation, groups) of a convolution, or of the one that an average pool is."""
    if isinstance(node, Conv):
        return node.pads, node.dilation, node.groups
    return (0, 0, 0, 0), (1, 1), input_shape[0]


def _spread(node: Linear, weight: Tensor, a: Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """Returns the transpose by a transposed convolution."""
    assert isinstance(node, Conv | AveragePool)
    (top, left, bottom, right), dilation, groups = _geometry(node, input_shape)
    height, width = input_shape[1] + top + bottom, input_shape[2] + left + right
    reach = [(a.shape[2 + i] - 1) * node.stride[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in (0, 1)]
    full = F.conv_transpose2d(a, weight, None, node.stride, 0, 0, groups, dilation)
    # Rows and columns that no window reaches have coefficient zero.
    if (reach[0], reach[1]) != (height, width):
        full = F.pad(full, (0, width - reach[1], 0, height - reach[0]))
    return full[:, :, top : top + input_shape[1], left : left + input_shape[2]]


def _small(node: Linear, a: Tensor, weight: Tensor, input_shape: tuple[int, ...]) -> bool:
    """Returns whether one matrix product beats many small transposed convolutions: many rows, and not many more multiplications."""
    (top, left, bottom, right), _, groups = _geometry(node, input_shape)
    outputs, positions = prod(a.shape[1:]), a.shape[2] * a.shape[3]
    matrix = outputs * weight.shape[1] * groups * (input_shape[1] + top + bottom) * (input_shape[2] + left + right)
    most = min(paths.MATRIX_ELEMENTS, paths.MATRIX_WORK * positions * weight.numel())
    return len(a) >= paths.MATRIX_ROWS * outputs and matrix <= most


def pool_weight(node: AveragePool, channels: int, like: Tensor) -> Tensor:
    """Returns the depthwise weight [channels, 1, kh, kw] of the sum over a window, with ones."""
    return torch.ones((channels, 1, *node.kernel), dtype=like.dtype, device=like.device)


def per_output(node: Linear, value: Tensor) -> Tensor:
    """Returns value [out] viewed so that it broadcasts against one sample's output."""
    return value if isinstance(node, Gemm) else value[:, None, None]
