"""The ends of a Clip that a runtime makes part of the convolution before it: they leave the initializers for its attributes."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

# What the runtime writes for an end that the file does not have.
NO_END = float(np.finfo(np.float32).max)


def fused_clip_ends(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Returns the ends that convolutions of an optimised graph clip to, each a float32 scalar, by a name of their own."""
    ends: dict[str, NDArray[np.float32]] = {}
    for index, node in enumerate(model.graph.node):
        found = {attribute.name: attribute for attribute in node.attribute}
        if "activation" in found and found["activation"].s == b"Clip" and "activation_params" in found:
            for place, value in enumerate(found["activation_params"].floats):
                if abs(value) < NO_END:
                    ends[f"{node.name or index}.activation_params[{place}]"] = np.array(value, np.float32)
    return ends


def clip_attributes(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Returns the ends that the Clip nodes of an old file (opset below 11) carry as attributes, each a float32 scalar."""
    return {
        f"{node.name or index}.{attribute.name}": np.array(attribute.f, np.float32)
        for index, node in enumerate(model.graph.node)
        if node.op_type == "Clip"
        for attribute in node.attribute
        if attribute.name in ("min", "max")
    }
