"""One backward linear (CROWN) pass of a single row per sample, for training: the rules of `bounds.operators`, with gradients written out.

A row is kept in the shape of its activation, in the layout that convolutions prefer. Operators other than affine layers, batch norm
and ReLU go through these rules themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.bounds.affine_box import gradients, preferred_layout, row_major
from vsparse.bounds.backward import CrownPass
from vsparse.bounds.ball import Box
from vsparse.bounds.choices import Choices
from vsparse.bounds.linear import forward
from vsparse.bounds.rules import rules_of
from vsparse.graph.execute import channel_affine, per_channel
from vsparse.graph.ir import Affine, BatchNorm, Conv, Graph, Node, Relu, Reshape
from vsparse.stages.train.bounds.fast_interval import blocks, folded, pieces

# Input channels up to which windows beat the transposed convolution.
FEW = 4
# Below any width of an unstable unit's box that float32 networks have; keeps 0/0 away where both ends are 0.
TINY = 1e-30


def row_lower(graph: Graph, params: Mapping[str, Tensor], box: Box, row: Tensor, boxes: Mapping[str, Box]) -> Tensor:
    """Returns lower bounds [batch] of row · output for all inputs in `box`, row [batch, outputs] being one row for each sample.

    `boxes` holds what ReLUs (and pools) read, as from `fast_interval(..., "relu")`; lower ReLU slopes are adaptive (Zhang et al., arXiv
    1811.00866, section 3.3). Differentiable with respect to params, box, row and boxes; plain arithmetic, never for a verdict.
    """
    fused = {norm.name: name for name, (norm, _) in blocks(graph).items() if norm is not None}
    norms = {fused[node.name]: node for node in graph.nodes if isinstance(node, BatchNorm) and node.name in fused}
    rows = {graph.output: row.view(len(row), *graph.shape_of(graph.output))}
    constant = row.new_zeros(len(row))
    for node in reversed(graph.nodes):
        a = rows.pop(node.name, None)
        if a is None:
            continue
        if isinstance(node, Affine):
            weight, bias = params[node.weight], None if node.bias is None else params[node.bias]
            if node.name in norms:
                weight, bias = folded(norms[node.name], params, weight, bias)
            if bias is not None:
                constant = constant + _per_channel_sum(a) @ bias
            passed = {node.inputs[0]: Transposed.apply(node, weight, a, graph.shape_of(node.inputs[0]))}  # type: ignore[no-untyped-call]
        elif isinstance(node, Relu):
            through, lost = ReluRow.apply(a, *boxes[node.inputs[0]])  # type: ignore[no-untyped-call]
            constant, passed = constant - lost, {node.inputs[0]: through}
        elif isinstance(node, BatchNorm):
            if node.name in fused:
                passed = {node.inputs[0]: a}
            else:
                scale, shift = channel_affine(node, params)
                constant = constant + _per_channel_sum(a) @ shift
                passed = {node.inputs[0]: a * per_channel(scale, a)}
        elif isinstance(node, Reshape):
            shape = graph.shape_of(node.inputs[0])
            passed = {node.inputs[0]: row_major(a).view(len(a), *shape)}
        else:
            passed, added = _by_rule(graph, params, boxes, node, a)
            constant = constant + added
        for name, value in passed.items():
            rows[name] = rows[name] + value if name in rows else value
    a = rows[graph.input]
    lower, upper = box
    ends = a * (lower + upper) - a.abs() * (upper - lower)
    return constant + ends.flatten(1).sum(1) * 0.5


def _by_rule(
    graph: Graph, params: Mapping[str, Tensor], boxes: Mapping[str, Box], node: Node, a: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the rows of the node's inputs and what is added to the constant [batch], by the rule of the node's operator."""
    flat = row_major(a).reshape(len(a), 1, -1)
    state = CrownPass(graph, params, boxes, Choices(), flat, node.name, outward=False)
    rules_of(node).backward(node, state.coefficients.pop(node.name), state)
    passed = {name: value.reshape(len(a), *graph.shape_of(name)) for name, value in state.coefficients.items()}
    return passed, state.constant.squeeze(1)


def _per_channel_sum(a: Tensor) -> Tensor:
    return a.sum(list(range(2, a.dim()))) if a.dim() > 2 else a


