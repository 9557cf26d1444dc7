"""Pooling: MaxPool, AveragePool, and ONNX's sums and means over fixed axes, which are averages or convolutions with ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsparse.graph.core import Graph, Node, Shape
from vsparse.graph.onnx_context import BATCH, Activation, OnnxContext, Sizes, pair, reads
from vsparse.graph.operators.affine import Conv
from vsparse.graph.operators.arithmetic import DivConstant
from vsparse.graph.operators.moves import permuted
from vsparse.graph.operators.reshape import to_shape, to_whole, traced_as_map, traced_to_shape
from vsparse.graph.operators.windows import WINDOW, as_map, as_row, lifted, window_pads
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.rules import OnnxForm, OnnxNames, apply, onnx_form, torch_layer
from vsparse.graph.shapes import require, shape_rule, window_output
from vsparse.graph.torch_context import TorchContext, TracedActivation, traces, traces_layer
from vsparse.graph.torch_context import pair as torch_pair

_Pair = tuple[int, int]


__all__ = ["AveragePool", "MaxPool"]


@dataclass(frozen=True, kw_only=True)
class MaxPool(Node):
    """Maximum over windows; padded positions never win."""

    on_quantised = "moves"

    kernel: _Pair
    stride: _Pair
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class AveragePool(Node):
    """Mean over windows without padding; a global average pool is the window of the whole map."""

    on_quantised = "computes"

    kernel: _Pair
    stride: _Pair


# Shapes and execution -------------------------------------------------------------------------------------------------


@shape_rule.register
def _(node: MaxPool | AveragePool, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    x = inputs[0]
    require(len(x) == 3, node, f"takes [channels, height, width], not shape {x}")
    require(min(node.kernel) >= 1 and min(node.stride) >= 1, node, "has a kernel or stride below 1")
    top, left, bottom, right = node.pads if isinstance(node, MaxPool) else (0, 0, 0, 0)
    # A window wholly inside the padding has no maximum; padding below the kernel's size rules that out.
    require(min(top, left, bottom, right) >= 0, node, "has negative padding")
    require(
        max(top, bottom) < node.kernel[0] and max(left, right) < node.kernel[1], node, "has padding that is not smaller than its kernel"
    )
    return (
        x[0],
        window_output(x[1], node.kernel[0], node.stride[0], top, bottom),
        window_output(x[2], node.kernel[1], node.stride[1], left, right),
    )


@apply.register
def _(node: MaxPool, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    if any(node.pads):
        top, left, bottom, right = node.pads
        x = F.pad(x, (left, right, top, bottom), value=-inf)
    return F.max_pool2d(x, node.kernel, node.stride)


@apply.register
def _(node: AveragePool, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return F.avg_pool2d(x, node.kernel, node.stride)


# ONNX -----------------------------------------------------------------------------------------------------------------


def _window(c: OnnxContext, a: dict[str, Any], x: Activation) -> tuple[_Pair, _Pair, tuple[int, int, int, int]]:
    if len(c.shape(x)) != 3:
        raise UnsupportedOperator("is neither one- nor two-dimensional; only 1-D and 2-D pooling is read")
    kernel, stride = pair(a, "kernel_shape"), pair(a, "strides")
    if "kernel_shape" not in a or pair(a, "dilations") != (1, 1) or a.get("storage_order", 0):
        raise UnsupportedOperator("must have a kernel_shape, and neither dilations nor storage_order")
    pads = window_pads(a, c.shape(x), kernel, stride, (1, 1), convolves=False)
    for axis, size in enumerate(c.shape(x)[1:]):
        if a.get("ceil_mode", 0) and (size + pads[axis] + pads[axis + 2] - kernel[axis]) % stride[axis]:
            raise UnsupportedOperator("must have ceil_mode = 0")
    return kernel, stride, pads


@reads("MaxPool", 1, 1, *WINDOW, "ceil_mode", "storage_order")
def read_max_pool(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    x = c.samples(values[0])
    if len(c.shape(x)) == 2:
        return as_row(c, read_max_pool(c, [as_map(c, x)], names, lifted(a)))
    kernel, stride, pads = _window(c, a, x)
    return c.add(MaxPool(name=c.fresh(), inputs=(x.name,), shape=(), kernel=kernel, stride=stride, pads=pads))


@reads("AveragePool", 1, 1, *WINDOW, "ceil_mode", "count_include_pad")
def read_average_pool(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    x = c.samples(values[0])
    if len(c.shape(x)) == 2:
        return as_row(c, read_average_pool(c, [as_map(c, x)], names, lifted(a)))
    kernel, stride, pads = _window(c, a, x)
    if any(pads):
        raise UnsupportedOperator("must have no padding")
    return c.add(AveragePool(name=c.fresh(), inputs=(x.name,), shape=(), kernel=kernel, stride=stride))


@reads("GlobalAveragePool", 1, 1)
def read_global_average(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    x = c.samples(values[0])
    shape = c.shape(x)
    if len(shape) == 2:
        return to_shape(c, read_global_average(c, [as_map(c, x)], names, a), (shape[0], 1))
    if len(shape) != 3:
        raise UnsupportedOperator("is not two-dimensional; only 2-D pooling is read")
    window = (shape[1], shape[2])
    return c.add(AveragePool(name=c.fresh(), inputs=(x.name,), shape=(), kernel=window, stride=window))


@reads("ReduceSum", 1, 2, "axes", "keepdims", "noop_with_empty_axes")
def read_reduce_sum(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    return _summed(c, values, names, a)[0]


@reads("ReduceMean", 1, 2, "axes", "keepdims", "noop_with_empty_axes")
def read_reduce_mean(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    x = c.activation(values[0])
    if x.batched and len(c.shape(x)) == 3 and sorted(_reduced_axes(c, values, names, a)) == [2, 3]:
        pooled = read_global_average(c, values[:1], names[:1], {})
        return pooled if a.get("keepdims", 1) else to_shape(c, pooled, (c.shape(x)[0],))
    total, count = _summed(c, values, names, a)
    if count == 1:
        return total
    divisor = c.store(f"{c.output}.count", np.array(count, np.float32))
    return c.add(DivConstant(name=c.fresh(), inputs=(total.name,), shape=(), constant=divisor), total.batched)


def _reduced_axes(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> list[int]:
    """Returns the axes of the whole tensor over which it is summed; none where it is left as it is."""
    x = c.activation(values[0])
    whole, named = c.whole(x), c.named_axes(values, names, a)
    if not named and a.get("noop_with_empty_axes", 0):
        return []
    if not named and BATCH in whole:
        raise UnsupportedOperator("works on all axes, the batch among them; name the axes")
    axes = c.axes(named, len(whole)) if named else list(range(len(whole)))
    if BATCH in whole and 0 in axes:
        raise UnsupportedOperator("works along the batch; samples must stay apart")
    return axes


def _summed(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> tuple[Activation, int]:
    """Returns the sum over axes, as a convolution with ones along the axes put last, and how many elements each sum has."""
    x = c.activation(values[0])
    whole, axes = c.whole(x), _reduced_axes(c, values, names, a)
    left: Sizes = tuple(1 if i in axes else size for i, size in enumerate(whole))
    if not a.get("keepdims", 1) and axes:
        left = tuple(size for i, size in enumerate(whole) if i not in axes)
    shape, lead = c.shape(x), int(x.batched)
    gone = sorted(axis - lead for axis in axes if axis >= lead)
    kept = [i for i in range(len(shape)) if i not in gone]
    count = prod(shape[i] for i in gone)
    if count > 1:
        moved = permuted(c, replace(x, batched=True), (*kept, *gone), (c.batch or BATCH, *(shape[i] for i in (*kept, *gone))))
        x = to_shape(c, moved, (1, prod(shape[i] for i in kept), count))
        ones = c.store(f"{c.output}.ones", np.ones((1, 1, 1, count), np.float32))
        x = c.add(Conv(name=c.fresh(), inputs=(x.name,), shape=(), weight=ones, bias=None))
    return to_whole(c, x, left), count


@onnx_form.register
def _(node: MaxPool, names: OnnxNames) -> OnnxForm:
    return OnnxForm("MaxPool", [], {"kernel_shape": list(node.kernel), "strides": list(node.stride), "pads": list(node.pads)})


@onnx_form.register
def _(node: AveragePool, names: OnnxNames) -> OnnxForm:
    if node.kernel == names.graph.shape_of(node.inputs[0])[1:]:
        return OnnxForm("GlobalAveragePool", [], {})
    return OnnxForm("AveragePool", [], {"kernel_shape": list(node.kernel), "strides": list(node.stride)})


# torch ----------------------------------------------------------------------------------------------------------------


class GlobalAverage(nn.Module):
    """Mean over the map, kept as [batch, channels, 1, 1]; auto_LiRPA bounds a mean more tightly than a pooling of the whole map."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mean over dimensions 2 and 3."""
        return x.mean((2, 3), keepdim=True)


