"""What a runtime may make of the tensors of quantised and of half-precision files (docs/numerics.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from vsparse.errors import GateError

Arrays = dict[str, NDArray[Any]]


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """Returns float16 numbers in float32, which holds every one of them; everything else as it is."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


def folded(model: onnx.ModelProto, tensors: Arrays) -> Arrays:
    """Returns for the integers of each weight and bias the floats fl(scale · q) that the verified graph has: a runtime may keep these."""
    found: Arrays = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors and node.input[1] in tensors:
            integers, scale = tensors[node.input[0]], tensors[node.input[1]]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            along = [-1 if i == axis % max(integers.ndim, 1) else 1 for i in range(integers.ndim)] if scale.size > 1 else ()
            found[node.input[0]] = (integers.astype(np.float32) * scale.reshape(along)).astype(np.float32)
    return found


def dispensable(model: onnx.ModelProto, tensors: Arrays) -> set[str]:
    """Returns the scales and zero points of int32 biases, which kernels on integers make out of others.

    That they come to the same is checked where the model is certified (`check_integer_execution`).
    """
    biases = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors and tensors[node.input[0]].dtype == np.int32
    ]
    return {name for node in biases for name in node.input[1:]}


def require_one_value(model: onnx.ModelProto, what: str) -> None:
    """Raises GateError where an activation is converted to float16 for one reader and read unrounded by another.

    Bounds take an activation for one number, whoever reads it.
    """
    readers: dict[str, list[bool]] = {value.name: [False] for value in model.graph.output}
    for node in model.graph.node:
        to = next((a.i for a in node.attribute if a.name == "to"), None)
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type == "Cast" and to == TensorProto.FLOAT16)
    for name, rounds in readers.items():
        if any(rounds) and not all(rounds):
            raise GateError(
                f'{what} reads "{name}" both rounded to float16 and unrounded, two values where bounds know one; leave fp16 out'
            )
