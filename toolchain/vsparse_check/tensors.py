"""The tensors of an ONNX file while it is read: parameters, activations, and what they are called.

Every activation is kept flat, [samples, size], so that an operator that only gives it another
shape vanishes: the new tensor is another name and another shape of the same activation.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse_check.arrays import Dims, FloatArray
from vsparse_check.integers import QuantisedTensors
from vsparse_check.limits import ResourceBudget
from vsparse_check.refusal import need

MAX_SIZE = 2**24  # elements of one activation, padding included
MAX_PARAMETER = 2**27  # elements of one parameter
BYTES = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
    onnx.TensorProto.INT64: 8,
    onnx.TensorProto.INT32: 4,
    onnx.TensorProto.INT8: 1,
    onnx.TensorProto.UINT8: 1,
}


class OnnxNode(NamedTuple):
    """One node of a file: its operator, its only output, its inputs and its attributes."""

    kind: str
    output: str
    inputs: tuple[str, ...]
    attributes: dict[str, Any]

    def input(self, number: int) -> str:
        """Returns the name of an input, an empty string where it is left out."""
        return self.inputs[number] if number < len(self.inputs) else ""

    @property
    def transposes_weight(self) -> bool:
        """Returns whether the weight of a Gemm is [in, out]."""
        return self.kind == "Gemm" and not self.attributes.get("transB")


class ShapedActivation(NamedTuple):
    """One activation under one of its shapes; `name` is that of the operator that makes it."""

    name: str
    shape: Dims


class TensorTable:
    """All tensors of a file, by name."""

    def __init__(self, initializers: list[onnx.TensorProto], budget: ResourceBudget) -> None:
        """Reads all initializers; Refuted for one that holds other than its shape promises."""
        self.budget = budget
        stored = {tensor.name: self._stored(tensor) for tensor in initializers}
        narrow = {
            tensor.name for tensor in initializers if tensor.data_type == onnx.TensorProto.BFLOAT16
        }
        # Bits of bfloat16 numbers, which nothing but a Cast to float32 makes parameters of.
        self.bfloat16 = {name: stored[name] for name in narrow}
        self.parameters = {name: stored[name] for name in stored.keys() - narrow}
        self.activations = dict[str, ShapedActivation]()
        self.input = ""
        self.used = set[str]()  # the parameters that a sum or an operation with a constant reads
        self.quantised = QuantisedTensors(self.parameters)

    def _stored(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """Returns an initializer, once its bytes are known to hold what its shape promises."""
        count = prod(tensor.dims)
        typed = count <= MAX_PARAMETER and tensor.data_type in BYTES
        fits = typed and min(tensor.dims, default=1) >= 1
        need(
            fits and tensor.data_location != tensor.EXTERNAL,
            f'"{tensor.name:.60}" is in another file, or of a type or shape that is not read',
        )
        if tensor.raw_data:
            whole = len(tensor.raw_data) == count * BYTES[tensor.data_type]
        else:
            fields = (tensor.float_data, tensor.int32_data, tensor.int64_data)
            whole = max(map(len, fields)) == count
        need(whole, f'"{tensor.name:.60}" holds other than the {count} numbers of its shape')
        # As stored, in float64, and two kernels of the errors of its products.
        self.budget.hold(8.0 * 4 * count)
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
            if tensor.raw_data:
                bits = np.frombuffer(tensor.raw_data, dtype="<u2")
            else:
                bits = np.array(tensor.int32_data, dtype=np.int64)
            patterns = bits.size == count and ((bits >= 0) & (bits < 2**16)).all()
            need(patterns, f'"{tensor.name:.60}" holds other than patterns of 16 bits')
            return bits.reshape(tuple(tensor.dims)).astype(np.uint16)
        return np.asarray(onnx.numpy_helper.to_array(tensor))

    def widen(self, output: str, name: str) -> None:
        """Adds the float32 parameter that a Cast makes of one stored in float16 or bfloat16.

        A bfloat16 number is the upper half of the float32 number that it is: s·2^(e−127)·(1 + f),
        with the same sign and exponent and the first 7 of the 23 bits of f. So the Cast is exact
        (docs/numerics.md, section 8.1). Every float16 number is one of float32 too.
        """
        if name in self.parameters:
            value = self.parameters[name]
            need(value.dtype == np.float16, f'Cast of "{name:.60}", which is no float16 parameter')
            self.budget.hold(8.0 * 4 * value.size)
            self.parameters[output] = value.astype(np.float32)
            return
        bits = self.bfloat16[name]
        self.budget.hold(8.0 * 4 * bits.size)
        upper = np.asarray(bits.astype(np.uint32) << np.uint32(16))
        self.parameters[output] = upper.view(np.float32)

    def activation(self, node: OnnxNode, name: str | None = None) -> ShapedActivation:
        """Returns the activation that a node reads, by default as its first input."""
        name = node.input(0) if name is None else name
        need(
            name in self.activations,
            f'{node.kind} reads "{name:.60}", which is no activation: '
            "a constant first, or quantised values",
        )
        return self.activations[name]

    def numbers(self, name: str, size: int | None = None) -> FloatArray:
        """Returns a parameter in float64; zeros where it is left out and `size` says how many."""
        need(
            name in self.parameters or name == "",
            f'"{name:.60}" is computed, or not there, and should be a parameter',
        )
        value = self.parameters[name] if name else np.zeros(size or 0)
        typed = value.dtype in (np.float32, np.float16) or name == ""
        need(
            typed and np.isfinite(value).all(),
            f'"{name:.60}" is no finite float32 or float16 parameter',
        )
        need(
            size is None or value.shape == (size,),
            f"a bias has shape {value.shape} for {size} outputs",
        )
        self.used.add(name)
        return value.astype(np.float64)

    def scalar(self, name: str) -> float:
        """Returns a constant beside the weights; it need not be of the storage format."""
        value = self.parameters[name]
        typed = value.dtype in (np.float32, np.float16) and value.size == 1
        need(typed and not np.isnan(value).any(), f'"{name:.60}" is no number')
        return float(value.item())

    def whole_numbers(self, name: str) -> list[int]:
        """Returns constant int64 numbers."""
        need(
            name in self.parameters and self.parameters[name].dtype == np.int64,
            f'"{name:.60}" holds no constant int64 numbers',
        )
        return [int(number) for number in self.parameters[name].reshape(-1).tolist()]


def possible(shape: Dims) -> Dims:
    """Returns the shape of an activation; Refuted where there is none such."""
    fits = shape and min(shape) >= 1 and prod(shape) <= MAX_SIZE
    need(fits, f"an activation has the impossible shape {shape!s:.60}")
    return shape
