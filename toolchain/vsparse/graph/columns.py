"""Convolutions in float64 on an accelerator: columns of the input times the weight, one matrix product (docs/numerics.md, section 5.4).

A convolution of the vendor's library may be one by FFT or Winograd, whose error no γ of a sum of products covers. A matrix product is that
sum, in some order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of the columns that are made at once: they have as many elements for each of the input's as the kernel has.
COLUMN_BYTES = 2**28
Pair = tuple[int, int]


def by_columns(x: Tensor) -> bool:
    """Returns whether a convolution of x is computed from columns: in float64 anywhere but on the processor, whose kernels are direct."""
    return x.dtype == torch.float64 and x.device.type != "cpu"


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """Returns what `torch.nn.functional.conv2d` does for x [batch, channels, height, width]: each output one sum of products and its bias.

    Zeros that the padding puts into columns are multiplied and added exactly.
    """
    kernel = (weight.shape[2], weight.shape[3])
    height, width = ((x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    step = _step(weight, groups, height * width)
    parts = [
        _product(weight, F.unfold(part, kernel, dilation, padding, stride), groups).view(len(part), len(weight), height, width)
        for part in torch.split(x, step)
    ]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole if bias is None else whole + bias.view(-1, 1, 1)


def transposed_convolution(a: Tensor, weight: Tensor, stride: Pair, dilation: Pair, groups: int, size: Pair) -> Tensor:
    """Returns the transpose of `convolution` without padding, of an input of this height and width, applied to a [batch, *output shape].

    Each element is one sum over the outputs that read it: products with the transposed weight, added up where columns overlap.
    """
    kernel = (weight.shape[2], weight.shape[3])
    flat = weight.view(groups, len(weight) // groups, -1).transpose(1, 2).reshape(-1, len(weight) // groups)
    step = _step(weight, groups, a.shape[2] * a.shape[3])
    parts = [F.fold(_product(flat, part.flatten(2), groups), size, kernel, dilation, 0, stride) for part in torch.split(a, step)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _product(weight: Tensor, columns: Tensor, groups: int) -> Tensor:
    """Returns weight [out, …] times columns [batch, rows, positions], group by group: [batch, out, positions]."""
    batch, rows, positions = columns.shape
    matrix = weight.reshape(groups, len(weight) // groups, -1)
    if groups == 1:
        return torch.bmm(matrix.expand(batch, -1, -1), columns)
    each = matrix.expand(batch, -1, -1, -1).flatten(0, 1)
    return torch.bmm(each, columns.reshape(batch * groups, rows // groups, positions)).view(batch, len(weight), positions)


def _step(weight: Tensor, groups: int, positions: int) -> int:
    """Returns how many inputs are worked on at once."""
    return max(1, COLUMN_BYTES // max(1, 8 * weight[0].numel() * groups * positions))
