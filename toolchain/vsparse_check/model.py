"""Reads the ONNX operators that a deployed network consists of; whatever it does not know exactly, it refuses.

Every activation is kept flat, [samples, size], so operators that only give it another shape vanish. Convolutions, fully connected layers,
average pools (convolutions with the weight 1 / window) and operations with a constant are one kind of operator, `linear`: z = W·x + b.
QuantizeLinear and DequantizeLinear of an activation are one operator `quant`, whose values are scale · step exactly (NUMERICS.md, int8).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shape = tuple[int, ...]
Grid = tuple[float, ...]  # scale, least and greatest step q − zero point, least q; the scale alone where values are no longer all steps
MAX_SIZE, MAX_TOTAL, MAX_PARAMETER = 2**24, 2**25, 2**27  # elements of one activation with padding, of all, of one parameter
EMPTY: Array = np.zeros(0)


class Refused(Exception):
    """The artifact cannot be read as what it should be; the message is one sentence."""


def need(holds: object, message: str) -> None:
    """Refuses unless something holds."""
    if not holds:
        raise Refused(message)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Refuses whatever goes wrong while something is read: zipfile, numpy and protobuf raise many types."""
    try:
        yield
    except Exception as error:
        raise error if isinstance(error, Refused) else Refused(f"{name} is not of its format: {error!r:.120}") from error


class Op(NamedTuple):
    """One operator: the activation it makes, those it reads, its output shape, and the geometry of a convolution or pool."""

    kind: str  # linear, relu, maxpool, add, quant
    output: str
    inputs: tuple[str, ...]
    shape: Shape
    form: str = ""  # linear: sum, pool, or with a constant: shift, scale
    weight: Array = EMPTY  # linear: [size] of a diagonal, [out, in] or [groups, out, in, taps]
    bias: Array = EMPTY  # linear: [size]
    source: Shape = ()  # the map [C, H, W] that is read, before padding
    kernel: Shape = ()
    stride: Shape = ()
    pads: Shape = ()  # top, left, bottom, right
    dilation: Shape = ()
    grid: Grid = ()  # quant

    def _tapped(self, maps: Array) -> list[Array]:
        """Returns for each tap of the kernel the part of padded maps [n, C, H, W] that it meets, as views."""
        first = [[p * d for p, d in zip(place, self.dilation, strict=True)] for place in np.ndindex(self.kernel)]
        reach = [s * (t - 1) + 1 for s, t in zip(self.stride, self.shape[1:], strict=True)]
        return [maps[:, :, i : i + reach[0] : self.stride[0], j : j + reach[1] : self.stride[1]] for i, j in first]

    def views(self, x: Array, padding: float) -> list[Array]:
        """Returns for each tap the part [n, C, *output map] of x [n, size in] that it meets."""
        top, left, bottom, right = self.pads
        edges = ((0, 0), (0, 0), (top, bottom), (left, right))
        return self._tapped(np.pad(x.reshape(-1, *self.source), edges, constant_values=padding))

    def scattered(self, parts: Iterable[Array], n: int) -> Array:
        """Returns the transpose of `views`: for each tap a part, all added up to [n, size in]."""
        (channels, height, width), (top, left, bottom, right) = self.source, self.pads
        maps = np.zeros((n, channels, height + top + bottom, width + left + right))
        for view, part in zip(self._tapped(maps), parts, strict=True):
            view += part.reshape(view.shape)
        return maps[:, :, top : top + height, left : left + width].reshape(n, -1)

    def forward(self, weight: Array, x: Array) -> Array:
        """Returns weight · x for x [n, size in], [n, size out]; `weight` has the shape of the operator's own."""
        if weight.ndim < 4:
            return np.asarray(x * weight if weight.ndim == 1 else x @ weight.T)
        views = (view.reshape(len(x), len(weight), weight.shape[2], -1) for view in self.views(x, 0.0))
        return np.asarray(sum(weight[..., k] @ view for k, view in enumerate(views))).reshape(len(x), -1)

    def backward(self, a: Array) -> Array:
        """Returns a · W for rows a [r, size out], [r, size in]."""
        if self.weight.ndim < 4:
            return np.asarray(a * self.weight if self.weight.ndim == 1 else a @ self.weight)
        maps = a.reshape(len(a), *self.weight.shape[:2], -1)
        return self.scattered((self.weight[..., k].transpose(0, 2, 1) @ maps for k in range(self.weight.shape[3])), len(a))


