"""Reads the ONNX operators that a deployed network consists of; whatever it does not know exactly, it refuses.

Every activation is kept flat, [samples, size]. Convolution, fully connected layer and average pool are one operator, `Linear`:
z = W·x + b with W given by its taps (an average pool is a depthwise convolution with the weight 1 / window).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shape = tuple[int, ...]
MAX_SIZE = 50_000_000  # elements of one activation or parameter


class Refused(Exception):
    """The artifact cannot be read as what it should be; the message is one sentence."""


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pool: map [channels, height, width] before padding, kernel, and output map."""

    source: Shape
    target: Shape
    kernel: Shape = (1, 1)
    stride: Shape = (1, 1)
    pads: Shape = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: Shape = (1, 1)

    def padded(self, x: Array, value: float) -> Array:
        """Returns x [n, size] as padded maps [n, C, H, W]."""
        top, left, bottom, right = self.pads
        return np.pad(x.reshape(len(x), *self.source), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)

    def cropped(self, x: Array) -> Array:
        """Returns padded maps without their padding, flat."""
        top, left, _, _ = self.pads
        return x[:, :, top : top + self.source[1], left : left + self.source[2]].reshape(len(x), -1)

    def tap(self, i: int, j: int) -> tuple[slice, slice]:
        """Returns the rows and columns of the padded map that tap (i, j) of the kernel meets."""
        rows, columns = i * self.dilation[0], j * self.dilation[1]
        down, across = self.stride
        return slice(rows, rows + down * (self.target[1] - 1) + 1, down), slice(
            columns, columns + across * (self.target[2] - 1) + 1, across
        )

    def taps(self) -> list[tuple[int, int]]:
        """Returns all taps of the kernel."""
        return [(i, j) for i in range(self.kernel[0]) for j in range(self.kernel[1])]


@dataclass(frozen=True)
class Op:
    """One operator: the activation it makes, those it reads, and its output shape."""

    kind: str  # linear, relu, maxpool, add, shift, scale, reshape
    output: str
    inputs: tuple[str, ...]
    shape: Shape
    window: Window | None = None
    weight: Array = field(default_factory=lambda: np.zeros(0))  # linear: [groups, out, in, kh, kw]; shift, scale: [size]
    bias: Array = field(default_factory=lambda: np.zeros(0))  # linear: [size]
    rounded: int = 1  # linear: roundings beyond one for each non-zero weight

    def forward(self, kernel: Array, x: Array) -> Array:
        """Returns kernel · x for x [n, size in], [n, size out]; `kernel` has the shape of `weight`."""
        w, (groups, out, inner) = self._geometry(), kernel.shape[:3]
        if w.kernel == (1, 1) and w.target[1:] == (1, 1) and groups == 1 and w.source[1:] == (1, 1):
            return np.asarray(x @ kernel[0, :, :, 0, 0].T)
        maps = w.padded(x, 0.0)
        maps = maps.reshape(len(x), groups, inner, *maps.shape[2:])
        result = np.zeros((len(x), groups, out, w.target[1] * w.target[2]))
        for i, j in w.taps():
            rows, columns = w.tap(i, j)
            result += kernel[:, :, :, i, j] @ maps[..., rows, columns].reshape(len(x), groups, inner, -1)
        return result.reshape(len(x), -1)

    def backward(self, a: Array) -> Array:
        """Returns a · W for rows a [p, size out], [p, size in]."""
        w, (groups, out, inner) = self._geometry(), self.weight.shape[:3]
        if w.kernel == (1, 1) and w.target[1:] == (1, 1) and groups == 1 and w.source[1:] == (1, 1):
            return np.asarray(a @ self.weight[0, :, :, 0, 0])
        top, left, bottom, right = w.pads
        result = np.zeros((len(a), groups, inner, w.source[1] + top + bottom, w.source[2] + left + right))
        rows_of_a = a.reshape(len(a), groups, out, -1)
        for i, j in w.taps():
            rows, columns = w.tap(i, j)
            part = self.weight[:, :, :, i, j].transpose(0, 2, 1) @ rows_of_a
            result[..., rows, columns] += part.reshape(len(a), groups, inner, *w.target[1:])
        return w.cropped(result.reshape(len(a), -1, *result.shape[3:]))

    def _geometry(self) -> Window:
        assert self.window is not None
        return self.window


