"""ONNX's own shape inference, strict, against every shape that the reader computed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod

import onnx
from onnx import TensorProto, helper

from vsparse.errors import InputError
from vsparse.graph.from_onnx import Reading
from vsparse.graph.shapes import show

# Initializers beyond this many elements hold weights, and no sizes that inference would look at.
SIZES = 1024
FORMAT = 8
FAILED = re.compile(r"op_type:\s*(\w+)(?:, node name: ([^)]*))?\)")


def inferred(model: onnx.ModelProto, where: str) -> dict[str, onnx.TypeProto]:
    """Returns the type of every tensor that strict shape inference finds, weights apart; the file's own annotations are not believed.

    Raises InputError, with the node and its operator, where inference fails.
    """
    try:
        done = onnx.shape_inference.infer_shapes(_without_weights(model), check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises InferenceError, and others for what protobuf cannot hold
        raise InputError(f"{where} cannot be compared with its reading: {_failure(error, model)}; export it again") from error
    return {value.name: value.type for value in (*done.graph.input, *done.graph.value_info, *done.graph.output)}


def compare_shapes(
    model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto], reading: Reading, where: str, producers: Mapping[str, str]
) -> int:
    """Compares the shape that was read for each tensor with the inferred one; returns how many were compared whole.

    `producers` words the node that makes a tensor. Dimensions that inference leaves open are no agreement, and left to execution.
    Raises InputError that names the first node, in the file's order, whose output has another shape.
    """
    compared = 0
    for name in (name for node in model.graph.node for name in node.output):
        found, read = types.get(name), reading.tensors.get(name)
        if read is None or found is None or not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
            continue
        sizes = [int(dim.dim_value) if dim.HasField("dim_value") else None for dim in found.tensor_type.shape.dim]
        pairs = list(zip(sizes, read.shape, strict=False))
        if len(sizes) != len(read.shape) or any(None not in (size, wanted) and size != wanted for size, wanted in pairs):
            raise InputError(
                f"{where} reads differently from ONNX's shape inference at {producers[name]}: its output has the shape "
                f"{_shown(sizes)} there, and {_shown(read.shape)} as it is read; export it with explicit axes, pads and shapes"
            )
        compared += all(size is not None or wanted is None for size, wanted in pairs)
    return compared


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model as inference takes it: without annotations, constants as initializers, large ones declared as inputs.

    Inference knows the standard operators by the empty domain alone, and old versions of Constant have fewer types than runtimes accept;
    none of this changes what a file computes.
    """
    # From version 4 of the format on, initializers need not be inputs, and those that are none are constants.
    light = onnx.ModelProto(ir_version=max(FORMAT, model.ir_version))
    for entry in model.opset_import:
        light.opset_import.add(domain="" if entry.domain == "ai.onnx" else entry.domain, version=entry.version)
    graph, source = light.graph, model.graph
    graph.name = source.name or "network"
    graph.output.extend(source.output)
    tensors = {tensor.name: tensor for tensor in source.initializer}
    for node in source.node:
        value = next((one.t for one in node.attribute if one.name == "value" and one.HasField("t")), None)
        if node.op_type == "Constant" and value is not None:
            tensors[node.output[0]] = value
        else:
            graph.node.append(node)
            graph.node[-1].domain = "" if node.domain == "ai.onnx" else node.domain
    graph.input.extend(value for value in source.input if value.name not in tensors)
    for name, tensor in tensors.items():
        if prod(tensor.dims) <= SIZES:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = name
        else:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    return light


def _failure(error: Exception, model: onnx.ModelProto) -> str:
    """Words a failure of inference: the node where the text of the error names one, and its reason."""
    text = " ".join(str(error).split())
    found = FAILED.search(text)
    reason = text.rpartition("[ShapeInferenceError]")[2] or text.rpartition("[TypeInferenceError]")[2] or text
    if found is None:
        return f"ONNX's shape inference fails ({show(reason.strip())})"
    return f'ONNX\'s shape inference fails at node "{show(found[2] or "")}" ({show(found[1])}): {show(reason.strip())}'


def _shown(sizes: Sequence[int | None]) -> str:
    return "[" + ", ".join("batch" if size is None else str(size) for size in sizes) + "]"


def is_float(kind: onnx.TypeProto | None) -> bool:
    """Whether a tensor is of a floating type that an activation can have."""
    return kind is not None and kind.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
