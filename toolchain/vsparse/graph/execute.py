"""Executes a graph in torch, in any dtype and on any device, differentiably."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from math import inf
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.errors import InputError
from vsparse.graph.ir import (
    Add,
    AddConstant,
    AveragePool,
    BatchNorm,
    Clip,
    Concat,
    Conv,
    DivConstant,
    FakeQuant,
    Gemm,
    Graph,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Node,
    Pad,
    Relu,
    Reshape,
    Sigmoid,
    Slice,
    Sub,
    Tanh,
    Transpose,
)
from vsparse.graph.scaling import is_scaling, scaling


def channel_affine(node: BatchNorm, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns (scale, shift), each [channels], such that batch normalisation is y = x · scale + shift in each channel.

    scale = γ / √(variance + epsilon) and shift = β − mean · scale, with the statistics that stand in `params`: the running
    ones, or those of a batch when `run` has put them there. Execution and interval bounds both use this map, so a bound
    speaks about the very function that was executed (Ioffe and Szegedy 2015, algorithm 2).
    """
    scale = params[node.scale] / torch.sqrt(params[node.variance] + node.epsilon)
    return scale, params[node.bias] - params[node.mean] * scale


def per_channel(value: Tensor, x: Tensor) -> Tensor:
    """Returns `value` [channels] viewed so that it broadcasts along dimension 1 of `x`."""
    return value.view(-1, *(1 for _ in x.shape[2:]))


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.numel() // x.shape[1] < 2:
        raise InputError("batch statistics need more than one value in each channel; use a larger batch")
    dims = [d for d in range(x.dim()) if d != 1]
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()  # sums of many values lose most of their digits in a short type
    return x.mean(dims), x.var(dims, unbiased=False)


@singledispatch
def apply(node: Node, params: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
    """Returns the output of one node for inputs [batch, *shape]; batch normalisation uses the statistics in `params`."""
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, which cannot be executed')


@apply.register
def _(node: Conv, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    weight, bias = params[node.weight], None if node.bias is None else params[node.bias]
    if is_scaling(node, weight):
        return scaling(weight, x, bias)
    top, left, bottom, right = node.pads
    padding = (top, left)
    if (top, left) != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    return F.conv2d(x, weight, bias, node.stride, padding, node.dilation, node.groups)


@apply.register
def _(node: Gemm, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, params[node.weight], None if node.bias is None else params[node.bias])


@apply.register
def _(node: Relu, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return F.relu(x)


@apply.register
def _(node: Reshape, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], *node.shape)


@apply.register
def _(node: Add, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return x + y


@apply.register
def _(node: AddConstant, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x + params[node.constant]


@apply.register
def _(node: MulConstant, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x * params[node.constant]


@apply.register
def _(node: DivConstant, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x / params[node.constant]


@apply.register
def _(node: Sub, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return x - y


@apply.register
def _(node: Neg, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return -x


@apply.register
def _(node: LeakyRelu, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.slope)


@apply.register
def _(node: Clip, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x.clamp(node.lowest, node.highest)


@apply.register
def _(node: Sigmoid, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@apply.register
def _(node: Tanh, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x)


@apply.register
def _(node: Transpose, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x.permute(0, *(i + 1 for i in node.order))


@apply.register
def _(node: Concat, params: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, dim=node.axis + 1)


@apply.register
def _(node: Slice, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x[(slice(None), *(slice(i, j, step) for i, j, step in zip(node.starts, node.stops, node.steps, strict=True)))]


@apply.register
def _(node: Pad, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    # torch counts dimensions from the last.
    pads = [size for pair in zip(reversed(node.before), reversed(node.after), strict=True) for size in pair]
    return F.pad(x, pads, value=node.value)


class _Quantise(torch.autograd.Function):
    """Quantised and dequantised values; gradients pass straight through where nothing is clamped (Bengio et al., arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, lowest: int, highest: int) -> Tensor:
        steps = torch.round(x / scale)
        ctx.save_for_backward((steps >= lowest) & (steps <= highest))
        return steps.clamp(lowest, highest) * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (passes,) = ctx.saved_tensors
        return grad * passes, None, None, None


@apply.register
def _(node: FakeQuant, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    quantised: Tensor = _Quantise.apply(x, node.scale, *node.steps)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return quantised


@apply.register
def _(node: BatchNorm, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    scale, shift = channel_affine(node, params)
    return x * per_channel(scale, x) + per_channel(shift, x)


@apply.register
def _(node: MaxPool, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    if any(node.pads):
        top, left, bottom, right = node.pads
        x = F.pad(x, (left, right, top, bottom), value=-inf)
    return F.max_pool2d(x, node.kernel, node.stride)


@apply.register
def _(node: AveragePool, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return F.avg_pool2d(x, node.kernel, node.stride)


@overload
def run(
    graph: Graph, params: Mapping[str, Tensor], x: Tensor, keep: Literal[False] = False, batch_statistics: dict[str, Tensor] | None = None
) -> Tensor: ...
@overload
def run(
    graph: Graph, params: Mapping[str, Tensor], x: Tensor, keep: Literal[True], batch_statistics: dict[str, Tensor] | None = None
) -> dict[str, Tensor]: ...
def run(
    graph: Graph,
    params: Mapping[str, Tensor],
    x: Tensor,
    keep: bool = False,
    batch_statistics: dict[str, Tensor] | None = None,
) -> Tensor | dict[str, Tensor]:
    """Returns the logits [batch, *shape] of `x` [batch, *input_shape], or with `keep` every activation by name, the input included.

    `x` and `params` share one floating dtype and device, which is that of the result; gradients flow to both.

    Training with batch normalisation: pass an empty dict as `batch_statistics`. Each BatchNorm then normalises with the
    mean and the (biased) variance of this very batch and records them there under the names of its `mean` and `variance`
    parameters, with gradients. The same affine map then holds for bounds of the same step:

        statistics = {}
        logits = run(graph, params, clean, batch_statistics=statistics)
        boxes = interval(graph, {**params, **statistics}, ball(clean, epsilon))

    Running averages are the caller's: params[name] = (1 − momentum) · params[name] + momentum · statistics[name].detach().
    Raises InputError when a batch is too small to have statistics.
    """
    values = {graph.input: x}
    remaining = {} if keep else {name: len(readers) for name, readers in graph.consumers().items()}
    for node in graph.nodes:
        if batch_statistics is not None and isinstance(node, BatchNorm):
            mean, variance = _batch_statistics(values[node.inputs[0]])
            batch_statistics[node.mean], batch_statistics[node.variance] = mean, variance
            params = {**params, node.mean: mean, node.variance: variance}
        values[node.name] = apply(node, params, *(values[name] for name in node.inputs))
        for name in node.inputs if remaining else ():
            remaining[name] -= 1
            if remaining[name] == 0 and name != graph.output:
                del values[name]
    return values if keep else values[graph.output]