@dataclass(frozen=True)
class Network:
    """Operators in order of execution, from one input to one output."""

    input: str
    shape: Shape
    ops: tuple[Op, ...]
    output: str


def content_sha256(model: onnx.ModelProto) -> str:
    """Returns the hash a certificate names a model by: of its deterministic serialisation with `metadata_props` cleared."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ClearField("metadata_props")
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()


def parse(data: bytes) -> onnx.ModelProto:
    """Returns the protobuf of a model file; Refused when it is none."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf raises different types from release to release
        raise Refused(f"the model is no ONNX file ({type(error).__name__})") from error
    return model


def read(model: onnx.ModelProto) -> Network:
    """Returns the network; Refused names the first thing that is not exactly understood."""
    graph = model.graph
    versions = [(entry.domain, entry.version) for entry in model.opset_import]
    if len(versions) != 1 or versions[0][0] not in ("", "ai.onnx") or not 13 <= versions[0][1] <= 26:
        raise Refused(f"the model's operator sets {versions} are not one of 13 to 26")
    if model.functions or graph.sparse_initializer or graph.quantization_annotation or len(graph.output) != 1:
        raise Refused("the model has functions, sparse or quantised tensors, or not exactly one output")
    constants: dict[str, NDArray[Any]] = {}
    for tensor in graph.initializer:
        if tensor.name in constants or tensor.data_location == onnx.TensorProto.EXTERNAL or prod(tensor.dims) > MAX_SIZE:
            raise Refused(f'the tensor "{tensor.name:.60}" is given twice, lies in another file, or is too large')
        constants[tensor.name] = onnx.numpy_helper.to_array(tensor)
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.input) != 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise Refused("the model does not have exactly one input, of float32")
    shape = tuple(int(dim.dim_value) for dim in inputs[0].type.tensor_type.shape.dim[1:])
    reader = _Reader(constants, {inputs[0].name: shape})
    if not shape or min(shape) < 1 or prod(shape) > MAX_SIZE:
        raise Refused(f"the model's input shape {shape} is not fixed")
    ops = tuple(reader.op(node) for node in graph.node)
    if graph.output[0].name not in reader.shapes or len(reader.shapes[graph.output[0].name]) != 1:
        raise Refused("the model's output is not one vector of logits for each sample")
    return Network(inputs[0].name, shape, ops, graph.output[0].name)


# Attributes that each operator may have; those with a value must have exactly it.
ALLOWED: dict[str, dict[str, Any]] = {
    "Conv": {"kernel_shape": None, "strides": None, "pads": None, "dilations": None, "group": None, "auto_pad": b"NOTSET"},
    "Gemm": {"transB": None, "transA": 0, "alpha": 1.0, "beta": 1.0},
    "MaxPool": {
        "kernel_shape": None,
        "strides": None,
        "pads": None,
        "dilations": [1, 1],
        "ceil_mode": 0,
        "storage_order": 0,
        "auto_pad": b"NOTSET",
    },
    "AveragePool": {
        "kernel_shape": None,
        "strides": None,
        "pads": [0, 0, 0, 0],
        "dilations": [1, 1],
        "ceil_mode": 0,
        "count_include_pad": 0,
        "auto_pad": b"NOTSET",
    },
    "Flatten": {"axis": 1},
    "Reshape": {"allowzero": 0},
    **{kind: {} for kind in ("Relu", "Add", "Mul", "Identity", "GlobalAveragePool")},
}
POSITION = {"Flatten": (1, 1), "Relu": (1, 1), "Identity": (1, 1), "GlobalAveragePool": (1, 1), "MaxPool": (1, 1), "AveragePool": (1, 1)}


