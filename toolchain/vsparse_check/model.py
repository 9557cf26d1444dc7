"""Reads the ONNX operators that a deployed network consists of; whatever it does not know exactly, it refuses.

Every activation is kept flat, [samples, size], so operators that only give it another shape vanish. Convolutions, fully connected layers,
average pools (convolutions with the weight 1 / window) and operations with a constant are one kind of operator, `linear`: z = W·x + b.
QuantizeLinear and DequantizeLinear of an activation are one operator `quant`, whose values are scale · step exactly (docs/numerics.md,
section 7.1).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse_check.integers import Integers
from vsparse_check.limits import Budget
from vsparse_check.nodes import attributes_of, clip_ends, concat, leaky_slope, padded, sliced, transposed
from vsparse_check.op import EMPTY, Array, Grid, Op, Shape
from vsparse_check.refusal import Refused, need, reading

__all__ = ["Array", "Network", "Op", "Refused", "need", "reading"]

MAX_SIZE, MAX_TOTAL, MAX_PARAMETER = 2**24, 2**25, 2**27  # elements of one activation with padding, of all, of one parameter
ROWS = 8  # arrays of rows of margins, one row for each pair of classes, that are there at once
STORED = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.INT64: 8, onnx.TensorProto.INT32: 4}
STORED |= {onnx.TensorProto.INT8: 1, onnx.TensorProto.UINT8: 1}
CURVES = {"LeakyRelu": "leaky", "Clip": "clip", "Sigmoid": "sigmoid", "Tanh": "tanh"}
MOVES = ("Transpose", "Slice", "Pad", "Concat")
SHAPES = ("Reshape", "Flatten", "Identity")


class Network:
    """Operators in order of execution from one input to one output, and all parameters.

    `names` says under which name an activation is known, which a change of shape leaves as it is; `half` whether the input is converted
    to float16; `grids` what activations are quantised to; `used` which parameters a sum or an operation with a constant reads. Refused
    names the first thing that is not exactly understood.
    """

    def __init__(self, model: onnx.ModelProto, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        graph, versions = model.graph, [(entry.domain in ("", "ai.onnx"), entry.version) for entry in model.opset_import]
        need(len(versions) == 1 and versions[0] in [(True, v) for v in range(13, 27)], "the model's operator set is not one of 13 to 26")
        odd = model.functions or graph.sparse_initializer or graph.quantization_annotation or len(graph.node) > 1000
        need(not odd, "the model has functions, sparse or quantised tensors, or more than 1000 operators")
        made = [value.name for value in [*graph.initializer, *graph.input]] + [name for node in graph.node for name in node.output]
        need(len(set(made)) == len(made) and "" not in made, "the model has two tensors of one name, or one without")
        self.parameters: dict[str, NDArray[Any]] = {tensor.name: self._stored(tensor) for tensor in graph.initializer}
        need(len(graph.input) == len(graph.output) == 1, "the model has not one input and one output")
        (source,), (target,) = graph.input, graph.output
        need(source.type.tensor_type.elem_type == onnx.TensorProto.FLOAT, "the model's input is not float32")
        self.shape = self._possible(tuple(int(dim.dim_value) for dim in source.type.tensor_type.shape.dim[1:]))
        self.input, self.half, self.shapes, self.names = source.name, False, {source.name: self.shape}, {source.name: source.name}
        self.ops, self.used, self.integers = list[Op](), set[str](), Integers(self.parameters)
        self.total = prod(self.shape)
        for node in graph.node:
            self._read(node)
        need(target.name in self.names, "the model's output is made by no operator")
        self.output = self.names[target.name]
        need(len(self.shapes[target.name]) == 1, "the model's output is not one vector of logits for each sample")
        moved = self.output in self.grids and self.ops and {op.output: op.kind for op in self.ops}[self.output] != "quant"
        need(not moved, "the model's output moves quantised values")
        alone = sum(list(node.input).count(self.input) for node in graph.node) == 1
        need(alone or not self.half, "the model converts its input to float16, and uses it in float32 too")
        # At once there are three numbers for each activation (box and cost) of a sample, and a few rows of the largest operator.
        self.largest = max(prod(self.shape), *(op.room for op in self.ops), 1)
        self.budget.hold(8.0 * 4 * self.total)
        self.budget.fit(8.0 * (12 * self.largest + ROWS * self.size_of_output**2))

    @property
    def grids(self) -> dict[str, Grid]:
        """Returns what activations are quantised to."""
        return self.integers.grids

    @property
    def size_of_output(self) -> int:
        """Returns the number of logits."""
        return next((op.size for op in self.ops if op.output == self.output), prod(self.shape))

    def work(self, rows: int) -> float:
        """Returns the work of one pass of so many rows through all operators."""
        return sum(op.work(rows) for op in self.ops)

    def _stored(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """Returns an initializer; Refused before anything is allocated where its shape promises other than its bytes hold."""
        count = prod(tensor.dims)
        fits = min(tensor.dims, default=1) >= 1 and count <= MAX_PARAMETER and tensor.data_type in STORED
        need(
            fits and tensor.data_location != tensor.EXTERNAL,
            f'"{tensor.name:.60}" is in another file, or of a type or shape that is not read',
        )
        fields = max(len(tensor.float_data), len(tensor.int32_data), len(tensor.int64_data))
        whole = len(tensor.raw_data) == count * STORED[tensor.data_type] if tensor.raw_data else fields == count
        need(whole, f'"{tensor.name:.60}" holds other than the {count} numbers of its shape')
        self.budget.hold(8.0 * 4 * count)  # as stored, in float64, and two kernels of what its products may lose
        return np.asarray(onnx.numpy_helper.to_array(tensor))

    def _possible(self, shape: Shape) -> Shape:
        need(shape and min(shape) >= 1 and prod(shape) <= MAX_SIZE, f"an activation has the impossible shape {shape!s:.60}")
        return shape

    def _numbers(self, name: str, size: int | None = None) -> Array:
        need(name in self.parameters or name == "", f'"{name:.60}" is computed, or not there, and should be a parameter')
        value = np.zeros(size or 0) if name == "" else self.parameters[name]
        right = value.dtype in (np.float32, np.float16) or name == ""
        need(right and np.isfinite(value).all(), f'"{name:.60}" is no finite float32 or float16 parameter')
        need(size is None or value.shape == (size,), f"a bias has shape {value.shape} for {size} outputs")
        self.used.add(name)
        return value.astype(np.float64)

    def _add(self, op: Op) -> Shape:
        """Adds an operator, once it is known that it fits; returns its shape."""
        self._possible(op.shape)
        self.total += op.size
        need(self.total <= MAX_TOTAL and op.padded <= MAX_SIZE, "the model's activations are too large to be checked")
        self.budget.fit(8.0 * (4 * self.total + 12 * op.room))
        self.ops.append(op)
        return op.shape

    def _read(self, node: onnx.NodeProto) -> None:
        """Adds one operator, and records the name and the shape of what it makes."""
        attributes, kind = attributes_of(node), node.op_type
        (output,), (first, second, third) = node.output, [*node.input, "", "", ""][:3]
        if kind in ("Add", "Mul") and first in self.parameters:
            first, second = second, first
        grid: Grid = ()
        if kind == "DequantizeLinear" and first in self.parameters:
            return self.integers.stored(output, first, second, third, attributes.get("axis", 1))
        if kind == "QuantizeLinear":  # which nothing else can read: its output gets no shape
            return self.integers.quantise(output, first, second, third)
        if kind == "DequantizeLinear":
            first, grid = self.integers.dequantise(first, second, third)
        need(first in self.shapes, f'{kind} reads "{first:.60}", which is no activation: a constant first, or quantised values')
        source, x = self.shapes[first], self.names[first]
        before = len(self.ops)
        if kind == "Cast":  # to float16: exact for what the device stores in float16, see rounding.py
            half = attributes["to"] == onnx.TensorProto.FLOAT16
            self.half |= half
            need(first == self.input if half else attributes["to"] == onnx.TensorProto.FLOAT, "Cast is not of the input, or not to float32")
            shape = source
        elif kind in SHAPES:
            shape = self._reshaped(kind, source, second)
        elif kind == "DequantizeLinear":  # to quantise to the same again changes nothing, on any device
            shape = source if self.grids.get(x) == grid else self._add(Op("quant", output, (x,), source, grid=grid))
        elif kind == "Relu":
            shape = self._add(Op("relu", output, (x,), source))
        elif kind in CURVES:
            ends = leaky_slope(attributes) if kind == "LeakyRelu" else clip_ends(self._end, second, third) if kind == "Clip" else ()
            shape = self._add(Op("curve", output, (x,), source, CURVES[kind], ends=ends))
        elif kind in MOVES:
            shape = self._add(self._moved(kind, node, output, attributes))
        elif kind == "Gemm":
            weight = self._numbers(second) if attributes.get("transB") else self._numbers(second).T
            need(weight.ndim == 2 and source == weight.shape[1:], f"Gemm has a weight of shape {weight.shape} on {source}")
            shape = self._add(Op("linear", output, (x,), weight.shape[:1], "sum", weight, self._numbers(third, len(weight))))
        elif kind in ("Add", "Sub") and second in self.shapes:
            need(self.shapes[second] == source, "an addition of two activations has two shapes")
            shape = self._add(Op("add", output, (x, self.names[second]), source, "sub" if kind == "Sub" else ""))
        elif kind in ("Add", "Sub", "Mul", "Div", "Neg"):
            shape = self._add(self._elementwise(kind, output, x, source, second))
        else:
            shape = self._add(self._windowed(kind, output, (x,), source, second, third, attributes))
        self.shapes[output], self.names[output] = self._possible(shape), x
        if len(self.ops) > before:
            self.names[output] = output
            self.integers.check(self.ops[-1], second, third, kind == "Gemm" and not attributes.get("transB"))
        return None

    def _reshaped(self, kind: str, source: Shape, second: str) -> Shape:
        """Returns the shape that Reshape, Flatten or Identity gives; the batch stays first."""
        if kind != "Reshape":
            return source if kind == "Identity" else (prod(source),)
        need(second in self.parameters and self.parameters[second].dtype == np.int64, "Reshape has no constant shape")
        batch, *target = self.parameters[second].reshape(-1).tolist()
        same = batch in (0, -1) and min(target, default=0) >= 1 and prod(target) == prod(source)
        need(same, "Reshape mixes samples, or changes the number of elements")
        return tuple(target)

    def _end(self, name: str) -> float:
        """Returns one float32 or float16 number that an operator has beside its weights; it need not be of the storage format."""
        value = self.parameters[name]
        need(value.dtype in (np.float32, np.float16) and value.size == 1 and not np.isnan(value).any(), f'"{name:.60}" is no number')
        return float(value.item())

    def _whole(self, name: str) -> list[int]:
        """Returns constant int64 numbers."""
        need(name in self.parameters and self.parameters[name].dtype == np.int64, f'"{name:.60}" holds no constant int64 numbers')
        return [int(number) for number in self.parameters[name].reshape(-1).tolist()]

    def _moved(self, kind: str, node: onnx.NodeProto, output: str, attributes: dict[str, Any]) -> Op:
        """Returns an operator that only moves elements."""
        for name in node.input[: None if kind == "Concat" else 1]:
            need(name in self.shapes, f'{kind} reads "{name:.60}", which is no activation')
        names = tuple(self.names[name] for name in node.input if name in self.shapes)
        shapes = [self.shapes[name] for name in node.input if name in self.shapes]
        self.budget.fit(8.0 * 12 * sum(map(prod, shapes)))
        if kind == "Concat":
            return concat(output, names, shapes, attributes)
        if kind == "Transpose":
            return transposed(output, names[0], shapes[0], attributes)
        if kind == "Slice":
            return sliced(output, names[0], shapes[0], [self._whole(name) if name else [] for name in node.input[1:]])
        value = self._end(node.input[2]) if len(node.input) > 2 and node.input[2] else 0.0
        need(len(node.input) > 1, "Pad has no constant pads")
        return padded(output, names[0], shapes[0], self._whole(node.input[1]), value)

    def _elementwise(self, kind: str, output: str, x: str, source: Shape, constant: str) -> Op:
        """Returns an operation with a constant, which broadcasts to the activation."""
        form = {"Add": "shift", "Sub": "shift", "Mul": "scale", "Div": "div", "Neg": "neg"}[kind]
        value = np.full(1, -1.0) if kind == "Neg" else self._numbers(constant)
        value = np.broadcast_to(value, (1, *source)).reshape(-1).copy()
        if form == "shift":
            return Op("linear", output, (x,), source, form, np.ones_like(value), -value if kind == "Sub" else value)
        need(kind != "Div" or (value != 0).all(), "Div has a divisor 0")
        least = (float(np.abs(value).min()),) if kind == "Div" else ()
        return Op("linear", output, (x,), source, form, 1 / value if kind == "Div" else value, 0 * value, ends=least)

    def _windowed(
        self, kind: str, output: str, x: tuple[str, ...], source: Shape, weight_name: str, bias_name: str, attributes: dict[str, Any]
    ) -> Op:
        """Returns a convolution or pool; a pool's window must hold something else than padding at every position."""
        pool, given = kind != "Conv", tuple(attributes.get("kernel_shape", ()))
        weight = EMPTY if pool else self._numbers(weight_name)
        kernel = weight.shape[2:] if not pool else source[1:] if kind == "GlobalAveragePool" else given
        stride, pads, dilation = (tuple(attributes.get(k, d)) for k, d in (("strides", (1, 1)), ("pads", (0,) * 4), ("dilations", (1, 1))))
        sizes = [len(source), len(kernel), len(stride), len(pads), len(dilation)] == [3, 2, 2, 4, 2] and given in ((), kernel)
        sizes = sizes and min(kernel + stride + dilation) >= 1 and prod(kernel) <= 2**14 and 0 <= min(pads) <= max(pads) <= 64
        need(sizes, f"a window on {source} has kernel {given}, strides {stride}, pads {pads}, dilations {dilation}")
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        need(not pool or all(pad < r for pad, r in zip(pads, reach * 2, strict=True)), f"a pool of {kernel} is padded by {pads}")
        across = self._possible((source[0], *(source[1 + k] + pads[k] + pads[k + 2] for k in (0, 1))))[1:]
        out, groups, taps = source[0] if pool else len(weight), attributes.get("group", 1), prod(kernel)
        shape = self._possible((out, *((p - r) // s + 1 for p, r, s in zip(across, reach, stride, strict=True))))
        geometry = (source, kernel, stride, pads, dilation)
        if kind == "MaxPool":
            return Op("maxpool", output, x, shape, "", EMPTY, EMPTY, *geometry)
        if pool:
            self.budget.hold(8.0 * 4 * out * taps)
            return Op("linear", output, x, shape, "pool", np.full((out, 1, 1, taps), 1 / taps), np.zeros(prod(shape)), *geometry)
        grouped = groups >= 1 and out % groups == 0 and weight.shape[1] * groups == source[0]
        need(grouped, f"a convolution has {groups} groups and a weight of shape {weight.shape} on {source}")
        bias = np.repeat(self._numbers(bias_name, out), prod(shape[1:]))
        return Op("linear", output, x, shape, "sum", weight.reshape(groups, out // groups, -1, taps), bias, *geometry)
