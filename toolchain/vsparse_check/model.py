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
MAX_SIZE = 2**24  # elements of one activation, padding included
MAX_TOTAL, MAX_PARAMETER, MAX_TAPS, MAX_NODES = 2**25, 2**27, 2**14, 1000


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
        if (
            tensor.name in constants
            or tensor.data_location == onnx.TensorProto.EXTERNAL
            or min(tensor.dims, default=1) < 1
            or prod(tensor.dims) > MAX_PARAMETER
        ):
            raise Refused(f'the tensor "{tensor.name:.60}" is given twice, lies in another file, or has an impossible shape')
        constants[tensor.name] = onnx.numpy_helper.to_array(tensor)
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.input) != 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise Refused("the model does not have exactly one input, of float32")
    shape = tuple(int(dim.dim_value) for dim in inputs[0].type.tensor_type.shape.dim[1:])
    reader = _Reader(constants, {inputs[0].name: shape})
    if not shape or min(shape) < 1 or prod(shape) > MAX_SIZE:
        raise Refused(f"the model's input shape {shape} is not fixed")
    if len(graph.node) > MAX_NODES:
        raise Refused(f"the model has {len(graph.node)} operators")
    ops = tuple(reader.op(node) for node in graph.node)
    if sum(prod(op.shape) for op in ops) > MAX_TOTAL:
        raise Refused("the model's activations are too large to be checked")
    if graph.output[0].name not in reader.shapes or len(reader.shapes[graph.output[0].name]) != 1:
        raise Refused("the model's output is not one vector of logits for each sample")
    return Network(inputs[0].name, shape, ops, graph.output[0].name)


# Attributes that each operator may have; those with a value must have exactly it. Then: fewest and most inputs.
WINDOW: dict[str, Any] = {"kernel_shape": None, "strides": None, "auto_pad": b"NOTSET"}
ALLOWED: dict[str, tuple[dict[str, Any], int, int]] = {
    "Conv": (WINDOW | {"pads": None, "dilations": None, "group": None}, 2, 3),
    "Gemm": ({"transB": None, "transA": 0, "alpha": 1.0, "beta": 1.0}, 2, 3),
    "MaxPool": (WINDOW | {"pads": None, "dilations": [1, 1], "ceil_mode": 0, "storage_order": 0}, 1, 1),
    "AveragePool": (WINDOW | {"pads": [0] * 4, "dilations": [1, 1], "ceil_mode": 0, "count_include_pad": 0}, 1, 1),
    "GlobalAveragePool": ({}, 1, 1),
    "Flatten": ({"axis": 1}, 1, 1),
    "Reshape": ({"allowzero": 0}, 2, 2),
    "Relu": ({}, 1, 1),
    "Identity": ({}, 1, 1),
    "Add": ({}, 2, 2),
    "Mul": ({}, 2, 2),
}