class _Reader:
    def __init__(self, constants: dict[str, NDArray[Any]], shapes: dict[str, Shape]) -> None:
        self.constants, self.shapes = constants, shapes

    def op(self, node: onnx.NodeProto) -> Op:
        """Returns one operator and records the shape of what it makes."""
        kind = node.op_type
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if kind not in ALLOWED or node.domain not in ("", "ai.onnx") or len(node.output) != 1 or len(attributes) != len(node.attribute):
            raise Refused(f'operator "{kind:.60}" is not one that is checked')
        for name, value in attributes.items():
            wanted = ALLOWED[kind].get(name, Refused)
            if wanted is Refused or (wanted is not None and value != wanted):
                raise Refused(f"{kind} has {name:.60} = {value!s:.60}, which is not checked")
        low, high = POSITION.get(kind, (2, 3) if kind in ("Conv", "Gemm") else (2, 2))
        if not low <= len(node.input) <= high or node.output[0] in self.shapes or node.output[0] in self.constants or not node.output[0]:
            raise Refused(f"{kind} has {len(node.input)} inputs, or makes a tensor that exists already")
        op: Op = getattr(self, f"_{kind.lower()}")(node.output[0], list(node.input), attributes)
        if any(name not in self.shapes for name in op.inputs) or min(op.shape) < 1 or prod(op.shape) > MAX_SIZE:
            raise Refused(f"{kind} reads what is not there, or its output has the impossible shape {op.shape}")
        self.shapes[op.output] = op.shape
        return op

    def _shape(self, name: str, rank: int = 0) -> Shape:
        if name not in self.shapes or (rank and len(self.shapes[name]) != rank):
            raise Refused(f'"{name:.60}" is no activation of {rank or "any"} dimensions')
        return self.shapes[name]

    def _floats(self, name: str, rank: int) -> Array:
        value = self.constants.get(name)
        if value is None or value.dtype != np.float32 or (rank and value.ndim != rank) or not np.isfinite(value).all():
            raise Refused(f'"{name:.60}" is no finite float32 parameter of {rank or "any"} dimensions')
        return value.astype(np.float64)

    def _window(self, source: Shape, kernel: Shape, out: int, attributes: dict[str, Any], pool: bool = True) -> Window:
        stride, pads, dilation = (tuple(attributes.get(k, d)) for k, d in (("strides", (1, 1)), ("pads", (0,) * 4), ("dilations", (1, 1))))
        given = tuple(attributes.get("kernel_shape", kernel))
        if given != kernel or [len(kernel), len(stride), len(pads), len(dilation)] != [2, 2, 4, 2] or min(kernel + stride + dilation) < 1:
            raise Refused(f"a window has kernel {given}, strides {stride}, pads {pads}, dilations {dilation}")
        reach = [dilation[k] * (kernel[k] - 1) + 1 for k in (0, 1)]
        if min(pads) < 0 or max(pads) > 64 or (pool and any(pads[k] >= reach[k] or pads[k + 2] >= reach[k] for k in (0, 1))):
            raise Refused(f"a window of {kernel} is padded by {pads}")
        free = [source[1 + k] + pads[k] + pads[k + 2] - reach[k] for k in (0, 1)]
        if min(free) < 0:
            raise Refused(f"a window of {kernel} does not fit into {source}")
        return Window(source, (out, *(free[k] // stride[k] + 1 for k in (0, 1))), kernel, stride, pads, dilation)

    def _conv(self, output: str, inputs: list[str], attributes: dict[str, Any]) -> Op:
        source, weight = self._shape(inputs[0], 3), self._floats(inputs[1], 4)
        groups, out = int(attributes.get("group", 1)), weight.shape[0]
        if groups < 1 or out % groups or weight.shape[1] * groups != source[0] or not weight.size:
            raise Refused(f"a convolution has {groups} groups and a weight of shape {weight.shape} on {source}")
        window = self._window(source, weight.shape[2:], out, attributes, pool=False)
        bias = self._bias(inputs, out)
        grouped = weight.reshape(groups, out // groups, *weight.shape[1:])
        return Op("linear", output, (inputs[0],), window.target, window, grouped, np.repeat(bias, prod(window.target[1:])))

    def _gemm(self, output: str, inputs: list[str], attributes: dict[str, Any]) -> Op:
        (size,), weight = self._shape(inputs[0], 1), self._floats(inputs[1], 2)
        if attributes.get("transB", 0) not in (0, 1):
            raise Refused("Gemm has a transB that is neither 0 nor 1")
        weight = weight if attributes.get("transB", 0) else weight.T
        if weight.shape[1] != size or not weight.size:
            raise Refused(f"Gemm has a weight of shape {weight.shape} on {size} inputs")
        window = Window((size, 1, 1), (len(weight), 1, 1))
        return Op("linear", output, (inputs[0],), (len(weight),), window, weight[None, :, :, None, None], self._bias(inputs, len(weight)))

    def _bias(self, inputs: list[str], out: int) -> Array:
        bias = self._floats(inputs[2], 1) if len(inputs) == 3 and inputs[2] else np.zeros(out)
        if bias.shape != (out,):
            raise Refused(f"a bias has shape {bias.shape} for {out} outputs")
        return bias

    def _add(self, output: str, inputs: list[str], attributes: dict[str, Any]) -> Op:
        if inputs[0] in self.shapes and inputs[1] in self.shapes:
            if self._shape(inputs[0]) != self._shape(inputs[1]):
                raise Refused("a residual addition has two shapes")
            return Op("add", output, (inputs[0], inputs[1]), self._shape(inputs[0]))
        return self._constant("shift", output, inputs)

    def _mul(self, output: str, inputs: list[str], attributes: dict[str, Any]) -> Op:
        return self._constant("scale", output, inputs)

    def _constant(self, kind: str, output: str, inputs: list[str]) -> Op:
        source, name = inputs if inputs[0] in self.shapes else inputs[::-1]
        shape, value = self._shape(source), self._floats(name, 0)
        if value.ndim > len(shape) + 1 or np.broadcast_shapes((1, *shape), value.shape) != (1, *shape):
            raise Refused(f"a constant of shape {value.shape} does not fit {shape}")
        return Op(kind, output, (source,), shape, None, np.broadcast_to(value, (1, *shape)).reshape(-1).copy())

    def _relu(self, output: str, inputs: list[str], attributes: dict[str, Any]) -> Op:
        return Op("relu", output, (inputs[0],), self._shape(inputs[0]))

    def _identity(self, output: str, inputs: list[str], attributes: dict[str, Any]) -> Op:
        return Op("reshape", output, (inputs[0],), self._shape(inputs[0]))

    def _flatten(self, output: str, inputs: list[str], attributes: dict[str, Any]) -> Op:
        return Op("reshape", output, (inputs[0],), (prod(self._shape(inputs[0])),))

    def _reshape(self, output: str, inputs: list[str], attributes: dict[str, Any]) -> Op:
        size, value = prod(self._shape(inputs[0])), self.constants.get(inputs[1])
        if value is None or value.dtype != np.int64 or value.ndim != 1 or len(value) < 2:
            raise Refused("Reshape has no constant shape")
        first, shape = int(value[0]), tuple(int(part) for part in value[1:])
        if first not in (0, -1) or min(shape) < 1 or prod(shape) != size:
            raise Refused(f"Reshape to {value.tolist()} mixes samples, or changes the number of elements")
        return Op("reshape", output, (inputs[0],), shape)

    def _maxpool(self, output: str, inputs: list[str], attributes: dict[str, Any]) -> Op:
        source = self._shape(inputs[0], 3)
        window = self._window(source, tuple(attributes.get("kernel_shape", ())), source[0], attributes)
        return Op("maxpool", output, (inputs[0],), window.target, window)

    def _averagepool(self, output: str, inputs: list[str], attributes: dict[str, Any]) -> Op:
        source = self._shape(inputs[0], 3)
        window = self._window(source, tuple(attributes.get("kernel_shape", ())), source[0], attributes)
        weight = np.full((source[0], 1, 1, *window.kernel), 1 / prod(window.kernel))
        # Beyond the sum: the rounding of 1 / window, the product with it, or one division.
        return Op("linear", output, (inputs[0],), window.target, window, weight, np.zeros(prod(window.target)), rounded=3)

    def _globalaveragepool(self, output: str, inputs: list[str], attributes: dict[str, Any]) -> Op:
        return self._averagepool(output, inputs, {"kernel_shape": self._shape(inputs[0], 3)[1:]})
