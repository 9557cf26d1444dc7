"""ONNX's own shape inference, strict, against every shape that the reader computed."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from vsparse.errors import InputError
from vsparse.graph.ir import Shape
from vsparse.graph.shapes import show

# Initializers beyond this many elements hold weights, and no sizes that inference would look at.
SIZES = 1024
FAILED = re.compile(r"op_type:\s*(\w+)(?:, node name: ([^)]*))?\)")


def inferred(model: onnx.ModelProto, where: str) -> dict[str, onnx.TypeProto]:
    """Returns the type of every tensor that strict shape inference finds, weights apart; the file's own annotations are not believed.

    Raises InputError, with the node and its operator, where inference fails.
    """
    light = onnx.ModelProto()
    light.CopyFrom(_without_weights(model))
    try:
        done = onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises InferenceError, and others for what protobuf cannot hold
        raise InputError(f"{where} cannot be compared with its reading: {_failure(error, model)}; export it again") from error
    return {value.name: value.type for value in (*done.graph.input, *done.graph.value_info, *done.graph.output)}


def compare_shapes(
    model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto], shapes: Mapping[str, Shape], where: str, producers: Mapping[str, str]
) -> int:
    """Compares the shape, without the batch, that was read for each tensor with the inferred one; returns how many were compared.

    `producers` names the node that makes a tensor. Dimensions that inference leaves open are no agreement, and left to execution.
    Raises InputError that names the first node, in the file's order, whose output has another shape.
    """
    compared = 0
    order = [name for node in model.graph.node for name in node.output]
    for name in order:
        found = types.get(name)
        if name not in shapes or found is None or not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
            continue
        dims = found.tensor_type.shape.dim
        sizes = [int(dim.dim_value) if dim.HasField("dim_value") else None for dim in dims]
        read = shapes[name]
        same = len(sizes) == len(read) + 1 and all(size in (None, wanted) for size, wanted in zip(sizes[1:], read, strict=True))
        if not same:
            raise InputError(
                f"{where} reads differently from ONNX's shape inference at {producers[name]}: its output has the shape "
                f"{_shown(sizes)} there, and {['batch', *read]} as it is read; export it with explicit axes, pads and shapes"
            )
        compared += None not in sizes[1:]
    return compared


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with large initializers declared as inputs, so that nothing heavy is copied, and without annotations."""
    light = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            light.MergeFrom(type(model)(**{field.name: value}))
    graph, source = light.graph, model.graph
    graph.name = source.name or "network"
    graph.node.extend(source.node)
    graph.output.extend(source.output)
    declared = {value.name for value in source.input}
    graph.input.extend(source.input)
    for tensor in source.initializer:
        count = 1
        for size in tensor.dims:
            count *= size
        if count <= SIZES:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def _failure(error: Exception, model: onnx.ModelProto) -> str:
    """Words a failure of inference: the node where the text of the error names one, and its reason."""
    text = " ".join(str(error).split())
    found = FAILED.search(text)
    reason = text.rpartition("[ShapeInferenceError]")[2] or text.rpartition("[TypeInferenceError]")[2] or text
    if found is None:
        return f"ONNX's shape inference fails ({show(reason.strip())})"
    return f'ONNX\'s shape inference fails at node "{show(found[2] or "")}" ({show(found[1])}): {show(reason.strip())}'


def _shown(sizes: list[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in sizes) + "]"


def is_float(kind: onnx.TypeProto | None) -> bool:
    """Whether a tensor is of a floating type that an activation can have."""
    return kind is not None and kind.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
