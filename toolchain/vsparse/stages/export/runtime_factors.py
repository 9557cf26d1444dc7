"""What ONNX Runtime makes of a multiplication by one constant for each channel, between vector kernels (NCHWc)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

# Channels of a block of the widest vector kernels.
BLOCK = 16


def depthwise_factors(model: onnx.ModelProto) -> set[str]:
    """Returns the weights of NCHWc convolutions that multiply each channel by one number: it rounds once, as the multiplication does."""
    plain = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), "kernel_shape": (1, 1)}
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        if (node.domain, node.op_type) == ("com.microsoft.nchwc", "Conv"):
            size = sizes.get(node.input[1], ())
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            simple = all(tuple(a.ints) == plain[a.name] for a in node.attribute if a.name in plain)
            if simple and size == (groups, 1, 1, 1):
                found.add(node.input[1])
    return found


def is_filled_with_ones(array: NDArray[Any], original: NDArray[Any]) -> bool:
    """Whether `array` holds the bits of `original` in their order, and behind them less than a block of ones."""
    if array.dtype != np.float32 or original.dtype != np.float32 or not original.size <= array.size < original.size + BLOCK:
        return False
    flat = array.reshape(-1)
    return flat[: original.size].tobytes() == original.tobytes() and bool((flat[original.size :] == 1).all())