# Attributes that each operator may have; those with a value must have exactly it.
WINDOW: dict[str, Any] = {"kernel_shape": None, "strides": None, "auto_pad": b"NOTSET", "pads": None, "dilations": None}
ALLOWED: dict[str, dict[str, Any]] = {
    "Conv": WINDOW | {"group": None},
    "Gemm": {"transB": None, "transA": 0, "alpha": 1.0, "beta": 1.0},
    "MaxPool": WINDOW | {"dilations": [1, 1], "ceil_mode": 0, "storage_order": 0},
    "AveragePool": WINDOW | {"pads": [0] * 4, "dilations": [1, 1], "ceil_mode": 0, "count_include_pad": 0},
    "Cast": {"to": None, "saturate": 1},
    "Flatten": {"axis": 1},
    "Reshape": {"allowzero": 0},
    **{kind: {"axis": None} for kind in ("QuantizeLinear", "DequantizeLinear")},
    **{kind: {} for kind in ("GlobalAveragePool", "Relu", "Identity", "Add", "Sub", "Mul")},
}
INPUTS = {"Conv": 3, "Gemm": 3, "Reshape": 2, "Add": 2, "Sub": 2, "Mul": 2, "QuantizeLinear": 3, "DequantizeLinear": 3}  # else one


class Network:
    """Operators in order of execution from one input to one output, and all parameters.

    `names` says under which name an activation is known, which a change of shape leaves as it is; `half` whether the input is converted
    to float16; `grids` what activations are quantised to. Refused names the first thing that is not exactly understood.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph, versions = model.graph, [(entry.domain in ("", "ai.onnx"), entry.version) for entry in model.opset_import]
        need(len(versions) == 1 and versions[0] in [(True, v) for v in range(13, 27)], "the model's operator set is not one of 13 to 26")
        odd = model.functions or graph.sparse_initializer or graph.quantization_annotation or len(graph.node) > 1000
        need(not odd, "the model has functions, sparse or quantised tensors, or more than 1000 operators")
        made = [value.name for value in [*graph.initializer, *graph.input]] + [name for node in graph.node for name in node.output]
        need(len(set(made)) == len(made) and "" not in made, "the model has two tensors of one name, or one without")
        for tensor in graph.initializer:
            fits = min(tensor.dims, default=1) >= 1 and prod(tensor.dims) <= MAX_PARAMETER
            need(fits and tensor.data_location != tensor.EXTERNAL, f'"{tensor.name:.60}" lies in another file, or has an impossible shape')
        self.parameters: dict[str, NDArray[Any]] = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        (source,), (target,) = graph.input, graph.output
        need(source.type.tensor_type.elem_type == onnx.TensorProto.FLOAT, "the model's input is not float32")
        self.shape = self._possible(tuple(int(dim.dim_value) for dim in source.type.tensor_type.shape.dim[1:]))
        self.input, self.half, self.shapes, self.names = source.name, False, {source.name: self.shape}, {source.name: source.name}
        self.ops, self.grids, self.quantised = list[Op](), dict[str, Grid](), dict[str, tuple[str, Grid]]()
        self.integers: dict[str, tuple[NDArray[Any], Array]] = {}  # as stored, and scales that broadcast to them
        for node in graph.node:
            self._read(node)
        self.output = self.names[target.name]
        need(len(self.shapes[target.name]) == 1, "the model's output is not one vector of logits for each sample")
        moved = self.output in self.grids and self.ops and {op.output: op.kind for op in self.ops}[self.output] != "quant"
        need(not moved, "the model's output moves quantised values")
        need(sum(prod(op.shape) for op in self.ops) <= MAX_TOTAL, "the model's activations are too large to be checked")
        alone = sum(list(node.input).count(self.input) for node in graph.node) == 1
        need(alone or not self.half, "the model converts its input to float16, and uses it in float32 too")

    @staticmethod
    def _possible(shape: Shape) -> Shape:
        need(shape and min(shape) >= 1 and prod(shape) <= MAX_SIZE, f"an activation has the impossible shape {shape!s:.60}")
        return shape

    def _numbers(self, name: str, size: int | None = None) -> Array:
        value = np.zeros(size or 0) if name == "" else self.parameters[name]
        known = value.dtype in (np.float32, np.float16) or name == ""
        need(known and np.isfinite(value).all(), f'"{name:.60}" is no finite float32 or float16 parameter')
        need(size is None or value.shape == (size,), f"a bias has shape {value.shape} for {size} outputs")
        return value.astype(np.float64)

    def _read(self, node: onnx.NodeProto) -> None:
        """Adds one operator, and records the name and the shape of what it makes."""
        kind, (output,), (first, second, third) = node.op_type, node.output, [*node.input, "", ""][: max(3, len(node.input))]
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        sane = len(attributes) == len(node.attribute) and node.domain in ("", "ai.onnx") and len(node.input) <= INPUTS.get(kind, 1)
        need(kind in ALLOWED and sane, f'operator "{kind:.60}" is not one that is checked')
        for name, value in attributes.items():
            known = ALLOWED[kind].get(name, "") in (None, value)
            need(known, f"{kind} has {name:.60} = {value!s:.60}, which is not checked")
        if kind in ("Add", "Mul") and first in self.parameters:
            first, second = second, first
        grid: Grid = ()
        if kind == "DequantizeLinear" and first in self.parameters:
            return self._stored(output, first, second, third, attributes.get("axis", 1))
        if kind == "QuantizeLinear":  # which nothing else can read: its output gets no shape
            self.quantised[output] = first, self._grid(second, third)
            return None
        if kind == "DequantizeLinear":
            first, grid = self.quantised[first]
            need(grid == self._grid(second, third), "DequantizeLinear has another scale or zero point than the QuantizeLinear before it")
        source, shape, x = self.shapes[first], self.shapes[first], (self.names[first],)
        if kind == "Cast":  # to float16: exact for what the device stores in float16, see rounding.py
            half = attributes["to"] == onnx.TensorProto.FLOAT16
            self.half |= half
            need(first == self.input if half else attributes["to"] == onnx.TensorProto.FLOAT, "Cast is not of the input, or not to float32")
        elif kind == "Reshape":
            batch, *target = self.parameters[second].tolist()
            same = self.parameters[second].dtype == np.int64 and batch in (0, -1) and min(target) >= 1 and prod(target) == prod(source)
            need(same, "Reshape mixes samples, or changes the number of elements")
            shape = tuple(target)
        elif kind == "Flatten":
            shape = (prod(source),)
        elif kind == "Relu" or (grid and self.grids.get(x[0]) != grid):  # to quantise to the same again changes nothing, on any device
            self.ops.append(Op("quant" if grid else "relu", output, x, source, grid=grid))
        elif kind == "Gemm":
            weight = self._numbers(second) if attributes.get("transB") else self._numbers(second).T
            need(weight.ndim == 2 and source == weight.shape[1:], f"Gemm has a weight of shape {weight.shape} on {source}")
            shape = weight.shape[:1]
            self.ops.append(Op("linear", output, x, shape, "sum", weight, self._numbers(third, len(weight))))
        elif kind == "Add" and second in self.shapes:
            need(self.shapes[second] == source, "a residual addition has two shapes")
            self.ops.append(Op("add", output, (*x, self.names[second]), source))
        elif kind in ("Add", "Sub", "Mul"):
            value = self._numbers(second) * (-1 if kind == "Sub" else 1)
            value = np.broadcast_to(value, (1, *source)).reshape(-1).copy()
            weight, bias = (value, 0 * value) if kind == "Mul" else (np.ones_like(value), value)
            self.ops.append(Op("linear", output, x, source, "scale" if kind == "Mul" else "shift", weight, bias))
        elif kind not in ("Identity", "DequantizeLinear"):
            self.ops.append(self._windowed(kind, output, x, source, second, third, attributes))
            shape = self.ops[-1].shape
        self.shapes[output] = self._possible(shape)
        self.names[output] = x[0]
        if self.ops and self.ops[-1].output == output:
            self.names[output] = output
            self._check_integers(self.ops[-1], second, third, kind == "Gemm" and not attributes.get("transB"))
        return None

    def _scales(self, name: str, reach: int) -> NDArray[np.float32]:
        value = self.parameters[name]
        within = value.dtype == np.float32 and value.ndim <= 1 and ((value >= 2.0**-reach) & (value <= 2.0**reach)).all()
        need(within and name not in self.integers, f'"{name:.60}" holds no float32 scales from 2^-{reach} to 2^{reach}')
        return value

    def _grid(self, scale: str, zero: str) -> Grid:
        s, z = self._scales(scale, 40), self.parameters[zero] if zero else np.zeros(1, dtype=np.uint8)
        need(s.size == z.size == 1 and z.dtype in (np.uint8, np.int8), "an activation is quantised to no 8-bit integers of one scale")
        least = int(np.iinfo(z.dtype).min)
        return float(s.item()), least - int(z.item()), least + 255 - int(z.item()), least

    def _stored(self, output: str, name: str, scale: str, zero: str, axis: int) -> None:
        """Adds the float32 parameter fl(scale · q) of integers q with zero point 0, one scale for all or for each place along `axis`."""
        q, z = self.parameters.pop(name), self.parameters[zero] if zero else np.zeros(1, dtype=np.int8)  # once: it may be large
        symmetric = q.dtype in (np.int8, np.int32) and z.dtype.kind in "iu" and not z.any()
        need(symmetric, f'"{name:.60}" does not hold int8 or int32 with the zero point 0')
        s, along = self._scales(scale, 40 if q.dtype == np.int8 else 80), [1] * q.ndim
        if s.size > 1:
            along[axis] = s.size
            need(q.shape[axis] == s.size, f'"{name:.60}" has {s.size} scales for shape {q.shape} along axis {axis}')
        self.parameters[output] = q.astype(np.float32) * s.reshape(along)
        self.integers[output] = q, s.reshape(along).astype(np.float64)

    def _check_integers(self, op: Op, weight: str, bias: str, transposed: bool) -> None:
        """Records what the results of an operator are quantised to; Refused where integer kernels may do other than the contract says.

        On x86 two products of 8 bits may be added in 16 with saturation, hence |q| <= 64; int32 sums must not overflow, in any order; a
        fused operator takes the scale of its bias to be that of its input times that of its weight; and runtimes merge quantisations.
        """
        read = [self.grids[name] for name in op.inputs if name in self.grids]
        if op.kind in ("quant", "relu", "maxpool"):
            need(op.kind != "quant" or not read, "the model quantises values that are quantised already")
            exact = op.kind == "maxpool" or not read or read[0][1:2] == (0,)
            self.grids |= {op.output: op.grid or (read[0] if exact else read[0][:1])} if op.grid or read else {}
        elif op.form == "sum":
            of_integers = [name in self.integers for name in (weight, bias or weight)] == [bool(read)] * 2
            need(of_integers, "a sum reads quantised values with float32 parameters, or others with integers")
            if read:
                (q, scale), (b, of_bias) = self.integers[weight], self.integers[bias] if bias else (np.zeros(1, np.int32), EMPTY)
                q, scale = (q.T, scale.T) if transposed else (q, scale)
                total, wanted = np.abs(q.reshape(len(q), -1).astype(np.float64)), scale.reshape(-1) * read[0][0]
                typed = self.integers[weight][0].dtype == np.int8 and b.dtype == np.int32 and len(scale) == scale.size and len(read[0]) == 4
                need(typed and total.max() <= 64, "a sum has other than 7-bit weights with scales for each output, or reads no whole steps")
                same = not bias or (np.abs(of_bias - wanted) <= 2.0**-22 * wanted).all()
                need(same, "the scale of a bias is not that of the input times that of the weight")
                need((total.sum(axis=1) * 255 + np.abs(b.astype(np.float64))).max() < 2**31, "a sum of integers may overflow")
        else:
            kept = not (read and op.form == "scale") and weight not in self.integers
            need(kept, "the model multiplies quantised values by a constant, or has a constant in integers")

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
        padded = self._possible((source[0], *(source[1 + k] + pads[k] + pads[k + 2] for k in (0, 1))))[1:]
        out, groups, taps = source[0] if pool else len(weight), attributes.get("group", 1), prod(kernel)
        shape = self._possible((out, *((p - r) // s + 1 for p, r, s in zip(padded, reach, stride, strict=True))))
        geometry = (source, kernel, stride, pads, dilation)
        if kind == "MaxPool":
            return Op("maxpool", output, x, shape, "", EMPTY, EMPTY, *geometry)
        if pool:
            return Op("linear", output, x, shape, "pool", np.full((out, 1, 1, taps), 1 / taps), np.zeros(prod(shape)), *geometry)
        grouped = groups >= 1 and out % groups == 0 and weight.shape[1] * groups == source[0]
        need(grouped, f"a convolution has {groups} groups and a weight of shape {weight.shape} on {source}")
        bias = np.repeat(self._numbers(bias_name, out), prod(shape[1:]))
        return Op("linear", output, x, shape, "sum", weight.reshape(groups, out // groups, -1, taps), bias, *geometry)
