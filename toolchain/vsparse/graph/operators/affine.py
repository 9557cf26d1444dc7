"""Affine operators: Conv, Gemm, and BatchNorm, which is folded into one before anything is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vsparse.errors import InputError
from vsparse.graph.columns import by_columns, convolution
from vsparse.graph.core import Graph, Node, Shape
from vsparse.graph.onnx_context import Activation, OnnxContext, pair, reads
from vsparse.graph.operators.moves import unpadded
from vsparse.graph.operators.reshape import traced_as_map, traced_to_shape
from vsparse.graph.operators.windows import WINDOW, as_map, as_row, lifted, window_pads
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.rules import OnnxForm, OnnxNames, apply, check_values, onnx_form, torch_layer
from vsparse.graph.scaling import is_scaling, scaling
from vsparse.graph.shapes import require, shape_rule, show, window_output
from vsparse.graph.torch_context import TorchContext, TracedActivation, traces_layer
from vsparse.graph.torch_context import pair as torch_pair

__all__ = ["Affine", "BatchNorm", "Conv", "Gemm"]


@dataclass(frozen=True, kw_only=True)
class Affine(Node):
    """A node with a weight and an optional bias: `Conv` and `Gemm`."""

    on_quantised = "computes"

    weight: str
    bias: str | None

    @property
    def params(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass(frozen=True, kw_only=True)
class Conv(Affine):
    """2-D cross-correlation; weight [out, in/groups, kh, kw], bias [out]; zero padding `pads` = (top, left, bottom, right)."""

    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, kw_only=True)
class Gemm(Affine):
    """Fully connected layer y = W·x + b on a flat input; weight [out, in], bias [out]."""


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Node):
    """Per-channel normalisation with running statistics; only while training, folded before anything is exported."""

    scale: str
    bias: str
    mean: str
    variance: str
    epsilon: float

    @property
    def params(self) -> tuple[str, ...]:
        return (self.scale, self.bias, self.mean, self.variance)


# Shapes and checks ----------------------------------------------------------------------------------------------------


@shape_rule.register
def _(node: Conv, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    x, weight = inputs[0], params[node.weight]
    require(len(x) == 3, node, f"takes [channels, height, width], not shape {x}")
    require(len(weight) == 4 and min(weight) > 0, node, f"has a weight of shape {weight}; [out, in/groups, height, width] is wanted")
    require(node.groups >= 1 and min(node.stride) >= 1 and min(node.dilation) >= 1, node, "has a stride, dilation or group count below 1")
    require(min(node.pads) >= 0, node, "has negative padding; slice the input before the network instead")
    fits = x[0] == weight[1] * node.groups and weight[0] % node.groups == 0
    require(fits, node, f"has a weight of shape {weight} in {node.groups} group(s) for {x[0]} channels")
    require(node.bias is None or params[node.bias] == (weight[0],), node, "has a bias that does not match its weight")
    top, left, bottom, right = node.pads
    return (
        weight[0],
        window_output(x[1], weight[2], node.stride[0], top, bottom, node.dilation[0]),
        window_output(x[2], weight[3], node.stride[1], left, right, node.dilation[1]),
    )


@shape_rule.register
def _(node: Gemm, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    x, weight = inputs[0], params[node.weight]
    require(len(x) == 1, node, f"takes a flat input, not shape {x}; put a flatten before it")
    require(len(weight) == 2 and weight[1] == x[0], node, f"has a weight of shape {weight} for {x[0]} inputs")
    require(node.bias is None or params[node.bias] == (weight[0],), node, "has a bias that does not match its weight")
    return (weight[0],)


@shape_rule.register
def _(node: BatchNorm, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    x = inputs[0]
    require(len(x) in (1, 3), node, f"takes [features] or [channels, height, width], not shape {x}")
    require(all(params[name] == (x[0],) for name in node.params), node, f"has statistics that do not match its {x[0]} channels")
    return x


@check_values.register
def _(node: BatchNorm, params: Mapping[str, NDArray[np.float32]]) -> None:
    if not (node.epsilon >= 0 and (params[node.variance] + node.epsilon > 0).all()):
        raise InputError(f'BatchNorm "{show(node.name)}" has a variance that is not positive; train it before it is used')


# Execution ------------------------------------------------------------------------------------------------------------


@apply.register
def _(node: Conv, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    weight, bias = params[node.weight], None if node.bias is None else params[node.bias]
    if is_scaling(node, weight):
        return scaling(weight, x, bias)
    top, left, bottom, right = node.pads
    padding = (top, left)
    if (top, left) != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    convolved = convolution if by_columns(x) else F.conv2d
    return convolved(x, weight, bias, node.stride, padding, node.dilation, node.groups)


@apply.register
def _(node: Gemm, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, params[node.weight], None if node.bias is None else params[node.bias])


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


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the (biased) variance of each channel of x [batch, channels, ...]."""
    if x.numel() // x.shape[1] < 2:
        raise InputError("batch statistics need more than one value in each channel; use a larger batch")
    dims = [d for d in range(x.dim()) if d != 1]
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()  # sums of many values lose most of their digits in a short type
    return x.mean(dims), x.var(dims, unbiased=False)