@torch_layer.register
def _(node: MaxPool, graph: Graph) -> nn.Module:
    top, left, bottom, right = node.pads
    if (top, left) == (bottom, right) and 2 * top <= node.kernel[0] and 2 * left <= node.kernel[1]:
        return nn.MaxPool2d(node.kernel, node.stride, padding=(top, left))
    return nn.Sequential(nn.ConstantPad2d((left, right, top, bottom), -inf), nn.MaxPool2d(node.kernel, node.stride))


@torch_layer.register
def _(node: AveragePool, graph: Graph) -> nn.Module:
    whole = node.kernel == graph.shape_of(node.inputs[0])[1:]
    return GlobalAverage() if whole else nn.AvgPool2d(node.kernel, node.stride)


def traced_window(
    t: TorchContext, x: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool
) -> tuple[TracedActivation, _Pair, _Pair, _Pair]:
    """Returns what a pool reads, its kernel, its stride and its padding on either side, height before width."""
    x, kernel = t.activation(x), torch_pair(kernel_size)
    strides, pads = torch_pair(stride) if stride is not None and stride != [] else kernel, torch_pair(padding)
    for size, k, s, p in zip(t.shape(x)[1:], kernel, strides, pads, strict=False):
        if ceil_mode and window_output(size, k, s, p, p) * s + k - s != size + 2 * p:
            raise UnsupportedOperator("must have ceil_mode=False")
    return x, kernel, strides, pads


