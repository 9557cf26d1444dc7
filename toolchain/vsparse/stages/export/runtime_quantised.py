"""Formats and operators on quantised integers in the runtime's graphs, on fingerprints."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from vsparse.stages.export.runtime_context import MICROSOFT, Attributes, RuntimeContext, Unknown, channels_first, channels_last, runs
from vsparse.stages.export.runtime_hashes import Fingerprint
from vsparse.stages.export.runtime_moves import runtime_concat
from vsparse.stages.export.runtime_operators import runtime_average_pool, runtime_global_average
from vsparse.stages.export.runtime_sums import convolved, product_of, runtime_add, runtime_matmul


def has_type(value: Any, kind: int) -> bool:
    """Returns whether a constant is of a type, given as ONNX numbers types."""
    return isinstance(value, np.ndarray) and value.dtype == onnx.helper.tensor_dtype_to_np_dtype(kind)


@runs("QuantizeLinear", (MICROSOFT, "QuantizeLinear"))
def runtime_quantise(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    zero, to = inputs[2] if len(inputs) > 2 else None, a.get("output_dtype", 0)
    if zero is None and to:
        zero = np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(to))
    if a.get("block_size", 0) or a.get("precision", 0) or (to and not has_type(zero, to)):
        raise Unknown("quantises in blocks or to other types")
    return r.to_grid(r.value(inputs[0]), inputs[1], zero)


@runs("DequantizeLinear", (MICROSOFT, "DequantizeLinear"))
def runtime_dequantise(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    zero = inputs[2] if len(inputs) > 2 else None
    if a.get("block_size", 0) or a.get("output_dtype", 0) not in (0, onnx.TensorProto.FLOAT):
        raise Unknown("dequantises in blocks or to other types")
    if isinstance(inputs[0], Fingerprint):
        return r.on_grid(inputs[0], inputs[1], zero)
    return r.stored(inputs[0], inputs[1], zero, axis=int(a.get("axis", 1)))


@runs("Cast")
def runtime_cast(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Any:
    to, x = a.get("to"), inputs[0]
    if isinstance(x, np.ndarray):
        return x.astype(onnx.helper.tensor_dtype_to_np_dtype(to))
    if to not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        raise Unknown("converts an activation to another type than float32 and float16")
    return r.value(x)


@runs("QLinearConv", (MICROSOFT, "QLinearConv"))
def runtime_qlinear_conv(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    x = r.on_grid(*inputs[:3])
    if a.get("channels_last", 0):
        x = channels_first(x)
    weight = r.stored(*inputs[3:6], axis=0)
    bias = r.stored_bias(inputs[8] if len(inputs) > 8 else None, inputs[1], inputs[4])
    made = r.to_grid(convolved(r, x, weight, bias, None, a), *inputs[6:8])
    return channels_last(made) if a.get("channels_last", 0) else made


@runs((MICROSOFT, "QGemm"))
def runtime_qgemm(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    if a.get("alpha", 1.0) != 1 or a.get("transA", 0):
        raise Unknown("multiplies the product by a factor, or transposes its input")
    x, transposed = r.on_grid(*inputs[:3]), bool(a.get("transB", 0))
    weight = r.stored(*inputs[3:6], axis=0 if transposed else 1)
    bias = r.stored_bias(inputs[6] if len(inputs) > 6 else None, inputs[1], inputs[4])
    made = product_of(r, x, weight if transposed else weight.T, bias)
    return r.to_grid(made, *inputs[7:9]) if len(inputs) > 7 and inputs[7] is not None else made


@runs("QLinearMatMul")
def runtime_qlinear_matmul(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    x, weight = r.on_grid(*inputs[:3]), r.stored(*inputs[3:6], axis=1)
    return r.to_grid(runtime_matmul(r, [x, weight], {}), *inputs[6:8])


@runs((MICROSOFT, "MatMulIntegerToFloat"))
def runtime_matmul_integer_to_float(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    zeros = [*inputs[4:], None, None, None][:3]
    x, weight = r.on_grid(inputs[0], inputs[2], zeros[0]), r.stored(inputs[1], inputs[3], zeros[1], axis=1)
    return product_of(r, x, weight.T, zeros[2])


@runs((MICROSOFT, "QLinearAdd"))
def runtime_qlinear_add(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    x, y = r.on_grid(*inputs[:3]), r.on_grid(*inputs[3:6])
    return r.to_grid(runtime_add(r, [x, y], {}), *inputs[6:8])


@runs((MICROSOFT, "QLinearLeakyRelu"))
def runtime_qlinear_leaky_relu(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    return r.to_grid(r.algebra.leaky(r.on_grid(*inputs[:3]), float(a.get("alpha", np.float32(0.01)))), *inputs[3:5])


@runs((MICROSOFT, "QLinearAveragePool"))
def runtime_qlinear_average(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    return r.to_grid(runtime_average_pool(r, [r.on_grid(*inputs[:3])], a), *inputs[3:5])


@runs((MICROSOFT, "QLinearGlobalAveragePool"))
def runtime_qlinear_global_average(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    return r.to_grid(runtime_global_average(r, [r.on_grid(*inputs[:3])], a), *inputs[3:5])


@runs((MICROSOFT, "QLinearConcat"))
def runtime_qlinear_concat(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    parts = [r.on_grid(*inputs[i : i + 3]) for i in range(2, len(inputs), 3)]
    return r.to_grid(runtime_concat(r, parts, a), *inputs[:2])
