"""The interval of an affine operator as one differentiable step: the hot path of certified training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.linear import forward
from vsparse.graph.ir import Affine, Conv
from vsparse.graph.scaling import is_scaling, scaling_gradients


class AffineBox(torch.autograd.Function):
    """(lower, upper) of W·x + b for x in a box: W/2 on the sum of the ends, |W|/2 on their difference.

    Autograd would derive the same gradients from the same formula; writing them out saves a third of the passes over
    memory and keeps float32 feature maps in the layout for which the convolution kernels are fast, in both directions.
    """

    @staticmethod
    def forward(ctx: Any, node: Affine, weight: Tensor, bias: Tensor | None, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = preferred_layout(lower), preferred_layout(upper)
        # After each step once more: torch forgets which layout a map of one channel is in, and would mix the two.
        total, width = preferred_layout(lower + upper), preferred_layout(upper - lower)
        half = preferred_layout(weight) * 0.5
        centre = preferred_layout(forward(node, preferred_layout(half), total, bias))
        radius = preferred_layout(forward(node, preferred_layout(half.abs()), width))
        ctx.node = node
        ctx.save_for_backward(weight, total, width)
        return centre - radius, centre.add_(radius)

    @staticmethod
    def backward(ctx: Any, grad_lower: Tensor, grad_upper: Tensor) -> tuple[Tensor | None, ...]:
        weight, total, width = ctx.saved_tensors
        _, of_weight, of_bias, *of_ends = ctx.needs_input_grad
        wanted = (any(of_ends), of_weight)
        grad_lower, grad_upper = preferred_layout(grad_lower), preferred_layout(grad_upper)
        grad_centre, grad_radius = grad_lower + grad_upper, grad_upper - grad_lower
        half = preferred_layout(weight) * 0.5
        to_total, to_weight = gradients(ctx.node, half, total, grad_centre, wanted)
        to_width, to_magnitude = gradients(ctx.node, half.abs(), width, grad_radius, wanted)
        grad_weight = to_magnitude.mul_(weight.sign()).add_(to_weight).mul_(0.5) if of_weight else None
        grad_bias = grad_centre.sum([d for d in range(grad_centre.dim()) if d != 1]) if of_bias else None
        if not any(of_ends):
            return None, grad_weight, grad_bias, None, None
        return None, grad_weight, grad_bias, to_total - to_width, to_total.add_(to_width)


def affine_box(node: Affine, weight: Tensor, bias: Tensor | None, lower: Tensor, upper: Tensor) -> Box:
    """Returns the interval of an affine node over (lower, upper), differentiable with respect to weight, bias and both ends."""
    box: Box = AffineBox.apply(node, weight, bias, lower, upper)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return box


def row_major(x: Tensor) -> Tensor:
    """Returns x in row-major layout, with a gradient that keeps the layout convolutions prefer."""
    moved: Tensor = RowMajor.apply(x)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return moved


def gradients(node: Affine, weight: Tensor, x: Tensor, grad: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
    """Returns the gradients of `forward(node, weight, x)` to x and to weight, each None where it is not wanted."""
    if not isinstance(node, Conv):
        return grad @ weight if wanted[0] else None, grad.T @ x if wanted[1] else None
    if is_scaling(node, weight):
        return scaling_gradients(weight, x, grad, wanted)
    if tuple(weight.shape[2:]) == (1, 1) and tuple(node.stride) != (1, 1):
        return _pointwise_gradients(node, weight, x, grad, wanted)
    top, left, bottom, right = node.pads
    symmetric = (top, left) == (bottom, right)
    padded = x if symmetric else torch.nn.functional.pad(x, (left, right, top, bottom))
    padding = [top, left] if symmetric else [0, 0]
    arguments = (None, list(node.stride), padding, list(node.dilation), False, [0, 0], node.groups, [*wanted, False])
    grad, padded, weight = (preferred_layout(value) for value in (grad, padded, weight))
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(grad, padded, weight, *arguments)
    if wanted[0] and not symmetric:
        to_x = to_x[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return to_x, to_weight


def _pointwise_gradients(node: Conv, weight: Tensor, x: Tensor, grad: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
    """`gradients` of a strided 1×1 convolution, as of one with stride 1 over the positions that it reads.

    torch (2.13, oneDNN, channels last) writes outside of its buffers in the strided form with few input channels.
    """
    top, left, bottom, right = node.pads
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    rows, columns = (slice(None, None, step) for step in node.stride)
    grad, read, weight = (preferred_layout(value) for value in (grad, padded[:, :, rows, columns], weight))
    arguments = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], node.groups, [*wanted, False])
    to_read, to_weight, _ = torch.ops.aten.convolution_backward(grad, read, weight, *arguments)
    if not wanted[0]:
        return None, to_weight
    to_padded = torch.zeros_like(padded)
    to_padded[:, :, rows, columns] = to_read
    return to_padded[:, :, top : top + x.shape[2], left : left + x.shape[3]], to_weight


class RowMajor(torch.autograd.Function):
    """Feature maps in row-major layout for a reshape; their gradient goes back in the layout that convolutions prefer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return preferred_layout(grad)


def preferred_layout(x: Tensor) -> Tensor:
    """Returns float32 feature maps and convolution weights with the channels last in memory; everything else as it is."""
    if x.dim() != 4 or x.dtype != torch.float32:
        return x
    x = x.contiguous(memory_format=torch.channels_last)
    if x.shape[1] == 1:
        # One channel is both layouts at once, and kernels take it for the slow one unless the strides say otherwise.
        _, _, height, width = x.shape
        x = x.as_strided(x.shape, (height * width, 1, width, 1))
    return x
