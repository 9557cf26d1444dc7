"""Turns a graph into a plain `nn.Module` of standard layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vsparse.errors import InputError
from vsparse.graph.execute import apply
from vsparse.graph.ir import (
    Add,
    AddConstant,
    AveragePool,
    BatchNorm,
    Clip,
    Concat,
    Conv,
    DivConstant,
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


class Constant(nn.Module):
    """Adds or multiplies by a constant buffer [1, *shape]."""

    def __init__(self, value: Tensor, multiply: bool) -> None:
        super().__init__()
        self.register_buffer("value", value)
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        """Returns x + c or x · c."""
        value = self.get_buffer("value")
        return x * value if self.multiply else x + value


class View(nn.Module):
    """Reshapes each sample."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Returns x as [batch, *shape]."""
        return x.reshape(x.size(0), *self.shape)


class GlobalAverage(nn.Module):
    """Mean over the map, kept as [batch, channels, 1, 1]; auto_LiRPA bounds a mean more tightly than a pooling of the whole map."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mean over dimensions 2 and 3."""
        return x.mean((2, 3), keepdim=True)


class Sum(nn.Module):
    """Residual addition."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns a + b."""
        return a + b


class Operator(nn.Module):
    """An operator without parameters for which torch has a function and no layer."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns what the node computes of its inputs."""
        return apply(self.node, {}, *inputs)


class Quotient(nn.Module):
    """Divides by a constant buffer [1, *shape]."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x / c."""
        return x / self.get_buffer("value")


class GraphModule(nn.Module):
    """The layers of a graph in order; `layers` is a ModuleList, so that tracers see straight-line code."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layer(node, graph) for node in graph.nodes)
        position = {graph.input: 0} | {node.name: i + 1 for i, node in enumerate(graph.nodes)}
        self.reads = [tuple(position[name] for name in node.inputs) for node in graph.nodes]
        self.result = position[graph.output]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of x [batch, *input_shape]."""
        values = [x]
        for layer, reads in zip(self.layers, self.reads, strict=True):
            values.append(layer(*[values[i] for i in reads]))
        return values[self.result]


def to_torch(graph: Graph) -> nn.Module:
    """Returns a float32 module, in eval mode, that computes what the graph computes.

    It is made of nn.Conv2d, nn.Linear, nn.BatchNorm, nn.ReLU and pooling layers in an `nn.ModuleList`, and can be traced by
    torch.fx and torch.jit (auto_LiRPA). Parameters are copies. Raises InputError for a node type that has no layer.
    """
    return GraphModule(graph).eval()


def _layer(node: Node, graph: Graph) -> nn.Module:
    if isinstance(node, Conv):
        return _conv(node, graph.shape_of(node.inputs[0])[0], graph)
    if isinstance(node, Gemm):
        weight = graph.params[node.weight]
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=node.bias is not None)
        _fill(linear, graph, weight=node.weight, bias=node.bias)
        return linear
    if isinstance(node, BatchNorm):
        kind = nn.BatchNorm2d if len(node.shape) == 3 else nn.BatchNorm1d
        norm = kind(node.shape[0], eps=node.epsilon)
        _fill(norm, graph, weight=node.scale, bias=node.bias, running_mean=node.mean, running_var=node.variance)
        return norm
    if isinstance(node, AddConstant | MulConstant | DivConstant):
        value = torch.from_numpy(graph.params[node.constant].copy())
        value = value.reshape(1, *(1 for _ in range(len(node.shape) - value.dim())), *value.shape)
        return Quotient(value) if isinstance(node, DivConstant) else Constant(value, isinstance(node, MulConstant))
    if isinstance(node, Add):
        return Sum()
    if isinstance(node, Relu):
        return nn.ReLU()
    if isinstance(node, LeakyRelu):
        return nn.LeakyReLU(node.slope)
    if isinstance(node, Clip) and node.lowest < node.highest:
        return nn.Hardtanh(node.lowest, node.highest)
    if isinstance(node, Sigmoid):
        return nn.Sigmoid()
    if isinstance(node, Tanh):
        return nn.Tanh()
    if isinstance(node, Clip | Sub | Neg | Transpose | Concat | Slice | Pad):
        return Operator(node)
    if isinstance(node, MaxPool):
        return _max_pool(node)
    if isinstance(node, AveragePool):
        if node.kernel == graph.shape_of(node.inputs[0])[1:]:
            return GlobalAverage()
        return nn.AvgPool2d(node.kernel, node.stride)
    if isinstance(node, Reshape):
        return nn.Flatten(1) if len(node.shape) == 1 else View(node.shape)
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, for which torch has no layer here')


def _conv(node: Conv, channels: int, graph: Graph) -> nn.Module:
    out, _, height, width = graph.params[node.weight].shape
    top, left, bottom, right = node.pads
    symmetric = (top, left) == (bottom, right)
    conv = nn.Conv2d(
        channels,
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


def _max_pool(node: MaxPool) -> nn.Module:
    top, left, bottom, right = node.pads
    if (top, left) == (bottom, right) and 2 * top <= node.kernel[0] and 2 * left <= node.kernel[1]:
        return nn.MaxPool2d(node.kernel, node.stride, padding=(top, left))
    return nn.Sequential(nn.ConstantPad2d((left, right, top, bottom), float("-inf")), nn.MaxPool2d(node.kernel, node.stride))


def _fill(layer: nn.Module, graph: Graph, **names: str | None) -> None:
    with torch.no_grad():
        for attribute, name in names.items():
            if name is not None:
                getattr(layer, attribute).copy_(torch.from_numpy(graph.params[name].copy()))
