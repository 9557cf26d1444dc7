"""Reads the ONNX operators that a deployed network consists of; whatever it does not know exactly, it refuses.

Every activation is kept flat, [samples, size]. Convolutions, fully connected layers, average pools (convolutions with the weight
1 / window) and operations with a constant are one kind of operator, `linear`: z = W·x + b.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shape = tuple[int, ...]
MAX_SIZE, MAX_TOTAL, MAX_PARAMETER = 2**24, 2**25, 2**27  # elements of one activation with padding, of all, of one parameter
MAX_TAPS, MAX_NODES = 2**14, 1000
EMPTY: Array = np.zeros(0)


class Refused(Exception):
    """The artifact cannot be read as what it should be; the message is one sentence."""


class Op(NamedTuple):
    """One operator: the activation it makes, those it reads, its output shape, and the geometry of a convolution or pool."""

    kind: str  # linear, relu, maxpool, add, same
    output: str
    inputs: tuple[str, ...]
    shape: Shape
    weight: Array = EMPTY  # linear: [size] of a diagonal, [out, in] or [groups, out, in, taps]
    bias: Array = EMPTY  # linear: [size]
    form: str = ""  # linear: sum, pool, or with a constant: shift, scale
    source: Shape = ()  # the map [C, H, W] that is read, before padding
    kernel: Shape = ()
    stride: Shape = ()
    pads: Shape = ()  # top, left, bottom, right
    dilation: Shape = ()

    def _taps(self) -> Iterator[tuple[slice, slice]]:
        """Yields the rows and columns of the padded map that each tap of the kernel meets."""
        for place in np.ndindex(self.kernel):
            first = [p * d for p, d in zip(place, self.dilation, strict=True)]
            rows, columns = (slice(f, f + s * (t - 1) + 1, s) for f, s, t in zip(first, self.stride, self.shape[1:], strict=True))
            yield rows, columns

    def views(self, x: Array, padding: float) -> list[Array]:
        """Returns for each tap the part [n, C, *output map] of x [n, size in] that it meets."""
        top, left, bottom, right = self.pads
        maps = np.pad(x.reshape(-1, *self.source), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=padding)
        return [maps[:, :, rows, columns] for rows, columns in self._taps()]

    def scattered(self, parts: Iterable[Array], n: int) -> Array:
        """Returns the transpose of `views`: for each tap a part, all added up to [n, size in]."""
        (channels, height, width), (top, left, bottom, right) = self.source, self.pads
        maps = np.zeros((n, channels, height + top + bottom, width + left + right))
        for (rows, columns), part in zip(self._taps(), parts, strict=True):
            maps[:, :, rows, columns] += part.reshape(n, channels, *self.shape[1:])
        return maps[:, :, top : top + height, left : left + width].reshape(n, -1)

    def forward(self, weight: Array, x: Array) -> Array:
        """Returns weight · x for x [n, size in], [n, size out]; `weight` has the shape of the operator's own."""
        if weight.ndim < 4:
            return np.asarray(x * weight if weight.ndim == 1 else x @ weight.T)
        views = (view.reshape(len(x), len(weight), weight.shape[2], -1) for view in self.views(x, 0.0))
        result = sum((weight[..., k] @ view for k, view in enumerate(views)), np.zeros(1))
        return np.asarray(result.reshape(len(x), -1))

    def backward(self, a: Array) -> Array:
        """Returns a · W for rows a [r, size out], [r, size in]."""
        if self.weight.ndim < 4:
            return np.asarray(a * self.weight if self.weight.ndim == 1 else a @ self.weight)
        maps = a.reshape(len(a), *self.weight.shape[:2], -1)
        return self.scattered((self.weight[..., k].transpose(0, 2, 1) @ maps for k in range(self.weight.shape[3])), len(a))


@dataclass(frozen=True)
class Network:
    """Operators in order of execution, from one input to one output; `parameters` are all constants that are numbers."""

    input: str
    shape: Shape
    ops: tuple[Op, ...]
    output: str
    parameters: dict[str, NDArray[Any]]
    half: bool  # whether it is written in float16: the input is converted first, nothing else is


