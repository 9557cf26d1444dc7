"""The operators that ONNX Runtime's optimised graphs hold beside sums, on fingerprints: functions, pools, formats.

See docs/numerics.md, section 10.2.

Fused operators are read as the operators they replace, in their order; what is not known by name, or would compute something that no
contract charges (a factor moved behind a product, a scale of its own), is `Unknown`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse.graph.ir import LeakyRelu
from vsparse.graph.quantised import BIAS_SCALE_TOLERANCE
from vsparse.stages.export.runtime_hashes import Grid, Hashes, Value
from vsparse.stages.export.runtime_reference import padded
from vsparse.stages.export.runtime_sums import Attributes, Sums, Unknown, channels_first, channels_last, lifted, lifted_window

RANGES = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}


def has_type(value: Any, kind: int) -> bool:
    """Returns whether a constant is of a type, given as ONNX numbers types."""
    return isinstance(value, np.ndarray) and value.dtype == onnx.helper.tensor_dtype_to_np_dtype(kind)


@dataclass(frozen=True)
class Negative:
    """Which elements of an activation are below zero."""

    of: Value


class Operators(Sums):
    """Each method takes the operator's inputs (activations or constant arrays) and attributes and returns its output."""

    # Functions of one number, and pools -------------------------------------------------------------------------------

    def relu(self, inputs: list[Any], a: Attributes) -> Value:
        return self.algebra.clipped(self.value(inputs[0]), 0.0, float("inf"))

    def leaky_relu(self, inputs: list[Any], a: Attributes) -> Value:
        return self.algebra.leaky(self.value(inputs[0]), float(a.get("alpha", np.float32(0.01))))

    def prelu(self, inputs: list[Any], a: Attributes) -> Value:
        slopes = self.numbers(inputs[1])
        if (slopes != slopes.flat[0]).any():
            raise Unknown("has several slopes")
        return self.algebra.leaky(self.value(inputs[0]), float(slopes.flat[0]))

    def less(self, inputs: list[Any], a: Attributes) -> Negative:
        """x < 0: a part of what LeakyRelu becomes where the runtime has no kernel for it (float16)."""
        zero = self.numbers(inputs[1])
        if zero.size != 1 or zero.any():
            raise Unknown("compares with another number than zero")
        return Negative(self.value(inputs[0]))

    def where(self, inputs: list[Any], a: Attributes) -> Value:
        """slope · x where x < 0, else x; the slope is the one constant with which the product is what it is."""
        chosen, scaled, x = inputs[0], self.value(inputs[1]), self.value(inputs[2])
        if isinstance(chosen, Negative) and np.array_equal(chosen.of.hashes, x.hashes):
            for node in self.graph.nodes:
                if isinstance(node, LeakyRelu):
                    product = self.algebra.times(x, np.array(node.slope, np.float32))
                    if np.array_equal(product.hashes, scaled.hashes):
                        return self.algebra.leaky(x, node.slope)
        raise Unknown("chooses between activations, and not as a LeakyRelu of the file does")

    def clip(self, inputs: list[Any], a: Attributes) -> Value:
        ends = [float(a.get("min", -np.inf)), float(a.get("max", np.inf))]
        for i, one in enumerate(inputs[1:]):
            if one is not None:
                if (end := self.numbers(one)).size != 1:
                    raise Unknown("clips to several numbers")
                ends[i] = float(end.reshape(()))
        return self.algebra.clipped(self.value(inputs[0]), ends[0], ends[1])

    def sigmoid(self, inputs: list[Any], a: Attributes) -> Value:
        return self.algebra.function(self.value(inputs[0]), "Sigmoid")

    def tanh(self, inputs: list[Any], a: Attributes) -> Value:
        return self.algebra.function(self.value(inputs[0]), "Tanh")

    def negate(self, inputs: list[Any], a: Attributes) -> Value:
        return self.algebra.negated(self.value(inputs[0]))

    def max_pool(self, inputs: list[Any], a: Attributes) -> Value:
        if not isinstance(inputs[0], Value):
            raise Unknown("is applied to a constant")
        return self._pooled(inputs[0], a, lambda x, kernel, stride, pads: self.algebra.maximum(x, kernel, stride, pads))

    def average_pool(self, inputs: list[Any], a: Attributes) -> Value:
        counts = bool(a.get("count_include_pad", 0))
        return self._pooled(self.value(inputs[0]), a, lambda x, kernel, stride, pads: self.algebra.average(x, kernel, stride, pads, counts))

    def _pooled(self, x: Value, a: Attributes, pool: Callable[..., Value]) -> Value:
        if a.get("channels_last", 0):
            inner = self._pooled(channels_first(x), {**a, "channels_last": 0}, pool)
            return channels_last(inner)
        if len(x.shape) == 3:
            return self._pooled(lifted(x), lifted_window(a), pool).moved(lambda array: array[:, :, 0])
        if len(x.shape) != 4 or a.get("storage_order", 0) or any(one != 1 for one in a.get("dilations", ())):
            raise Unknown("is a pool of another kind than 1-D and 2-D without dilations")
        kernel = tuple(a["kernel_shape"])
        stride = tuple(a.get("strides", (1, 1)))
        pads = self._pads(a, x, kernel, stride, (1, 1))
        for i, size in enumerate(x.shape[2:]):
            if a.get("ceil_mode", 0) and (size + pads[i] + pads[i + 2] - kernel[i]) % stride[i]:
                raise Unknown("has a last window that reaches outside (ceil_mode)")
        return pool(x, kernel, stride, pads)

    def global_average(self, inputs: list[Any], a: Attributes) -> Value:
        x = self.value(inputs[0])
        if a.get("channels_last", 0):
            return channels_last(self.global_average([channels_first(x)], {}))
        if len(x.shape) == 3:
            return self.global_average([lifted(x)], a).moved(lambda array: array[:, :, 0])
        return self.algebra.average(x, (x.shape[2], x.shape[3]), (1, 1))

    def reduce_sum(self, inputs: list[Any], a: Attributes) -> Value:
        return self._reduced(inputs, a)[0]

    def reduce_mean(self, inputs: list[Any], a: Attributes) -> Value:
        total, count = self._reduced(inputs, a)
        return total if count == 1 else self.algebra.divided(total, np.array(count, np.float32))

    def _reduced(self, inputs: list[Any], a: Attributes) -> tuple[Value, int]:
        x = self.value(inputs[0])
        axes = a.get("axes") if len(inputs) < 2 or inputs[1] is None else self.integers(inputs[1])
        if not axes and a.get("noop_with_empty_axes", 0):
            return x, 1
        gone = tuple(sorted({axis % len(x.shape) for axis in axes or range(len(x.shape))}))
        if 0 in gone and not self.reference.one_sample:
            raise Unknown("works along the batch")
        count = int(np.prod([x.shape[i] for i in gone]))

        def reduce(array: Hashes) -> Hashes:
            return np.asarray(array.sum(axis=gone, keepdims=bool(a.get("keepdims", 1)), dtype=np.uint64))

        return (x.moved(reduce), 1) if count == 1 else (self.algebra.summed(reduce(x.hashes)), count)

    # Formats ----------------------------------------------------------------------------------------------------------

    def grid(self, scale: Any, zero: Any) -> Grid:
        """Returns the grid of a quantisation with one scale and zero point."""
        zero = np.zeros((), np.uint8) if zero is None else zero
        if not isinstance(zero, np.ndarray) or zero.dtype not in RANGES or zero.size != 1 or (scale := self.numbers(scale)).size != 1:
            raise Unknown("quantises with several scales, or to other types than uint8 and int8")
        lowest, highest = RANGES[zero.dtype]
        return Grid(float(scale.reshape(())), lowest - int(zero.reshape(())), highest - int(zero.reshape(())))

    def on_grid(self, value: Any, scale: Any, zero: Any) -> Value:
        """Returns the activation behind quantised integers, which must be on that very grid."""
        if not isinstance(value, Value) or not value.integers:
            raise Unknown("reads no quantised integers")
        if value.grid != self.grid(scale, zero):
            raise Unknown("reads quantised integers with another scale or zero point than they were made with")
        return Value(value.hashes, value.total, value.clipped, value.pooled, value.grid)

    def to_grid(self, x: Value, scale: Any, zero: Any) -> Value:
        """Returns the integers of an activation."""
        made = self.algebra.quantised(x, self.grid(scale, zero))
        return Value(made.hashes, made.total, made.clipped, made.pooled, made.grid, integers=True)

    def quantise(self, inputs: list[Any], a: Attributes) -> Value:
        zero, to = inputs[2] if len(inputs) > 2 else None, a.get("output_dtype", 0)
        if zero is None and to:
            zero = np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(to))
        if a.get("block_size", 0) or a.get("precision", 0) or (to and not has_type(zero, to)):
            raise Unknown("quantises in blocks or to other types")
        return self.to_grid(self.value(inputs[0]), inputs[1], zero)

    def dequantise(self, inputs: list[Any], a: Attributes) -> Any:
        zero = inputs[2] if len(inputs) > 2 else None
        if a.get("block_size", 0) or a.get("output_dtype", 0) not in (0, onnx.TensorProto.FLOAT):
            raise Unknown("dequantises in blocks or to other types")
        if isinstance(inputs[0], Value):
            return self.on_grid(inputs[0], inputs[1], zero)
        return self.stored(inputs[0], inputs[1], zero, axis=int(a.get("axis", 1)))

    def stored(self, integers: Any, scale: Any, zero: Any, *, axis: int) -> NDArray[np.float32]:
        """Returns fl(scale · (q − zero)) of constant integers; scales and zero points are single or lie along `axis`."""
        if not isinstance(integers, np.ndarray) or integers.dtype.kind not in "iu":
            raise Unknown("dequantises something else than constant integers")

        def along(one: NDArray[Any]) -> NDArray[Any]:
            return one.reshape([-1 if i == axis % integers.ndim else 1 for i in range(integers.ndim)]) if one.size > 1 else one.reshape(())

        shifted = integers.astype(np.int64) - (0 if zero is None else along(zero.astype(np.int64)))
        return np.asarray(shifted.astype(np.float32) * along(self.numbers(scale)), dtype=np.float32)

    def stored_bias(self, integers: Any, input_scale: Any, weight_scale: Any) -> NDArray[np.float32] | None:
        """Returns the file's floats of a bias whose integers a kernel scales by input times weight scale, as the contract `int8` allows."""
        if integers is None:
            return None
        if not isinstance(integers, np.ndarray) or integers.dtype != np.int32:
            raise Unknown("has a bias that is not of type int32")
        scale = self.numbers(input_scale).astype(np.float64).reshape(()) * self.numbers(weight_scale).astype(np.float64).reshape(-1)
        for name, one in self.graph.integers.items():
            same = one.values.shape == integers.shape and np.array_equal(one.values, integers)
            if same and (np.abs(one.scale.astype(np.float64).reshape(-1) - scale) <= BIAS_SCALE_TOLERANCE * scale).all():
                return self.graph.params[name]
        raise Unknown("has a bias, or a scale of it, that is none of the file's")

    def cast(self, inputs: list[Any], a: Attributes) -> Any:
        to, x = a.get("to"), inputs[0]
        if isinstance(x, np.ndarray):
            return x.astype(onnx.helper.tensor_dtype_to_np_dtype(to))
        if to not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            raise Unknown("converts an activation to another type than float32 and float16")
        return self.value(x)

    def pad(self, inputs: list[Any], a: Attributes) -> Value:
        x = self.value(inputs[0])
        if a.get("mode", b"constant") != b"constant":
            raise Unknown("pads with something else than a constant")
        pads = list(a.get("pads", [])) if len(inputs) < 2 else self.integers(inputs[1])
        number = a.get("value", 0.0)
        if len(inputs) > 2 and inputs[2] is not None:
            if (constant := self.numbers(inputs[2])).size != 1:
                raise Unknown("pads with several numbers")
            number = float(constant.reshape(()))
        axes = range(len(x.shape)) if len(inputs) < 4 or inputs[3] is None else self.integers(inputs[3])
        around = [(0, 0)] * len(x.shape)
        for i, axis in enumerate(axes):
            around[axis % len(x.shape)] = (pads[i], pads[i + len(pads) // 2])
        if min(min(pair) for pair in around) < 0 or any(around[0]):
            raise Unknown("pads the batch, or cuts off")
        return padded(self.algebra, x, around, number)
