"""The part of the random files that makes constants: stored, computed by chains of moves, quantised."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vsparse.graph.bfloat16 import to_bfloat16

Array = NDArray[Any]


class Constants:
    """Holds a file's nodes and initializers."""

    def __init__(self, rng: np.random.Generator, opset: int) -> None:
        self.rng, self.opset = rng, opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0
        self.float: type[np.floating[Any]] = np.float32
        self.half = self.quantised = self.narrow = False
        self.scales: dict[str, Array] = {}

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Appends a node."""
        domain = "ai.onnx" if self.chance(0.02) else None
        name = self.name("n") if self.chance(0.5) else None
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))

    def normal(self, shape: tuple[int, ...]) -> Array:
        """Returns constants that are no round numbers, or few round ones."""
        value = self.rng.normal(size=shape)
        return np.asarray(np.round(value * 4) / 4 if self.chance(0.3) else value, self.float)

    def stored(self, value: Array, plain: bool = False) -> str:
        """Returns the name of a new initializer or Constant, or of what a Cast makes of bfloat16 numbers unless `plain`."""
        name = self.name("c")
        if value.dtype == np.float32 and self.narrow and not plain and self.chance(0.8):
            tensor = to_bfloat16(value).tensor(self.name("b"))
            self.initializers.append(tensor)
            # Rarely converted to another type, or not at all, which is refused.
            to = TensorProto.FLOAT if self.chance(0.99) else TensorProto.BFLOAT16
            self.node("Cast", [tensor.name], [name], to=to)
            return tensor.name if self.chance(0.01) else name
        if value.dtype == np.float32 and self.opset >= 12 and value.ndim < 2 and self.chance(0.3):
            numbers = {"value_float": float(value)} if value.ndim == 0 else {"value_floats": [float(v) for v in value]}
            if value.size:
                self.node("Constant", [], [name], **numbers)
                return name
        if value.dtype == np.int64 and self.opset >= 12 and value.ndim < 2 and value.size and self.chance(0.2):
            self.node("Constant", [], [name], **({"value_int": int(value)} if value.ndim == 0 else {"value_ints": value.tolist()}))
        elif self.chance(0.25):
            self.node("Constant", [], [name], value=numpy_helper.from_array(value))
        else:
            self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def moved(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = self.name("k")
        self.node(kind, inputs, [name], **attributes)
        return name

    def axes_of(self, kind: str, x: str, axes: list[int]) -> str:
        """Appends Squeeze or Unsqueeze as its opset has it."""
        if self.opset < 13:
            return self.moved(kind, [x], axes=axes)
        return self.moved(kind, [x, self.stored(np.array(axes, np.int64))])

    def constant(self, value: Array) -> str:
        """Returns the name of a constant: stored, or made of others by moves that leave this value."""
        how = int(self.rng.integers(0, 20))
        if value.ndim and how == 0:
            order = [int(i) for i in self.rng.permutation(value.ndim)]
            return self.moved("Transpose", [self.stored(np.ascontiguousarray(value.transpose(np.argsort(order))))], perm=order)
        if value.ndim >= 2 and how == 1:
            return self.moved("Transpose", [self.stored(np.ascontiguousarray(value.T))])
        if how == 2:
            axis = int(self.rng.integers(0, value.ndim + 1))
            return self.axes_of(
                "Squeeze", self.stored(np.expand_dims(value, axis)), [axis - (value.ndim + 1) * int(self.opset >= 11 and self.chance(0.5))]
            )
        if how == 3 and 1 not in value.shape:
            return self.moved("Squeeze", [self.stored(np.expand_dims(value, int(self.rng.integers(0, value.ndim + 1))))])
        if how == 4 and 1 in value.shape:
            axis = value.shape.index(1)
            return self.axes_of("Unsqueeze", self.stored(value.squeeze(axis)), [axis])
        if how == 5 and value.ndim:
            shape = self.stored(np.array([-1 if i == 0 else size for i, size in enumerate(value.shape)], np.int64))
            return self.moved("Reshape", [self.stored(value.reshape(-1)), shape])
        if how == 6 and value.ndim and value.shape[-1] > 1:
            parts = [self.stored(np.ascontiguousarray(part)) for part in np.split(value, [1], axis=-1)]
            return self.moved("Concat", parts, axis=value.ndim - 1 if self.opset < 11 or self.chance(0.5) else -1)
        if how == 7 and value.ndim:
            axis = int(self.rng.integers(0, value.ndim))
            order = self.rng.permutation(value.shape[axis])
            places = self.stored(np.argsort(order).astype(np.int64))
            return self.moved("Gather", [self.stored(np.take(value, order, axis)), places], axis=axis if axis or self.chance(0.5) else None)
        if how == 8 and value.ndim:
            wider = np.concatenate([value, value[:1]])
            if self.opset < 10:
                return self.moved("Slice", [self.stored(wider)], starts=[0], ends=[-1])
            ends = [self.stored(np.array(one, np.int64)) for one in ([0], [-1])]
            return self.moved("Slice", [self.stored(wider), *ends])
        if how == 9:
            return self.moved("Identity", [self.stored(value)])
        return self.stored(value)

    def integers(self, *values: int) -> str:
        """Returns the name of a list of integers, sometimes joined of two."""
        if len(values) > 1 and self.chance(0.15):
            parts = [self.stored(np.array(part, np.int64)) for part in (values[:1], values[1:])]
            return self.moved("Concat", parts, axis=0)
        return self.stored(np.array(values, np.int64))

    # Quantised files --------------------------------------------------------------------------------------------------

    def pair(self, x: str, copies: int = 1) -> list[str]:
        """Appends a QuantizeLinear and DequantizeLinears that read it; returns what these make."""
        signed = self.chance(0.4)
        low, high = (-128, 127) if signed else (0, 255)
        zero = int(self.rng.choice([0, (low + high + 1) // 2, int(self.rng.integers(low, high + 1))]))
        scale = float(np.float32(self.rng.choice([0.02, 0.05, 0.0078125])))
        vector = () if self.chance(0.7) else (1,)
        numbers = [self.stored(np.full(vector, scale, np.float32)), self.stored(np.full(vector, zero, np.int8 if signed else np.uint8))]
        if zero == 0 and not signed and self.chance(0.3):
            numbers = numbers[:1]
        axis = {"axis": 0} if self.opset >= 13 and self.chance(0.1) else {}
        q = self.moved("QuantizeLinear", [x, *numbers], **axis)
        made = [self.moved("DequantizeLinear", [q, *numbers], **axis) for _ in range(copies)]
        self.scales |= dict.fromkeys(made, np.asarray(scale, np.float32))
        return made

    def quantised_input(self, x: str) -> str:
        """Returns what an affine operator reads: in quantised files, mostly a quantised activation."""
        if not self.quantised or (x in self.scales and not self.chance(0.1)):
            return x
        return self.pair(x)[0] if self.chance(0.85) else x

    def affine_weight(self, shape: tuple[int, ...], axis: int = 0) -> str:
        """Returns the name of a weight, in quantised files mostly as integers; `axis` is that of the outputs."""
        if not self.quantised or self.chance(0.1):
            return self.constant(self.normal(shape) * self.float(0.6))
        integers = self.rng.integers(-64, 65, shape).astype(np.int8)
        each = self.opset >= 13 and self.chance(0.5)
        scale = np.asarray(self.rng.uniform(0.004, 0.02, shape[axis] if each else ()), np.float32)
        return self.integer_constant(integers, scale, axis)

    def integer_constant(self, integers: Array, scale: Array, axis: int) -> str:
        """Returns the name of what DequantizeLinear makes of stored integers."""
        inputs = [self.stored(integers), self.stored(scale)]
        if self.chance(0.7):
            inputs.append(self.stored(np.zeros(scale.shape, integers.dtype)))
        name = self.moved("DequantizeLinear", inputs, **({"axis": axis} if scale.ndim and (axis != 1 or self.chance(0.5)) else {}))
        self.scales[name] = scale
        return name

    def affine_bias(self, outputs: int, shape: tuple[int, ...], x: str, weight: str) -> str:
        """Returns the name of a bias, stored in integers where the input and the weight are."""
        if x in self.scales and weight in self.scales and shape == (outputs,) and self.chance(0.9):
            scale = np.asarray(self.scales[x] * self.scales[weight], np.float32)
            return self.integer_constant(self.rng.integers(-3000, 3000, outputs).astype(np.int32), scale, 0)
        return self.constant(np.resize(self.normal((outputs,)), shape))