@traces(F.max_pool2d)
def trace_max_pool(
    t: TorchContext,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> TracedActivation:
    x, kernel, stride, pads = traced_window(t, x, kernel_size, stride, padding, ceil_mode)
    if torch_pair(dilation) != (1, 1) or return_indices:
        raise UnsupportedOperator("must have dilation=1 and return_indices=False")
    return t.add(MaxPool, x, kernel=kernel, stride=stride, pads=pads * 2)


@traces(F.avg_pool2d)
def trace_average_pool(
    t: TorchContext,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> TracedActivation:
    x, kernel, stride, pads = traced_window(t, x, kernel_size, stride, padding, ceil_mode)
    if pads != (0, 0) or divisor_override is not None:
        raise UnsupportedOperator("must have padding=0 and no divisor_override")
    return t.add(AveragePool, x, kernel=kernel, stride=stride)


def pooled_to(t: TorchContext, x: TracedActivation, wanted: tuple[Any, Any]) -> TracedActivation:
    """Returns an average pool of a map to the size `wanted` (None: as it is), which must divide the map's.

    Then torch's windows, from floor(i·n/m) to ceil((i+1)·n/m), are those of one kernel; otherwise they differ in size.
    """
    sizes = t.shape(x)[1:]
    if not all(one is None or isinstance(one, int) for one in wanted):
        raise UnsupportedOperator(f"has the output size {list(wanted)}; numbers are wanted")
    target = [size if one is None else int(one) for size, one in zip(sizes, wanted, strict=True)]
    if any(one < 1 or size % one for size, one in zip(sizes, target, strict=True)):
        raise UnsupportedOperator(
            f"makes {target} of a map of {list(sizes)} with windows of several sizes; use a size that divides the map's, or AvgPool2d"
        )
    kernel = (sizes[0] // target[0], sizes[1] // target[1])
    return x if kernel == (1, 1) else t.add(AveragePool, x, kernel=kernel, stride=kernel)


@traces(F.adaptive_avg_pool2d)
def trace_adaptive(t: TorchContext, x: Any, output_size: Any) -> TracedActivation:
    x = t.activation(x)
    if len(t.shape(x)) != 3:
        raise UnsupportedOperator(f"takes [channels, height, width] of each sample, not shape {list(t.shape(x))}")
    wanted = tuple(output_size) if isinstance(output_size, tuple | list) else (output_size, output_size)
    if len(wanted) != 2:
        raise UnsupportedOperator(f"has the output size {list(wanted)}; two numbers are wanted")
    return pooled_to(t, x, wanted)


@traces(torch.mean, "mean")
def trace_mean(t: TorchContext, x: Any, dim: Any = None, keepdim: bool = False) -> TracedActivation:
    x = t.activation(x)
    shape = t.shape(x)
    named = list(dim) if isinstance(dim, tuple | list) else [dim]
    dims = sorted(d % (len(shape) + 1) for d in named if isinstance(d, int))
    if len(shape) == 2 and dims == [2]:
        pooled = pooled_to(t, traced_as_map(t, x), (1, 1))
        return traced_to_shape(t, pooled, (shape[0], 1) if keepdim else (shape[0],))
    if len(shape) != 3 or dims != [2, 3]:
        raise UnsupportedOperator("must be the mean over the map, x.mean((2, 3)), or over a row, x.mean(2)")
    pooled = trace_adaptive(t, x, 1)
    return pooled if keepdim else traced_to_shape(t, pooled, (shape[0],))


@traces_layer(nn.MaxPool2d)
def _(t: TorchContext, layer: nn.MaxPool2d, path: str, x: TracedActivation) -> TracedActivation:
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return trace_max_pool(t, x, *window, layer.ceil_mode, layer.return_indices)


@traces_layer(nn.AvgPool2d)
def _(t: TorchContext, layer: nn.AvgPool2d, path: str, x: TracedActivation) -> TracedActivation:
    window = (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
    return trace_average_pool(t, x, *window, layer.count_include_pad, layer.divisor_override)


@traces_layer(nn.AdaptiveAvgPool2d)
def _(t: TorchContext, layer: nn.AdaptiveAvgPool2d, path: str, x: TracedActivation) -> TracedActivation:
    return trace_adaptive(t, x, layer.output_size)
