"""An ONNX file with (x − mean) · (1 / std) put before its network, for files that leave that to whoever calls them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vsparse.errors import InputError
from vsparse.files import read_bytes, write_bytes
from vsparse.graph.onnx_file import MAX_ONNX_BYTES, open_model


def write_normalised(model: Path, mean: Sequence[float], std: Sequence[float], path: Path) -> None:
    """Writes the network of `model` behind Add(−mean) and Mul(1 / std), float32, one value for each channel or one for all.

    Raises InputError for a file that is no such ONNX file, an input that is not [batch, C, H, W] of float32, and other counts.
    """
    try:
        proto, _ = open_model(read_bytes(model, "model", MAX_ONNX_BYTES))
    except InputError as error:
        raise InputError(f"model {model}: {error}") from error
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise InputError(f"model {model} has another input than one of float32, so --mean and --std cannot go before it; leave them out")
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    channels = shape[1] if len(shape) >= 2 else 0
    if any(len(values) not in (1, channels) for values in (mean, std)) or len(mean) != len(std):
        raise InputError(
            f"--mean has {len(mean)} values and --std {len(std)}, and the input of {model} has {channels} channels; give one for each"
        )
    if not all(np.isfinite(mean)) or not all(value > 0 and np.isfinite(1 / value) for value in std):
        raise InputError("--mean must be numbers and --std positive ones, on the scale from 0 to 1")
    taken = weights | {name for node in graph.node for name in [*node.input, *node.output]} | {inputs[0].name}
    shift, scale, moved, normal = (_free(name, taken) for name in ("shift", "scale", "shifted", "normalised"))
    view = [1, -1, *[1] * (len(shape) - 2)]
    for name, values in ((shift, [-value for value in mean]), (scale, [1 / value for value in std])):
        graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.float64).astype(np.float32).reshape(view), name))
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == inputs[0].name:
                node.input[index] = normal
    before = [helper.make_node("Add", [inputs[0].name, shift], [moved]), helper.make_node("Mul", [moved, scale], [normal])]
    nodes = [*before, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, onnx.ModelProto.SerializeToString(proto))


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