class _Reader:
    def __init__(self, constants: dict[str, NDArray[Any]], shapes: dict[str, Shape]) -> None:
        self.constants, self.shapes = constants, shapes

    def op(self, node: onnx.NodeProto) -> Op:
        """Returns one operator and records the shape of what it makes."""
        kind, inputs = node.op_type, list(node.input)
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if kind not in ALLOWED or node.domain not in ("", "ai.onnx") or len(node.output) != 1 or len(attributes) != len(node.attribute):
            raise Refused(f'operator "{kind:.60}" is not one that is checked')
        known, fewest, most = ALLOWED[kind]
        for name, value in attributes.items():
            if name not in known or (known[name] is not None and value != known[name]):
                raise Refused(f"{kind} has {name:.60} = {value!s:.60}, which is not checked")
        output = node.output[0]
        if not fewest <= len(inputs) <= most or not output or output in self.shapes or output in self.constants:
            raise Refused(f"{kind} has {len(inputs)} inputs, or makes a tensor that exists already")
        if kind in ("Add", "Mul") and inputs[0] not in self.shapes:
            inputs.reverse()
        if inputs[0] not in self.shapes:
            raise Refused(f"{kind} reads what is not there yet")
        op = self._op(kind, output, inputs, self.shapes[inputs[0]], attributes)
        if min(op.shape) < 1 or prod(op.shape) > MAX_SIZE:
            raise Refused(f"the output of {kind} has the impossible shape {op.shape}")
        self.shapes[output] = op.shape
        return op

    def _op(self, kind: str, output: str, inputs: list[str], source: Shape, attributes: dict[str, Any]) -> Op:
        first = (inputs[0],)
        if kind in ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool") and len(source) != 3:
            raise Refused(f"{kind} reads an activation of shape {source}")
        if kind == "Conv":
            return self._conv(output, inputs, source, attributes)
        if kind == "Gemm":
            return self._gemm(output, inputs, source, bool(attributes.get("transB", 0)))
        if kind == "MaxPool":
            window = _window(source, tuple(attributes.get("kernel_shape", ())), source[0], attributes)
            return Op("maxpool", output, first, window.target, window)
        if kind in ("AveragePool", "GlobalAveragePool"):
            kernel = source[1:] if kind == "GlobalAveragePool" else tuple(attributes.get("kernel_shape", ()))
            window = _window(source, kernel, source[0], attributes)
            weight = np.full((source[0], 1, 1, *window.kernel), 1 / prod(window.kernel))
            # Beyond the sum: the rounding of 1 / window, the product with it, or one division.
            return Op("linear", output, first, window.target, window, weight, np.zeros(prod(window.target)), rounded=3)
        if kind == "Reshape":
            return Op("reshape", output, first, self._target(inputs[1], prod(source)))
        if kind in ("Flatten", "Identity"):
            return Op("reshape", output, first, (prod(source),) if kind == "Flatten" else source)
        if kind == "Relu":
            return Op("relu", output, first, source)
        if kind == "Add" and inputs[1] in self.shapes:
            if self.shapes[inputs[1]] != source:
                raise Refused("a residual addition has two shapes")
            return Op("add", output, (inputs[0], inputs[1]), source)
        value = self._floats(inputs[1])
        if value.ndim > len(source) + 1 or np.broadcast_shapes((1, *source), value.shape) != (1, *source):
            raise Refused(f"a constant of shape {value.shape} does not fit {source}")
        weight = np.broadcast_to(value, (1, *source)).reshape(-1).copy()
        return Op("shift" if kind == "Add" else "scale", output, first, source, None, weight)

    def _floats(self, name: str, rank: int | None = None) -> Array:
        value = self.constants.get(name)
        if value is None or value.dtype != np.float32 or (rank is not None and value.ndim != rank) or not np.isfinite(value).all():
            raise Refused(f'"{name:.60}" is no finite float32 parameter of the right number of dimensions')
        return value.astype(np.float64)

    def _bias(self, inputs: list[str], out: int) -> Array:
        bias = self._floats(inputs[2], 1) if len(inputs) == 3 and inputs[2] else np.zeros(out)
        if bias.shape != (out,):
            raise Refused(f"a bias has shape {bias.shape} for {out} outputs")
        return bias

    def _conv(self, output: str, inputs: list[str], source: Shape, attributes: dict[str, Any]) -> Op:
        weight, groups = self._floats(inputs[1], 4), int(attributes.get("group", 1))
        out = weight.shape[0]
        if groups < 1 or not weight.size or out % groups or weight.shape[1] * groups != source[0]:
            raise Refused(f"a convolution has {groups} groups and a weight of shape {weight.shape} on {source}")
        window = _window(source, weight.shape[2:], out, attributes, pool=False)
        bias = np.repeat(self._bias(inputs, out), prod(window.target[1:]))
        return Op("linear", output, (inputs[0],), window.target, window, weight.reshape(groups, out // groups, *weight.shape[1:]), bias)

    def _gemm(self, output: str, inputs: list[str], source: Shape, transposed: bool) -> Op:
        weight = self._floats(inputs[1], 2)
        weight = weight if transposed else weight.T
        if len(source) != 1 or not weight.size or weight.shape[1] != source[0]:
            raise Refused(f"Gemm has a weight of shape {weight.shape} on {source}")
        out = len(weight)
        window = Window((source[0], 1, 1), (out, 1, 1))
        return Op("linear", output, (inputs[0],), (out,), window, weight[None, :, :, None, None], self._bias(inputs, out))

    def _target(self, name: str, size: int) -> Shape:
        value = self.constants.get(name)
        if value is None or value.dtype != np.int64 or value.ndim != 1 or not 2 <= len(value) <= 8:
            raise Refused("Reshape has no constant shape")
        first, *shape = value.tolist()
        if first not in (0, -1) or min(shape) < 1 or prod(shape) != size:
            raise Refused(f"Reshape to {value.tolist()} mixes samples, or changes the number of elements")
        return tuple(shape)


def _window(source: Shape, kernel: Shape, out: int, attributes: dict[str, Any], pool: bool = True) -> Window:
    """Returns the geometry of a convolution or pool; a pool's window must hold something else than padding at every position."""
    stride, pads, dilation = (tuple(attributes.get(k, d)) for k, d in (("strides", (1, 1)), ("pads", (0,) * 4), ("dilations", (1, 1))))
    given = tuple(attributes.get("kernel_shape", kernel))
    if given != kernel or [len(kernel), len(stride), len(pads), len(dilation)] != [2, 2, 4, 2] or min(kernel + stride + dilation) < 1:
        raise Refused(f"a window has kernel {given}, strides {stride}, pads {pads}, dilations {dilation}")
    reach = [dilation[k] * (kernel[k] - 1) + 1 for k in (0, 1)]
    if min(pads) < 0 or max(pads) > 64 or (pool and any(pads[k] >= reach[k] or pads[k + 2] >= reach[k] for k in (0, 1))):
        raise Refused(f"a window of {kernel} is padded by {pads}")
    free = [source[1 + k] + pads[k] + pads[k + 2] - reach[k] for k in (0, 1)]
    padded = source[0] * prod(source[1 + k] + pads[k] + pads[k + 2] for k in (0, 1))
    if min(free) < 0 or padded > MAX_SIZE or prod(kernel) > MAX_TAPS:
        raise Refused(f"a window of {kernel} does not fit into {source}")
    return Window(source, (out, *(free[k] // stride[k] + 1 for k in (0, 1))), kernel, stride, pads, dilation)