@apply.register
def _(node: BatchNorm, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    scale, shift = channel_affine(node, params)
    return x * per_channel(scale, x) + per_channel(shift, x)


# ONNX -----------------------------------------------------------------------------------------------------------------


@reads("Conv", 2, 3, *WINDOW, "group")
def read_conv(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    x, weight = c.samples(values[0]), c.weight(values[1], names[1])
    if weight.ndim == 3 and len(c.shape(x)) == 2:
        # A row is a map of height 1.
        kernel = (values[1] if isinstance(values[1], np.ndarray) else weight)[:, :, None]
        return as_row(c, read_conv(c, [as_map(c, x), kernel, *values[2:]], names, lifted(a)))
    if weight.ndim != 4 or len(c.shape(x)) != 3:
        raise UnsupportedOperator("is neither one- nor two-dimensional; only 1-D and 2-D convolution is read")
    window = (weight.shape[2], weight.shape[3])
    if tuple(a.get("kernel_shape", window)) != window:
        raise UnsupportedOperator("has a kernel_shape that differs from its weight's")
    stride, dilation = pair(a, "strides"), pair(a, "dilations")
    source, further = unpadded(c.builder, x.name)
    own = window_pads(a, c.shape(x), window, stride, dilation)
    top, left, bottom, right = (one + more for one, more in zip(own, further, strict=True))
    bias = c.weight(values[2], names[2]) if len(values) > 2 else None
    group = a.get("group", 1)
    if not isinstance(group, int) or group < 1:
        raise UnsupportedOperator("has a group count below 1")
    return c.add(
        Conv(
            name=c.fresh(),
            inputs=(source,),
            shape=(),
            weight=c.store(names[1], weight),
            bias=None if bias is None else c.store(names[2], bias),
            stride=stride,
            pads=(top, left, bottom, right),
            dilation=dilation,
            groups=group,
        )
    )


@reads("Gemm", 2, 3, "alpha", "beta", "transA", "transB")
def read_gemm(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    x, weight = c.samples(values[0]), c.weight(values[1], names[1])
    if a.get("alpha", 1.0) != 1 or a.get("beta", 1.0) != 1 or a.get("transA", 0):
        raise UnsupportedOperator("must have alpha = 1, beta = 1 and transA = 0")
    if weight.ndim != 2:
        raise UnsupportedOperator("has a weight that is no matrix")
    weight = weight if a.get("transB", 0) else weight.T
    bias = None
    if len(values) > 2:
        bias = c.weight(values[2], names[2])
        if bias.shape not in ((weight.shape[0],), (1, weight.shape[0]), (1,), (), (1, 1)):
            raise UnsupportedOperator(f"has a bias of shape {bias.shape} for {weight.shape[0]} outputs")
        bias = np.broadcast_to(bias.reshape(-1), (weight.shape[0],))
    return _product(c, x, weight, names[1], bias, names[-1])


@reads("MatMul", 2, 2)
def read_matmul(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    if not isinstance(values[0], Activation):
        raise UnsupportedOperator("multiplies a constant from the left; export it as Gemm")
    x, weight = values[0], c.weight(values[1], names[1])
    if weight.ndim != 2:
        raise UnsupportedOperator("has a weight that is no matrix")
    if len(c.shape(x)) != 1:
        raise UnsupportedOperator(
            f"multiplies a tensor of shape {list(c.whole(x))}, each of whose rows is a product; put a flatten before it"
        )
    return _product(c, x, weight.T, names[1], None, "")


def _product(
    c: OnnxContext, x: Activation, weight: NDArray[np.float32], name: str, bias: NDArray[np.float32] | None, bias_name: str
) -> Activation:
    gemm = Gemm(
        name=c.fresh(),
        inputs=(x.name,),
        shape=(),
        weight=c.store(name, weight),
        bias=None if bias is None else c.store(bias_name, bias),
    )
    return c.add(gemm, x.batched)


@reads("BatchNormalization", 5, 5, "epsilon", "momentum", "training_mode", "spatial")
def read_batch_norm(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    x = c.samples(values[0])
    if a.get("training_mode", 0) or not a.get("spatial", 1):
        raise UnsupportedOperator("is in training mode; export the network in eval mode")
    if len(c.shape(x)) == 2:
        return as_row(c, read_batch_norm(c, [as_map(c, x), *values[1:]], names, a))
    epsilon = float(a.get("epsilon", 1e-5))
    scale, bias, mean, variance = [c.store(name, c.weight(value, name)) for value, name in zip(values[1:], names[1:], strict=True)]
    return c.add(
        BatchNorm(name=c.fresh(), inputs=(x.name,), shape=(), scale=scale, bias=bias, mean=mean, variance=variance, epsilon=epsilon)
    )


@onnx_form.register
def _(node: Conv, names: OnnxNames) -> OnnxForm:
    attributes = {
        "kernel_shape": list(names.graph.params[node.weight].shape[2:]),
        "strides": list(node.stride),
        "pads": list(node.pads),
        "dilations": list(node.dilation),
        "group": node.groups,
    }
    return OnnxForm("Conv", [names.param(name) for name in node.params], attributes)


@onnx_form.register
def _(node: Gemm, names: OnnxNames) -> OnnxForm:
    if names.graph.storage == "fp16":  # the kernel on float16 of ONNX Runtime takes what is not transposed (docs/numerics.md, section 8.2)
        return OnnxForm("Gemm", [names.param(name, transposed=name == node.weight) for name in node.params], {})
    return OnnxForm("Gemm", [names.param(name) for name in node.params], {"transB": 1})


@onnx_form.register
def _(node: BatchNorm, names: OnnxNames) -> OnnxForm:
    raise InputError(f'BatchNorm "{node.name}" cannot be exported; fold batch normalisation first (fold_batch_norm)')


# torch ----------------------------------------------------------------------------------------------------------------


@torch_layer.register
def _(node: Conv, graph: Graph) -> nn.Module:
    out, _, height, width = graph.params[node.weight].shape
    top, left, bottom, right = node.pads
    symmetric = (top, left) == (bottom, right)
    conv = nn.Conv2d(
        graph.shape_of(node.inputs[0])[0],
        out,
        (height, width),
        stride=node.stride,
        padding=(top, left) if symmetric else 0,
        dilation=node.dilation,
        groups=node.groups,
        bias=node.bias is not None,
    )
    _fill(conv, graph, weight=node.weight, bias=node.bias)
    return conv if symmetric else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)


@torch_layer.register
def _(node: Gemm, graph: Graph) -> nn.Module:
    weight = graph.params[node.weight]
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=node.bias is not None)
    _fill(linear, graph, weight=node.weight, bias=node.bias)
    return linear


@torch_layer.register
def _(node: BatchNorm, graph: Graph) -> nn.Module:
    kind = nn.BatchNorm2d if len(node.shape) == 3 else nn.BatchNorm1d
    norm = kind(node.shape[0], eps=node.epsilon)
    _fill(norm, graph, weight=node.scale, bias=node.bias, running_mean=node.mean, running_var=node.variance)
    return norm


def _fill(layer: nn.Module, graph: Graph, **names: str | None) -> None:
    with torch.no_grad():
        for attribute, name in names.items():
            if name is not None:
                getattr(layer, attribute).copy_(torch.from_numpy(graph.params[name].copy()))


def _weights(t: TorchContext, layer: nn.Conv2d | nn.Linear, path: str) -> tuple[str, str | None]:
    prefix = f"{path}." if path else ""
    return t.tensor(f"{prefix}weight", layer.weight), None if layer.bias is None else t.tensor(f"{prefix}bias", layer.bias)


@traces_layer(nn.Linear)
def _(t: TorchContext, layer: nn.Linear, path: str, x: TracedActivation) -> TracedActivation:
    t.require_first_use(path)
    weight, bias = _weights(t, layer, path)
    return t.add(Gemm, x, weight=weight, bias=bias)


@traces_layer(nn.Conv2d)
def _(t: TorchContext, layer: nn.Conv2d, path: str, x: TracedActivation) -> TracedActivation:
    t.require_first_use(path)
    if layer.padding_mode != "zeros":
        raise UnsupportedOperator(f'pads with "{layer.padding_mode}"; use padding_mode="zeros"')
    kernel, stride, dilation = torch_pair(layer.kernel_size), torch_pair(layer.stride), torch_pair(layer.dilation)
    if layer.padding == "same":
        extra = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        own = (extra[0] // 2, extra[1] // 2, extra[0] - extra[0] // 2, extra[1] - extra[1] // 2)
    else:
        height, width = (0, 0) if layer.padding == "valid" else torch_pair(layer.padding)
        own = (height, width, height, width)
    weight, bias = _weights(t, layer, path)
    source, further = unpadded(t.builder, x.name)
    pads = tuple(one + more for one, more in zip(own, further, strict=True))
    return t.add(Conv, TracedActivation(source), weight=weight, bias=bias, stride=stride, pads=pads, dilation=dilation, groups=layer.groups)


@traces_layer(nn.BatchNorm1d, nn.BatchNorm2d)
def _(t: TorchContext, layer: nn.BatchNorm1d | nn.BatchNorm2d, path: str, x: TracedActivation) -> TracedActivation:
    t.require_first_use(path)
    if not layer.affine or layer.running_mean is None or layer.running_var is None:
        raise UnsupportedOperator("needs affine=True and track_running_stats=True")
    prefix = f"{path}." if path else ""
    own = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
    names = {field: t.tensor(prefix + name, getattr(layer, name)) for field, name in own.items()}
    shape = t.shape(x)
    if len(shape) == 2:  # a row is a map of height 1
        row = traced_as_map(t, x)
        return traced_to_shape(t, t.add(BatchNorm, row, **names, epsilon=float(layer.eps)), shape)
    return t.add(BatchNorm, x, **names, epsilon=float(layer.eps))
