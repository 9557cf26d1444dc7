"""Piecewise linear functions of one number: Relu, LeakyRelu, Clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isinf, isnan
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsparse.graph.core import Graph, Shape, Unary
from vsparse.graph.onnx_context import Activation, OnnxContext, reads
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.rules import NodeModule, OnnxForm, OnnxNames, apply, onnx_form, torch_layer
from vsparse.graph.shapes import require, shape_rule
from vsparse.graph.torch_context import TorchContext, TracedActivation, number, traces, traces_layer

__all__ = ["Clip", "LeakyRelu", "Relu"]


@dataclass(frozen=True, kw_only=True)
class Relu(Unary):
    """max(x, 0)."""

    onnx = "Relu"
    on_quantised = "exact"


@dataclass(frozen=True, kw_only=True)
class LeakyRelu(Unary):
    """x where x >= 0, else slope · x; 0 <= slope <= 1, a float32 number."""

    on_quantised = "computes"

    slope: float


@dataclass(frozen=True, kw_only=True)
class Clip(Unary):
    """min(max(x, lowest), highest), lowest <= highest; −inf and inf stand for no bound, the others are float32 numbers."""

    on_quantised = "exact"

    lowest: float
    highest: float


# Shapes and execution -------------------------------------------------------------------------------------------------


@shape_rule.register
def _(node: LeakyRelu, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    require(0 <= node.slope <= 1, node, f"has the slope {node.slope}; one from 0 to 1 is wanted")
    return inputs[0]


@shape_rule.register
def _(node: Clip, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    require(node.lowest <= node.highest, node, f"clips to [{node.lowest}, {node.highest}], which is empty")
    require(node.lowest < inf and node.highest > -inf, node, "clips to infinity")
    return inputs[0]


@apply.register
def _(node: Relu, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return F.relu(x)


@apply.register
def _(node: LeakyRelu, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.slope)


@apply.register
def _(node: Clip, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x.clamp(node.lowest, node.highest)


# ONNX -----------------------------------------------------------------------------------------------------------------


@reads("Relu", 1, 1)
def read_relu(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    return c.unary(Relu, values[0])


@reads("LeakyRelu", 1, 1, "alpha")
def read_leaky_relu(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    return _leaky(c, c.activation(values[0]), float(a.get("alpha", np.float32(0.01))))


@reads("PRelu", 2, 2)
def read_prelu(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    x, slopes = c.activation(values[0]), c.weight(values[1], names[1])
    whole = c.whole(x)
    ends = whole[len(whole) - slopes.ndim :] if slopes.ndim <= len(whole) else ()
    if len(ends) != slopes.ndim or any(slope not in (1, size) for slope, size in zip(slopes.shape, ends, strict=True)):
        raise UnsupportedOperator(f"has slopes of shape {slopes.shape}, which do not broadcast to shape {list(whole)}")
    if not slopes.size or (slopes != slopes.flat[0]).any():
        raise UnsupportedOperator("has several slopes; use LeakyRelu, with one slope for all")
    return _leaky(c, x, float(slopes.flat[0]))


def _leaky(c: OnnxContext, x: Activation, slope: float) -> Activation:
    if not 0 <= slope <= 1:
        raise UnsupportedOperator(f"has the slope {slope}; one from 0 to 1 is wanted")
    return c.unary(LeakyRelu, x, slope=slope)


@reads("Clip", 1, 3, "min", "max")
def read_clip(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    x = c.activation(values[0])
    ends = [float(a.get("min", -inf)), float(a.get("max", inf))]
    for i, value in enumerate(values[1:]):
        if value is not None:
            end = c.weight(value, names[i + 1])
            if end.size != 1 or end.ndim > 1:
                raise UnsupportedOperator("has ends that are not single numbers")
            ends[i] = float(end.reshape(()))
    lowest, highest = ends
    if isnan(lowest) or isnan(highest) or not lowest <= highest or lowest == inf or highest == -inf:
        raise UnsupportedOperator(f"clips to [{lowest}, {highest}]; numbers in order are wanted")
    return x if ends == [-inf, inf] else c.unary(Clip, x, lowest=lowest, highest=highest)


@onnx_form.register
def _(node: LeakyRelu, names: OnnxNames) -> OnnxForm:
    return OnnxForm("LeakyRelu", [], {"alpha": node.slope})


@onnx_form.register
def _(node: Clip, names: OnnxNames) -> OnnxForm:
    ends = {"min": node.lowest, "max": node.highest}
    inputs = ["" if isinf(end) else names.store(f"{node.name}.{name}", np.array(end, names.float_type)) for name, end in ends.items()]
    return OnnxForm("Clip", inputs if inputs[1] else inputs[:1], {})


# torch ----------------------------------------------------------------------------------------------------------------


@torch_layer.register
def _(node: Relu, graph: Graph) -> nn.Module:
    return nn.ReLU()


@torch_layer.register
def _(node: LeakyRelu, graph: Graph) -> nn.Module:
    return nn.LeakyReLU(node.slope)


@torch_layer.register
def _(node: Clip, graph: Graph) -> nn.Module:
    return nn.Hardtanh(node.lowest, node.highest) if node.lowest < node.highest else NodeModule(node)


@traces(torch.relu, F.relu, "relu", "relu_")
def trace_relu(t: TorchContext, x: Any, inplace: bool = False) -> TracedActivation:
    return t.add(Relu, x)


@traces(F.leaky_relu)
def trace_leaky_relu(t: TorchContext, x: Any, negative_slope: Any = 0.01, inplace: bool = False) -> TracedActivation:
    slope = number(negative_slope)
    if not 0 <= slope <= 1:
        raise UnsupportedOperator(f"has the slope {negative_slope}; one from 0 to 1 is wanted")
    return t.add(LeakyRelu, x, slope=slope)


@traces(torch.clamp, torch.clip, "clamp", "clip")
def trace_clip(t: TorchContext, x: Any, min: Any = None, max: Any = None) -> TracedActivation:
    lowest, highest = -inf if min is None else number(min), inf if max is None else number(max)
    if not lowest <= highest or lowest == inf or highest == -inf:
        raise UnsupportedOperator(f"clips to [{lowest}, {highest}]; numbers in order are wanted")
    source = t.activation(x)
    return source if (lowest, highest) == (-inf, inf) else t.add(Clip, source, lowest=lowest, highest=highest)


@traces(F.hardtanh)
def trace_hardtanh(t: TorchContext, x: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> TracedActivation:
    return trace_clip(t, x, min_val, max_val)


@traces(F.relu6)
def trace_relu6(t: TorchContext, x: Any, inplace: bool = False) -> TracedActivation:
    return trace_clip(t, x, 0, 6)


@traces_layer(nn.ReLU)
def _(t: TorchContext, layer: nn.ReLU, path: str, x: TracedActivation) -> TracedActivation:
    return trace_relu(t, x)


@traces_layer(nn.LeakyReLU)
def _(t: TorchContext, layer: nn.LeakyReLU, path: str, x: TracedActivation) -> TracedActivation:
    return trace_leaky_relu(t, x, layer.negative_slope)


@traces_layer(nn.Hardtanh, nn.ReLU6)
def _(t: TorchContext, layer: nn.Hardtanh, path: str, x: TracedActivation) -> TracedActivation:
    return trace_clip(t, x, layer.min_val, layer.max_val)
