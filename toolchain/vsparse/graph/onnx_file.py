"""Opens an ONNX file without trusting it: bytes to checked tensors, attributes and declared shapes, in bounded memory."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from vsparse.errors import InputError
from vsparse.graph.shapes import show

MAX_ONNX_BYTES = 512 * 2**20
MAX_NODES = 100_000
OPSETS = (7, 26)

# dtype on disk (little-endian) and the field that holds the values where raw_data is not used.
_TYPES: dict[int, tuple[str, str]] = {
    TensorProto.FLOAT: ("<f4", "float_data"),
    TensorProto.INT64: ("<i8", "int64_data"),
    TensorProto.INT32: ("<i4", "int32_data"),
    TensorProto.BOOL: ("|b1", "int32_data"),
    TensorProto.FLOAT16: ("<f2", "int32_data"),
    TensorProto.INT8: ("|i1", "int32_data"),
    TensorProto.UINT8: ("|u1", "int32_data"),
}


def open_model(data: bytes) -> tuple[onnx.ModelProto, int]:
    """Returns the parsed model and its opset; raises InputError for what is no ONNX model, too large, or of an unknown version."""
    if len(data) > MAX_ONNX_BYTES:
        raise InputError(f"it has {len(data)} bytes, more than the {MAX_ONNX_BYTES} that are read")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # DecodeError's class depends on the protobuf backend
        raise InputError("it is not an ONNX file, or is damaged (its protobuf cannot be decoded); export it again") from error
    if not model.graph.node or not model.graph.output:
        raise InputError("it holds no network (no nodes or no output); export it again")
    if len(model.graph.node) > MAX_NODES:
        raise InputError(f"it has {len(model.graph.node)} nodes, more than the {MAX_NODES} that are read")
    if model.functions:
        raise InputError("it holds local functions; export it with them inlined (onnx.inliner)")
    if model.graph.sparse_initializer:
        raise InputError("it holds sparse initializers; export it with dense ones")
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1 or not OPSETS[0] <= versions[0] <= OPSETS[1]:
        found = versions[0] if versions else "unknown"
        raise InputError(f"it uses opset {found}; export it with one from {OPSETS[0]} to {OPSETS[1]}")
    return model, int(versions[0])


def read_tensor(tensor: onnx.TensorProto, what: str) -> NDArray[Any]:
    """Returns a tensor's values as a new array (float32, float16, int64, int8, uint8 or bool; int32 becomes int64).

    The declared size is compared with the data before any memory is asked for. Raises InputError that names `what` for
    external data, other types, and sizes that do not match.
    """
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise InputError(f"{what} keeps its data in another file; save the model as one file (external data is not read)")
    if tensor.HasField("segment"):
        raise InputError(f"{what} is stored in segments; save the model again without them")
    if tensor.data_type not in _TYPES:
        kind = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else str(tensor.data_type)
        raise InputError(f"{what} has type {kind}; export the network in float32")
    dtype, data_field = _TYPES[tensor.data_type]
    shape = tuple(int(size) for size in tensor.dims)
    count = prod(shape)
    if any(size < 0 for size in shape) or count > MAX_ONNX_BYTES:
        raise InputError(f"{what} has the impossible shape {show(shape)}; export the model again")
    values = getattr(tensor, data_field)
    stored = len(tensor.raw_data) // np.dtype(dtype).itemsize if tensor.HasField("raw_data") else len(values)
    if stored != count or (tensor.HasField("raw_data") and len(tensor.raw_data) != count * np.dtype(dtype).itemsize):
        raise InputError(f"{what} has shape {show(shape)} but data for {stored} values; the file is damaged")
    if tensor.HasField("raw_data"):
        array = np.frombuffer(tensor.raw_data, dtype=dtype)
    elif dtype == "<f2":  # the field holds bit patterns
        array = np.array(values, dtype=np.uint16).view(np.float16)
    else:
        array = np.array(values, dtype=dtype)
    return array.astype(np.int64 if dtype in ("<i4", "<i8") else np.dtype(dtype).newbyteorder("=")).reshape(shape)


# The kind that each attribute has in ONNX's specification; a file where it has another is damaged.
_KINDS = {
    **dict.fromkeys(("strides", "pads", "dilations", "kernel_shape", "axes", "perm", "value_ints", "starts", "ends", "split"), "INTS"),
    **dict.fromkeys(("alpha", "beta", "epsilon", "momentum", "ratio", "value_float", "min", "max"), "FLOAT"),
    **dict.fromkeys(("auto_pad", "mode"), "STRING"),
    "value": "TENSOR",
    "value_floats": "FLOATS",
}


def attributes(node: onnx.NodeProto, known: set[str], what: str) -> dict[str, Any]:
    """Returns a node's attributes by name: numbers, lists of numbers, text or a TensorProto.

    Raises InputError for one that is not `known`, stands twice, or is of another kind than in ONNX's specification.
    """
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.name in found:
            raise InputError(f'{what} has the attribute "{show(attribute.name)}" twice')
        if attribute.name not in known:
            raise InputError(f'{what} has the attribute "{show(attribute.name)}", which has no meaning here; export without it')
        kind = _KINDS.get(attribute.name, "INT")
        if (node.op_type, attribute.name) == ("Pad", "value"):
            kind = "FLOAT"
        if attribute.type != onnx.AttributeProto.AttributeType.Value(kind):
            raise InputError(f'{what} has the attribute "{show(attribute.name)}" of another kind than {kind}; export the model again')
        value = onnx.helper.get_attribute_value(attribute)
        found[attribute.name] = value.decode(errors="replace") if kind == "STRING" else list(value) if kind in ("INTS", "FLOATS") else value
    return found


def declared_shape(value: onnx.ValueInfoProto, what: str) -> tuple[int | None, ...]:
    """Returns the declared dimensions, None for a symbolic or absent one; InputError when it is no float32 tensor with a shape."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type != TensorProto.FLOAT:
        raise InputError(f"{what} is not a float32 tensor; export the network in float32")
    if not tensor.HasField("shape"):
        raise InputError(f"{what} has no shape; export the network with the shape of its input")
    sizes = []
    for dim in tensor.shape.dim:
        size = int(dim.dim_value) if dim.HasField("dim_value") else None
        if size is not None and size < 1:
            raise InputError(f"{what} has a dimension of size {size}; every size must be at least 1")
        sizes.append(size)
    return tuple(sizes)
