"""Operators between formats: FakeQuant (QuantizeLinear and DequantizeLinear), integers of weights, Cast.

See docs/numerics.md, sections 7.1 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from vsparse.errors import InputError
from vsparse.graph.bfloat16 import BFloat16
from vsparse.graph.core import Graph, Node, Shape, Unary
from vsparse.graph.onnx_context import Activation, Dequantised, OnnxContext, Storage, reads
from vsparse.graph.operators.piecewise import Relu
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.rules import apply, torch_layer
from vsparse.graph.shapes import require, shape_rule, show

RANGES = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}


__all__ = ["FakeQuant"]


@dataclass(frozen=True, kw_only=True)
class FakeQuant(Unary):
    """Quantised and dequantised: scale · (q − zero_point) with q = clamp(round half even(x / scale) + zero_point, lowest, highest).

    `scale` is a positive float32 number; the product is exact here (docs/numerics.md, section 7.1).
    """

    scale: float
    zero_point: int
    lowest: int
    highest: int

    @property
    def steps(self) -> tuple[int, int]:
        """The least and the greatest value of q − zero_point."""
        return self.lowest - self.zero_point, self.highest - self.zero_point


def moved_grid(node: Node, grids: Mapping[str, Node | None]) -> FakeQuant | None:
    """Returns the quantisation on whose grid every value of the node's output lies, None where there is none; `grids` has its inputs'."""
    if isinstance(node, FakeQuant):
        return node
    if node.on_quantised == "exact" and len(node.inputs) > 1:  # activations put together, on one grid where all of them are
        read = [grids.get(name) for name in node.inputs]
        first = read[0]
        one = isinstance(first, FakeQuant) and all(isinstance(grid, FakeQuant) and same_grid(first, grid) for grid in read)
        return first if one and isinstance(first, FakeQuant) else None
    # Zero is a value of every grid, so a ReLU stays on it.
    before = grids.get(node.inputs[0]) if node.on_quantised == "moves" or isinstance(node, Relu) else None
    return before if isinstance(before, FakeQuant) else None


def same_grid(a: FakeQuant, b: FakeQuant) -> bool:
    """Returns whether two quantisations have the same values."""
    return (a.scale, a.zero_point, a.lowest, a.highest) == (b.scale, b.zero_point, b.lowest, b.highest)


# Shape and execution --------------------------------------------------------------------------------------------------


@shape_rule.register
def _(node: FakeQuant, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    require(isfinite(node.scale) and node.scale > 0, node, f"has the scale {node.scale}; a positive number is wanted")
    require((node.lowest, node.highest) in RANGES.values(), node, "is of a type other than uint8 and int8")
    require(node.lowest <= node.zero_point <= node.highest, node, f"has the zero point {node.zero_point}, outside of its type")
    return inputs[0]


class _Quantise(torch.autograd.Function):
    """Quantised and dequantised values; gradients pass straight through where nothing is clamped (Bengio et al., arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, lowest: int, highest: int) -> Tensor:
        steps = torch.round(x / scale)
        ctx.save_for_backward((steps >= lowest) & (steps <= highest))
        return steps.clamp(lowest, highest) * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (passes,) = ctx.saved_tensors
        return grad * passes, None, None, None