class Transposed(torch.autograd.Function):
    """Wᵀ·a for a [batch, *output shape] of an affine node: [batch, *input shape]."""

    @staticmethod
    def forward(ctx: Any, node: Affine, weight: Tensor, a: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.node = node
        weight, a = preferred_layout(weight), preferred_layout(a)
        ctx.save_for_backward(weight, a)
        if isinstance(node, Conv) and _few_channels(node, shape):
            return _by_windows(node, weight, a, shape)
        # Only its shape and layout are read.
        like = preferred_layout(a.new_empty(len(a), *shape)) if isinstance(node, Conv) else a
        found: Tensor = gradients(node, weight, like, a, (True, False))[0]
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, a = ctx.saved_tensors
        grad = preferred_layout(grad)
        to_a = forward(ctx.node, weight, grad) if ctx.needs_input_grad[2] else None
        to_weight = gradients(ctx.node, weight, grad, a, (False, True))[1] if ctx.needs_input_grad[1] else None
        return None, to_weight, to_a, None


def _few_channels(node: Conv, shape: tuple[int, ...]) -> bool:
    """Returns whether the transpose is faster as a matrix product that is summed over windows: kernels work on 16 channels at once."""
    return shape[0] <= FEW and node.groups == 1 and node.pads[:2] == node.pads[2:]


def _by_windows(node: Conv, weight: Tensor, a: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns Wᵀ·a by the windows of the input that each output reads."""
    values = a.permute(0, 2, 3, 1).reshape(-1, a.shape[1]) @ weight.reshape(len(weight), -1)
    windows = values.view(len(a), -1, values.shape[1]).transpose(1, 2)
    return F.fold(windows, shape[1:], weight.shape[2:], node.dilation, node.pads[:2], node.stride)


class ReluRow(torch.autograd.Function):
    """What a row a [batch, *shape] becomes before ReLU on [lower, upper], and what is subtracted from the constant, [batch].

    With l = min(lower, 0) and u = max(upper, 0): ReLU(z) <= s·(z − l) with s = u/(u − l), used where a < 0, and ReLU(z) >= α·z with
    α = 1 if upper > −lower else 0, where a > 0. Both lines are exact on stable units. Passed on is a·s or a·α; lost is Σ min(a·s, 0)·l.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        a, lower, upper = (preferred_layout(value) for value in (a, lower, upper))
        passed = torch.empty_like(lower)
        lost = []
        for one, low, high, out in pieces(a, lower, upper, passed):
            l, slope = low.clamp(max=0), high.clamp(min=0)
            slope.div_((slope - l).clamp_min_(TINY))
            torch.mul(one, torch.where(one > 0, (high + low > 0).to(one.dtype), slope), out=out)
            lost.append(l.mul_(out.clamp(max=0)).flatten(1).sum(1))
        ctx.save_for_backward(a, lower, upper)
        return passed, torch.cat(lost)

    @staticmethod
    def backward(ctx: Any, to_passed: Tensor, to_lost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, lower, upper = ctx.saved_tensors
        to_passed = preferred_layout(to_passed)
        to_a, to_lower, to_upper = torch.empty_like(lower), torch.empty_like(lower), torch.empty_like(lower)
        loss = to_lost.view(-1, *(1 for _ in lower.shape[1:]))
        for one, low, high, grad, of_lost, g_a, g_l, g_u in pieces(a, lower, upper, to_passed, loss, to_a, to_lower, to_upper):
            l, u = low.clamp(max=0), high.clamp(min=0)
            inverse = (u - l).clamp_min_(TINY).reciprocal_()
            slope = u * inverse
            negative = one < 0
            # The gradient to the row passed on, through both outputs.
            total = torch.where(negative, torch.addcmul(grad, l, of_lost), grad)
            torch.mul(total, torch.where(one > 0, (high + low > 0).to(one.dtype), slope), out=g_a)
            # s depends on both ends of unstable units alone: ds/du = (1 − s)/(u − l), ds/dl = s/(u − l); used where a < 0.
            used = negative & (low < 0) & (high > 0)
            of_slope = total.mul_(one).mul_(inverse).mul_(used)
            torch.mul(of_slope, slope, out=g_l)
            torch.sub(of_slope, g_l, out=g_u)
            # min(a·s, 0) = a·s where a < 0; s is 0 on dead units, and l does not move on active ones.
            g_l.addcmul_(one.mul(slope).mul_(used), of_lost)
        return to_a, to_lower, to_upper