def content_sha256(model: onnx.ModelProto) -> str:
    """Returns the hash a certificate names a model by: of its deterministic serialisation with `metadata_props` cleared."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ClearField("metadata_props")
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()


def read(model: onnx.ModelProto) -> Network:
    """Returns the network; Refused names the first thing that is not exactly understood."""
    try:
        return _Reader(model).network()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        raise Refused(f"the model has a form that is not checked: {error!r:.120}") from error


# Attributes that each operator may have; those with a value must have exactly it. Then: how many inputs at most.
WINDOW: dict[str, Any] = {"kernel_shape": None, "strides": None, "auto_pad": b"NOTSET", "pads": None}
ALLOWED: dict[str, tuple[dict[str, Any], int]] = {
    "Conv": (WINDOW | {"dilations": None, "group": None}, 3),
    "Gemm": ({"transB": None, "transA": 0, "alpha": 1.0, "beta": 1.0}, 3),
    "MaxPool": (WINDOW | {"dilations": [1, 1], "ceil_mode": 0, "storage_order": 0}, 1),
    "AveragePool": (WINDOW | {"pads": [0] * 4, "dilations": [1, 1], "ceil_mode": 0, "count_include_pad": 0}, 1),
    "GlobalAveragePool": ({}, 1),
    "Flatten": ({"axis": 1}, 1),
    "Reshape": ({"allowzero": 0}, 2),
    "Relu": ({}, 1),
    "Identity": ({}, 1),
    "Cast": ({"to": None, "saturate": 1}, 1),
    "Add": ({}, 2),
    "Sub": ({}, 2),
    "Mul": ({}, 2),
}


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        graph, self.constants, self.shapes = model.graph, dict[str, NDArray[Any]](), dict[str, Shape]()
        versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
        if len(versions) != 1 or len(model.opset_import) != 1 or not 13 <= versions[0] <= 26:
            raise Refused(f"the model's operator sets {versions} are not one of 13 to 26")
        if model.functions or graph.sparse_initializer or graph.quantization_annotation or len(graph.node) > MAX_NODES:
            raise Refused(f"the model has functions, sparse or quantised tensors, or more than {MAX_NODES} operators")
        names = [*(tensor.name for tensor in [*graph.initializer, *graph.input]), *(name for node in graph.node for name in node.output)]
        if len(set(names)) != len(names) or "" in names:
            raise Refused("the model has two tensors of one name, or one without")
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL or min(tensor.dims, default=1) < 1 or prod(tensor.dims) > MAX_PARAMETER:
                raise Refused(f'the tensor "{tensor.name:.60}" lies in another file, or has an impossible shape')
            self.constants[tensor.name] = onnx.numpy_helper.to_array(tensor)
        if [len(graph.input), len(graph.output)] != [1, 1] or graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise Refused("the model does not have exactly one input, of float32, and one output")
        self.graph, self.input, self.half = graph, graph.input[0].name, False
        self.shapes[self.input] = self._possible(tuple(int(dim.dim_value) for dim in graph.input[0].type.tensor_type.shape.dim[1:]))

    def network(self) -> Network:
        ops, output = tuple(self._op(node) for node in self.graph.node), self.graph.output[0].name
        if sum(prod(op.shape) for op in ops) > MAX_TOTAL or len(self.shapes[output]) != 1:
            raise Refused("the model's activations are too large to be checked, or its output is not one vector for each sample")
        if self.half and sum(op.inputs.count(self.input) for op in ops) != 1:
            raise Refused("the model converts its input to float16, and uses it in float32 too")
        numbers = {key: value for key, value in self.constants.items() if value.dtype != np.int64}
        return Network(self.input, self.shapes[self.input], ops, output, numbers, self.half)

    @staticmethod
    def _possible(shape: Shape) -> Shape:
        if not shape or min(shape) < 1 or prod(shape) > MAX_SIZE:
            raise Refused(f"an activation has the impossible shape {shape!s:.60}")
        return shape

    def _op(self, node: onnx.NodeProto) -> Op:
        """Returns one operator and records the shape of what it makes."""
        kind, inputs, (output,) = node.op_type, list(node.input), node.output
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        known, most = ALLOWED.get(kind, ({}, 0))
        if len(inputs) > most or node.domain not in ("", "ai.onnx") or len(attributes) != len(node.attribute):
            raise Refused(f'operator "{kind:.60}" is not one that is checked')
        for name, value in attributes.items():
            if name not in known or (known[name] is not None and value != known[name]):
                raise Refused(f"{kind} has {name:.60} = {value!s:.60}, which is not checked")
        if kind in ("Add", "Mul") and inputs[0] in self.constants:
            inputs.reverse()
        op = self._read(kind, output, inputs, self.shapes[inputs[0]], attributes)
        self.shapes[output] = self._possible(op.shape)
        return op

    def _read(self, kind: str, output: str, inputs: list[str], source: Shape, attributes: dict[str, Any]) -> Op:
        first, operand = (inputs[0],), inputs[1] if len(inputs) > 1 else ""
        if kind == "Relu":
            return Op("relu", output, first, source)
        if kind == "Cast":  # to float16: exact for what the device stores in float16, see rounding.py
            half = attributes["to"] == onnx.TensorProto.FLOAT16
            self.half |= half
            if (first != (self.input,)) if half else (attributes["to"] != onnx.TensorProto.FLOAT):
                raise Refused("Cast is neither of the input to float16 nor to float32")
        if kind in ("Flatten", "Identity", "Cast", "Reshape"):
            target = self._target(operand, prod(source)) if kind == "Reshape" else (prod(source),) if kind == "Flatten" else source
            return Op("same", output, first, target)
        if kind in ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool"):
            return self._windowed(kind, output, inputs, source, attributes)
        if kind == "Gemm":
            weight = self._numbers(operand) if attributes.get("transB") else self._numbers(operand).T
            if weight.ndim != 2 or source != weight.shape[1:]:
                raise Refused(f"Gemm has a weight of shape {weight.shape} on {source}")
            return Op("linear", output, first, weight.shape[:1], weight, self._bias(inputs, len(weight)), "sum")
        if kind == "Add" and operand in self.shapes:
            if self.shapes[operand] != source:
                raise Refused("a residual addition has two shapes")
            return Op("add", output, (inputs[0], operand), source)
        value = self._numbers(operand)
        if value.ndim > len(source) + 1 or np.broadcast_shapes((1, *source), value.shape) != (1, *source):
            raise Refused(f"a constant of shape {value.shape} does not fit {source}")
        value = np.broadcast_to(-value if kind == "Sub" else value, (1, *source)).reshape(-1).copy()
        if kind == "Mul":
            return Op("linear", output, first, source, value, np.zeros_like(value), "scale")
        return Op("linear", output, first, source, np.ones_like(value), value, "shift")

    def _numbers(self, name: str) -> Array:
        value = self.constants[name]
        if value.dtype not in (np.float32, np.float16) or not value.size or not np.isfinite(value).all():
            raise Refused(f'"{name:.60}" is no finite float32 or float16 parameter')
        return value.astype(np.float64)

    def _bias(self, inputs: list[str], out: int) -> Array:
        bias = self._numbers(inputs[2]) if len(inputs) == 3 and inputs[2] else np.zeros(out)
        if bias.shape != (out,):
            raise Refused(f"a bias has shape {bias.shape} for {out} outputs")
        return bias

    def _target(self, name: str, size: int) -> Shape:
        value = self.constants[name]
        first, *shape = value.tolist()
        if value.dtype != np.int64 or first not in (0, -1) or min(shape) < 1 or prod(shape) != size:
            raise Refused(f"Reshape to {value.tolist()!s:.60} mixes samples, or changes the number of elements")
        return tuple(shape)

    def _windowed(self, kind: str, output: str, inputs: list[str], source: Shape, attributes: dict[str, Any]) -> Op:
        """Returns a convolution or pool; a pool's window must hold something else than padding at every position."""
        given, groups, pool = tuple(attributes.get("kernel_shape", ())), attributes.get("group", 1), kind != "Conv"
        weight = EMPTY if pool else self._numbers(inputs[1])
        kernel = weight.shape[2:] if not pool else source[1:] if kind == "GlobalAveragePool" else given
        stride, pads, dilation = (tuple(attributes.get(k, d)) for k, d in (("strides", (1, 1)), ("pads", (0,) * 4), ("dilations", (1, 1))))
        lengths = [len(source), len(kernel), len(stride), len(pads), len(dilation)]
        if lengths != [3, 2, 2, 4, 2] or given not in ((), kernel) or min(kernel + stride + dilation) < 1 or prod(kernel) > MAX_TAPS:
            raise Refused(f"a window on {source} has kernel {given}, strides {stride}, pads {pads}, dilations {dilation}")
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        if min(pads) < 0 or max(pads) > 64 or (pool and any(pad >= r for pad, r in zip(pads, reach * 2, strict=True))):
            raise Refused(f"a window of {kernel} is padded by {pads}")
        padded = [source[1 + k] + pads[k] + pads[k + 2] for k in (0, 1)]
        self._possible((source[0], *padded))
        out = source[0] if pool else len(weight)
        shape = self._possible((out, *((p - r) // s + 1 for p, r, s in zip(padded, reach, stride, strict=True))))
        positions = prod(shape[1:])
        if kind == "MaxPool":
            return Op("maxpool", output, (inputs[0],), shape, EMPTY, EMPTY, "", source, kernel, stride, pads, dilation)
        if not pool and (groups < 1 or out % groups or weight.shape[1] * groups != source[0]):
            raise Refused(f"a convolution has {groups} groups and a weight of shape {weight.shape} on {source}")
        bias = np.zeros(out * positions) if pool else np.repeat(self._bias(inputs, out), positions)
        taps = np.full((out, 1, 1, prod(kernel)), 1 / prod(kernel)) if pool else weight.reshape(groups, out // groups, -1, prod(kernel))
        return Op("linear", output, (inputs[0],), shape, taps, bias, "pool" if pool else "sum", source, kernel, stride, pads, dilation)
