"""torch's 1-D layers and functions, read as 2-D ones on maps of height 1: [channels, n] is [channels, 1, n], to the bit."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from vsparse.graph.operators.affine import Conv
from vsparse.graph.operators.moves import unpadded
from vsparse.graph.operators.pooling import AveragePool, MaxPool, pooled_to, traced_window
from vsparse.graph.operators.reshape import traced_as_map, traced_to_shape
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.torch_context import TorchContext, TracedActivation, traces, traces_layer

__all__: list[str] = []


def single(value: Any) -> int:
    """Returns one number, which torch may hold in a tuple of one."""
    return int(value[0] if isinstance(value, tuple | list) else value)


def traced_as_row(t: TorchContext, x: TracedActivation) -> TracedActivation:
    """Returns a map of height 1 as a row."""
    shape = t.shape(x)
    return traced_to_shape(t, x, (shape[0], shape[2]))


@traces_layer(nn.Conv1d)
def _(t: TorchContext, layer: nn.Conv1d, path: str, x: TracedActivation) -> TracedActivation:
    t.require_first_use(path)
    if layer.padding_mode != "zeros":
        raise UnsupportedOperator(f'pads with "{layer.padding_mode}"; use padding_mode="zeros"')
    kernel, stride, dilation = single(layer.kernel_size), single(layer.stride), single(layer.dilation)
    if layer.padding == "same":
        extra = dilation * (kernel - 1)
        left, right = extra // 2, extra - extra // 2
    else:
        left = right = 0 if layer.padding == "valid" else single(layer.padding)
    prefix = f"{path}." if path else ""
    weight = t.tensor(f"{prefix}weight", layer.weight, height=True)
    bias = None if layer.bias is None else t.tensor(f"{prefix}bias", layer.bias)
    source, further = unpadded(t.builder, traced_as_map(t, x).name)
    pads = tuple(one + more for one, more in zip((0, left, 0, right), further, strict=True))
    made = t.add(
        Conv,
        TracedActivation(source),
        weight=weight,
        bias=bias,
        stride=(1, stride),
        pads=pads,
        dilation=(1, dilation),
        groups=layer.groups,
    )
    return traced_as_row(t, made)


@traces(F.max_pool1d)
def trace_max_pool1d(
    t: TorchContext,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> TracedActivation:
    """Reads a maximum over windows of a row."""
    kernel, step, pad = _row_window(kernel_size, stride, padding)
    x, window, strides, pads = traced_window(t, traced_as_map(t, x), kernel, step, pad, ceil_mode)
    if single(dilation) != 1 or return_indices:
        raise UnsupportedOperator("must have dilation=1 and return_indices=False")
    return traced_as_row(t, t.add(MaxPool, x, kernel=window, stride=strides, pads=pads * 2))


@traces(F.avg_pool1d)
def trace_average_pool1d(
    t: TorchContext, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True
) -> TracedActivation:
    """Reads a mean over windows of a row."""
    kernel, step, pad = _row_window(kernel_size, stride, padding)
    x, window, strides, pads = traced_window(t, traced_as_map(t, x), kernel, step, pad, ceil_mode)
    if pads != (0, 0):
        raise UnsupportedOperator("must have padding=0")
    return traced_as_row(t, t.add(AveragePool, x, kernel=window, stride=strides))


def _row_window(kernel: Any, stride: Any, padding: Any) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    size = single(kernel)
    return (1, size), (1, size if stride is None or stride in ((), []) else single(stride)), (0, single(padding))


@traces(F.adaptive_avg_pool1d)
def trace_adaptive1d(t: TorchContext, x: Any, output_size: Any) -> TracedActivation:
    """Reads an average pool of a row to so many numbers for each channel."""
    return traced_as_row(t, pooled_to(t, traced_as_map(t, x), (1, None if output_size is None else single(output_size))))


@traces_layer(nn.MaxPool1d)
def _(t: TorchContext, layer: nn.MaxPool1d, path: str, x: TracedActivation) -> TracedActivation:
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return trace_max_pool1d(t, x, *window, layer.ceil_mode, layer.return_indices)


@traces_layer(nn.AvgPool1d)
def _(t: TorchContext, layer: nn.AvgPool1d, path: str, x: TracedActivation) -> TracedActivation:
    return trace_average_pool1d(t, x, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad)


@traces_layer(nn.AdaptiveAvgPool1d)
def _(t: TorchContext, layer: nn.AdaptiveAvgPool1d, path: str, x: TracedActivation) -> TracedActivation:
    return trace_adaptive1d(t, x, layer.output_size)
