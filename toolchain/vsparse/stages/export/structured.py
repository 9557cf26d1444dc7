"""Whether weights have NVIDIA's 2:4 pattern, so that a runtime may be asked to use it: where they have not, it would change them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


def has_two_four(model: onnx.ModelProto) -> bool:
    """Returns whether the weight of some Conv, Gemm or MatMul has at most two non-zeros in each four inputs in a row of each output.

    That is, for each output and each position of the kernel, at least two zeros among input channels 4k to 4k + 3, and a number of them
    that four divides (A100 whitepaper, "Fine-Grained Structured Sparsity").
    """
    return any(two_of_four(weight) for weight in weights(model))


def weights(model: onnx.ModelProto) -> Iterator[NDArray[Any]]:
    """Yields the stored weight [out, in, …] of each Conv, Gemm and MatMul; integers and half precision as they stand in the file."""
    values: dict[str, NDArray[Any]] = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("DequantizeLinear", "Cast", "Identity") and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2 or node.input[1] not in values:
            continue
        weight = values[node.input[1]]
        stored_by_output = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
        if weight.ndim >= 2:
            yield weight if stored_by_output else np.swapaxes(weight, -1, -2)


def two_of_four(weight: NDArray[Any]) -> bool:
    """Returns whether a weight [out, in, …] has the pattern along its inputs."""
    if weight.shape[1] % 4:
        return False
    groups = (weight != 0).reshape(weight.shape[0], weight.shape[1] // 4, 4, -1)
    return bool((groups.sum(axis=2) <= 2).all())
