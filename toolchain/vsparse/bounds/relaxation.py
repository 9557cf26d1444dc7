"""Linear relaxations of ReLU and of max-pooling over a box."""

from __future__ import annotations

from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.rounding import TINY, UNIT64
from vsparse.graph.ir import MaxPool, Node, Relu, Shape


@singledispatch
def unsettled(node: Node, lower: Tensor, upper: Tensor) -> Tensor | None:
    """Returns where a node's relaxation over its input's box [lower, upper] is not exact (bool), None for a node that needs none."""
    return None


@unsettled.register
def _(node: Relu, lower: Tensor, upper: Tensor) -> Tensor:
    return (lower < 0) & (upper > 0)


@unsettled.register
def _(node: MaxPool, lower: Tensor, upper: Tensor) -> Tensor:
    return torch.ones_like(lower, dtype=torch.bool)


def is_relaxed(node: Node) -> bool:
    """Returns whether a node's bounds are shaped by the box of its input."""
    return unsettled.dispatch(type(node)) is not unsettled.dispatch(object)


def relu_lines(lower: Tensor, upper: Tensor, outward: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (lower slope, upper slope, upper intercept), each of the shape of `lower`, for ReLU on [lower, upper].

    slope·x <= ReLU(x) <= upper slope·x + intercept. The lower slope is 1 if upper > −lower and else 0 (Zhang et al., arXiv
    1811.00866, section 3.3). With `outward` the intercept is rounded up so that the upper line, with its slope as computed,
    dominates ReLU at both ends and so, ReLU being convex, between them (docs/numerics.md, section 5.2).
    """
    active, dead = lower >= 0, upper <= 0
    unstable = ~(active | dead)
    width = torch.where(unstable, upper - lower, torch.ones_like(lower))
    slope = torch.where(unstable, upper / width, active.to(lower.dtype))
    intercept = torch.where(unstable, -lower * slope, torch.zeros_like(lower))
    if outward:
        slope = slope.clamp(0, 1)
        needed = torch.maximum(-lower * slope, upper - upper * slope)
        needed = needed + torch.maximum(-lower, upper) * (8 * UNIT64) + TINY
        intercept = torch.where(unstable, needed, torch.zeros_like(lower))
    adaptive = torch.where(unstable, (upper > -lower).to(lower.dtype), slope)
    return adaptive, slope, intercept


def maxpool_choice(node: MaxPool, box: Box) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (index, exact, top), each [batch, outputs]: the input that bounds each window's maximum from below and above.

    `index` points into the padded map [C·H·W] at the input with the highest lower bound: the maximum is at least that input.
    `exact` says that no other input of the window can exceed it, so the maximum is that input; elsewhere the maximum is at
    most the constant `top`, the highest upper bound.
    """
    top_, left, bottom, right = node.pads
    pads = (left, right, top_, bottom)
    lower, upper = (F.pad(end, pads, value=-torch.inf) for end in box)
    _, channels, height, width = lower.shape
    # Ties go where torch's own pooling puts them, as in auto_LiRPA, so that the two can be compared.
    best, flat = F.max_pool2d(lower, node.kernel, node.stride, return_indices=True)
    rows = torch.arange(node.shape[1], device=lower.device).view(-1, 1) * node.stride[0]
    columns = torch.arange(node.shape[2], device=lower.device) * node.stride[1]
    choice = (flat // width - rows) * node.kernel[1] + (flat % width - columns)
    windows = _windows(node, upper)
    exact = best >= windows.scatter(-1, choice.unsqueeze(-1), -torch.inf).amax(dim=-1)
    plane = torch.arange(channels, device=lower.device).view(-1, 1, 1) * (height * width)
    return (plane + flat).flatten(1), exact.flatten(1), windows.amax(dim=-1).flatten(1)


def _windows(node: MaxPool, x: Tensor) -> Tensor:
    """Returns the windows of a padded map as [batch, C, oh, ow, kh·kw]."""
    return x.unfold(2, node.kernel[0], node.stride[0]).unfold(3, node.kernel[1], node.stride[1]).flatten(4)


def scatter_to_input(node: MaxPool, a: Tensor, index: Tensor, shape: Shape) -> Tensor:
    """Returns coefficients [batch, rows, outputs] moved to the chosen inputs: [batch, rows, C·H·W] of the unpadded map."""
    top, left, bottom, right = node.pads
    channels, height, width = shape[0], shape[1] + top + bottom, shape[2] + left + right
    spread = a.new_zeros(*a.shape[:2], channels * height * width)
    spread = spread.scatter_add(2, index.unsqueeze(1).expand_as(a), a)
    return spread.view(*a.shape[:2], channels, height, width)[..., top : top + shape[1], left : left + shape[2]].flatten(2)