@apply.register
def _(node: FakeQuant, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    quantised: Tensor = _Quantise.apply(x, node.scale, *node.steps)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return quantised


@torch_layer.register
def _(node: FakeQuant, graph: Graph) -> nn.Module:
    raise InputError(f'node "{node.name}" has type {type(node).__name__}, for which torch has no layer here')


# ONNX; the writer makes the two operators of a FakeQuant itself -------------------------------------------------------


@dataclass(frozen=True)
class Quantised:
    """What QuantizeLinear makes of an activation; DequantizeLinear with the same numbers turns it into a `FakeQuant` node."""

    source: Activation
    scale: float
    zero_point: int
    lowest: int
    highest: int


@reads("QuantizeLinear", 2, 3, "axis")
def read_quantise(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Quantised:
    if isinstance(values[0], np.ndarray):
        raise UnsupportedOperator(
            f'quantises the constant "{show(names[0])}", which devices may round otherwise at ties; store its integers (leave '
            "AddQDQPairToWeight out in onnxruntime.quantization)"
        )
    x = c.activation(values[0])
    scale = _scale(c, values[1], names[1])
    if scale.size != 1:
        raise UnsupportedOperator("has a scale for each channel; activations need one scale for all")
    zero = values[2] if len(values) > 2 else np.zeros((), np.uint8)
    if not isinstance(zero, np.ndarray) or zero.dtype not in RANGES or zero.size != 1:
        raise UnsupportedOperator("needs one constant zero point of type uint8 or int8")
    lowest, highest = RANGES[zero.dtype]
    return Quantised(x, float(scale.reshape(())), int(zero.reshape(())), lowest, highest)


@reads("DequantizeLinear", 2, 3, "axis")
def read_dequantise(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation | Dequantised:
    if isinstance(values[0], np.ndarray):
        return _stored(c, values, names, a)
    if not isinstance(values[0], Quantised):
        raise UnsupportedOperator("reads neither a QuantizeLinear nor an initializer of integers")
    # The operator that undoes a quantisation must be told the same numbers; QuantizeLinear's own checks then hold for it.
    # Without a zero point it is 0, of the type of what is read.
    kind = np.uint8 if values[0].lowest == 0 else np.int8
    zero = values[2] if len(values) > 2 else np.zeros((), kind)
    if read_quantise(c, [values[0].source, values[1], zero], [*names[:2], names[-1]], {}) != values[0]:
        raise UnsupportedOperator("has another scale or zero point than the QuantizeLinear before it")
    if names[0] not in c.dequantised:
        c.dequantised[names[0]] = _pair(c, values[0])
    return c.dequantised[names[0]]


def _pair(c: OnnxContext, q: Quantised) -> Activation:
    for made in c.builder.nodes[len(c.grids) :]:
        c.grids[made.name] = moved_grid(made, c.grids)
    before = c.grids.get(q.source.name)
    node = FakeQuant(
        name=c.fresh(),
        inputs=(q.source.name,),
        shape=(),
        scale=q.scale,
        zero_point=q.zero_point,
        lowest=q.lowest,
        highest=q.highest,
    )
    # Quantising numbers that are on this very grid already changes none of them, on any device.
    return q.source if isinstance(before, FakeQuant) and same_grid(before, node) else c.add(node, q.source.batched)


def _stored(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Dequantised:
    integers: NDArray[Any] = values[0]
    wide = integers.dtype == np.int64  # as int32 tensors are held
    if not (integers.dtype == np.int8 or (wide and bool((np.abs(integers) < 2**31).all()))):
        raise UnsupportedOperator(
            f'needs int8 weights and int32 biases, and "{show(names[0])}" is {integers.dtype}; quantise weights to int8, and leave '
            "constants that are added or multiplied in float32 (weight_type and nodes_to_exclude in onnxruntime.quantization)"
        )
    if len(values) > 2 and (not isinstance(values[2], np.ndarray) or values[2].dtype.kind not in "iu" or values[2].any()):
        raise UnsupportedOperator(
            "has a zero point other than 0; quantise weights symmetrically, so that zeros stay zeros, and leave constants that are added "
            "or multiplied in float32 (WeightSymmetric and nodes_to_exclude in onnxruntime.quantization)"
        )
    scale = _scale(c, values[1], names[1])
    axis = a.get("axis", 1)
    axis = axis + integers.ndim if isinstance(axis, int) and axis < 0 else axis
    if scale.size == 1:
        scale, axis = scale.reshape(()), 0
    elif axis not in range(integers.ndim) or scale.shape != (integers.shape[axis],):
        raise UnsupportedOperator(f"has {scale.size} scales for shape {integers.shape} along axis {show(axis)}")
    return Dequantised(integers.astype(np.int32 if wide else np.int8), scale, axis)


def _scale(c: OnnxContext, value: Any, name: str) -> NDArray[np.float32]:
    if c.format != "fp32":
        raise UnsupportedOperator("stands in a network of float16 numbers; use one of the two, quantisation or float16")
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim > 1 or not value.size:
        raise UnsupportedOperator(f'needs constant float32 scales, and "{show(name)}" is none')
    if not (np.isfinite(value).all() and (value > 0).all()):
        raise UnsupportedOperator("has a scale that is not positive and finite")
    return value


@reads("Cast", 1, 1, "to", any_format=True)
def read_cast(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
    formats: dict[int, Storage] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}
    x, to = values[0], formats.get(a.get("to", 0))
    if isinstance(x, np.ndarray) and x.dtype in (np.int64, object) and a.get("to", 0) == TensorProto.INT64:
        return x
    if isinstance(x, BFloat16):
        return _widened(c, x, a.get("to", 0))
    if isinstance(x, np.ndarray) and x.dtype == np.float16 and to == "fp32":
        if not np.isfinite(x).all():
            raise UnsupportedOperator("converts a constant that holds a number which is not finite")
        c.fold(x.size)
        return x.astype(np.float32)
    if not isinstance(x, Activation) or to is None:
        raise UnsupportedOperator("must convert an activation to float32 or float16")
    # Of float32 values there are the input, what was float16 before, and what sums make of that: the last ones are read once (from_onnx).
    if to == x.format:
        return x
    c.rounds_input |= x.raw and to == "fp16"
    return replace(x, format=to, rounded=x.rounded or to == "fp16", raw=x.raw and to == "fp32")


def _widened(c: OnnxContext, stored: BFloat16, to: int) -> NDArray[np.float32]:
    """Returns a constant that is stored in bfloat16 and computed with in float32 (docs/numerics.md, section 8.1)."""
    if c.opset < 13:
        raise UnsupportedOperator(
            f"converts bfloat16 numbers, which it does not in opset {c.opset}; export the model with opset 13 or later"
        )
    if to != TensorProto.FLOAT:
        raise UnsupportedOperator("converts bfloat16 numbers to another type than float32; compute with them in float32")
    c.fold(stored.size)
    return stored.widened()
