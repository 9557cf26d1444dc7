"""ONNX operators between formats: QuantizeLinear, DequantizeLinear, Cast (docs/numerics.md, sections 7.1 and 8)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from vsparse.graph.ir import FakeQuant
from vsparse.graph.onnx_values import Activation, Dequantised, Refused, Storage, Values
from vsparse.graph.quantised import same_grid
from vsparse.graph.shapes import show

RANGES = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}


@dataclass(frozen=True)
class Quantised:
    """What QuantizeLinear makes of an activation; DequantizeLinear with the same numbers turns it into a `FakeQuant` node."""

    source: Activation
    scale: float
    zero_point: int
    lowest: int
    highest: int


class QuantOps(Values):
    """Each method takes the operator's inputs, their names and its attributes, and returns its output."""

    def quantise(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Quantised:
        x = self.activation(values[0])
        scale = self._scale(values[1], names[1])
        if scale.size != 1:
            raise Refused("has a scale for each channel; activations need one scale for all")
        zero = values[2] if len(values) > 2 else np.zeros((), np.uint8)
        if not isinstance(zero, np.ndarray) or zero.dtype not in RANGES or zero.size != 1:
            raise Refused("needs one constant zero point of type uint8 or int8")
        lowest, highest = RANGES[zero.dtype]
        return Quantised(x, float(scale.reshape(())), int(zero.reshape(())), lowest, highest)

    def dequantise(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation | Dequantised:
        if isinstance(values[0], np.ndarray):
            return self._stored(values, names, a)
        if not isinstance(values[0], Quantised):
            raise Refused("reads neither a QuantizeLinear nor an initializer of integers")
        # The operator that undoes a quantisation must be told the same numbers; QuantizeLinear's own checks then hold for it.
        # Without a zero point it is 0, of the type of what is read.
        kind = np.uint8 if values[0].lowest == 0 else np.int8
        zero = values[2] if len(values) > 2 else np.zeros((), kind)
        if self.quantise([values[0].source, values[1], zero], [*names[:2], names[-1]], {}) != values[0]:
            raise Refused("has another scale or zero point than the QuantizeLinear before it")
        if names[0] not in self.dequantised:
            self.dequantised[names[0]] = self._pair(values[0])
        return self.dequantised[names[0]]

    def _pair(self, q: Quantised) -> Activation:
        before = self.grid.get(q.source.name)
        node = FakeQuant(
            name=self.fresh(),
            inputs=(q.source.name,),
            shape=(),
            scale=q.scale,
            zero_point=q.zero_point,
            lowest=q.lowest,
            highest=q.highest,
        )
        # Quantising numbers that are on this very grid already changes none of them, on any device.
        return q.source if before is not None and same_grid(before, node) else self.add(node, q.source.batched)

    def _stored(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Dequantised:
        integers: NDArray[Any] = values[0]
        wide = integers.dtype == np.int64  # as int32 tensors are held
        if not (integers.dtype == np.int8 or (wide and bool((np.abs(integers) < 2**31).all()))):
            raise Refused(f'needs int8 weights and int32 biases, and "{show(names[0])}" is {integers.dtype}')
        if len(values) > 2 and (not isinstance(values[2], np.ndarray) or values[2].dtype.kind not in "iu" or values[2].any()):
            raise Refused("has a zero point other than 0; quantise weights symmetrically, so that zeros stay zeros")
        scale = self._scale(values[1], names[1])
        axis = a.get("axis", 1)
        axis = axis + integers.ndim if isinstance(axis, int) and axis < 0 else axis
        if scale.size == 1:
            scale, axis = scale.reshape(()), 0
        elif axis not in range(integers.ndim) or scale.shape != (integers.shape[axis],):
            raise Refused(f"has {scale.size} scales for shape {integers.shape} along axis {show(axis)}")
        return Dequantised(integers.astype(np.int32 if wide else np.int8), scale, axis)

    def _scale(self, value: Any, name: str) -> NDArray[np.float32]:
        if self.format != "fp32":
            raise Refused("stands in a network of float16 numbers; use one of the two, quantisation or float16")
        if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim > 1 or not value.size:
            raise Refused(f'needs constant float32 scales, and "{show(name)}" is none')
        if not (np.isfinite(value).all() and (value > 0).all()):
            raise Refused("has a scale that is not positive and finite")
        return value

    def cast(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        formats: dict[int, Storage] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}
        x, to = values[0], formats.get(a.get("to", 0))
        if isinstance(x, np.ndarray) and x.dtype in (np.int64, object) and a.get("to", 0) == TensorProto.INT64:
            return x
        if not isinstance(x, Activation) or to is None:
            raise Refused("must convert an activation to float32 or float16")
        if to == x.format:
            return x
        if to == "fp16" and x.name != self.builder.input:
            raise Refused("converts a value other than the network's input to float16; keep float16 from there to the result")
        return replace(x, format=to)
