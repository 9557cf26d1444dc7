"""The linear part of an operator, forwards and transposed, with any weight: W, |W| or a kernel of error coefficients."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.graph.ir import Affine, AveragePool, Conv, Gemm
from vsparse.graph.scaling import is_scaling, scaling

Linear = Affine | AveragePool
# How many more multiplications a matrix may take than a convolution.
MATRIX_WORK = 8


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
    assert isinstance(node, Conv | AveragePool)
    top, left, bottom, right = node.pads if isinstance(node, Conv) else (0, 0, 0, 0)
    dilation = node.dilation if isinstance(node, Conv) else (1, 1)
    groups = node.groups if isinstance(node, Conv) else input_shape[0]
    height, width = input_shape[1] + top + bottom, input_shape[2] + left + right
    if _small(a, weight, (height, width), groups):
        return _by_matrix(node, weight, a, input_shape)
    reach = [(a.shape[2 + i] - 1) * node.stride[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in (0, 1)]
    full = F.conv_transpose2d(a, weight, None, node.stride, 0, 0, groups, dilation)
    # Rows and columns that no window reaches have coefficient zero.
    if (reach[0], reach[1]) != (height, width):
        full = F.pad(full, (0, width - reach[1], 0, height - reach[0]))
    return full[:, :, top : top + input_shape[1], left : left + input_shape[2]]


def _small(a: Tensor, weight: Tensor, padded: tuple[int, int], groups: int) -> bool:
    """Returns whether one matrix product beats many small transposed convolutions: many rows, and not many more multiplications."""
    outputs, positions = prod(a.shape[1:]), a.shape[2] * a.shape[3]
    matrix = outputs * weight.shape[1] * groups * prod(padded)
    return len(a) >= 4 * outputs and matrix <= min(2**22, MATRIX_WORK * positions * weight.numel())


def _by_matrix(node: Linear, weight: Tensor, a: Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """Returns the transpose applied as a matrix, whose rows are the transpose of each single output; zeros add nothing, exactly."""
    single = torch.eye(prod(a.shape[1:]), dtype=a.dtype, device=a.device).view(-1, *a.shape[1:])
    return (a.flatten(1) @ transposed(node, weight, single, input_shape).flatten(1)).view(-1, *input_shape)


def pool_weight(node: AveragePool, channels: int, like: Tensor) -> Tensor:
    """Returns the depthwise weight [channels, 1, kh, kw] of the sum over a window, with ones."""
    return torch.ones((channels, 1, *node.kernel), dtype=like.dtype, device=like.device)


def per_output(node: Linear, value: Tensor) -> Tensor:
    """Returns value [out] viewed so that it broadcasts against one sample's output."""
    return value if isinstance(node, Gemm) else value[:, None, None]
