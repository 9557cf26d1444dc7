"""Opens an ONNX file without trusting it: bytes to checked tensors, attributes and declared shapes, in bounded memory."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from vsparse.errors import InputError
from vsparse.graph.bfloat16 import BFloat16
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
    TensorProto.BFLOAT16: ("<u2", "int32_data"),
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
        raise InputError(
            'it holds local functions; save it with them inlined: onnx.save(onnx.inliner.inline_local_functions(onnx.load("model.onnx")), '
            '"inlined.onnx")'
        )
    if model.graph.sparse_initializer:
        raise InputError("it holds sparse initializers; export it with dense ones")
    versions = sorted({int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")})
    if len(versions) > 1:
        raise InputError(
            f"it lists the standard operator set more than once, with the versions {', '.join(map(str, versions))}; keep one entry of its "
            "opset_import, the one that its nodes were written for"
        )
    if not versions:
        raise InputError(f"it does not say its opset; export it with one from {OPSETS[0]} to {OPSETS[1]}")
    if not OPSETS[0] <= versions[0] <= OPSETS[1]:
        raise InputError(f"it uses opset {versions[0]}; export it with one from {OPSETS[0]} to {OPSETS[1]}")
    return model, versions[0]


def read_tensor(tensor: onnx.TensorProto, what: str) -> NDArray[Any] | BFloat16:
    """Returns a tensor's values as a new array (float32, float16, int64, int8, uint8 or bool; int32 becomes int64), or as BFloat16.

    The declared size is compared with the data before any memory is asked for. Raises InputError that names `what` for
    external data, other types, and sizes that do not match.
    """
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise InputError(
            f"{what} keeps its data in another file, which is not read; save the model as one file: torch.onnx.export(..., "
            'external_data=False), or onnx.save(onnx.load("model.onnx"), "one.onnx")'
        )
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
    elif dtype in ("<f2", "<u2"):  # the field holds bit patterns
        bits = np.array(values, dtype=np.int64)
        if ((bits < 0) | (bits >= 2**16)).any():
            raise InputError(f"{what} holds numbers that are no patterns of 16 bits; the file is damaged")
        array = bits.astype(np.uint16).view(dtype)
    else:
        array = np.array(values, dtype=dtype)
    if tensor.data_type == TensorProto.BFLOAT16:
        return BFloat16(array.astype(np.uint16).reshape(shape))
    return array.astype(np.int64 if dtype in ("<i4", "<i8") else np.dtype(dtype).newbyteorder("=")).reshape(shape)


# Attributes that say yes or no; runtimes take other numbers for the one or for the other.
_FLAGS = {"keepdims", "noop_with_empty_axes", "transA", "transB", "ceil_mode", "count_include_pad", "allowzero", "training_mode", "spatial"}


@cache
def operator_schema(kind: str, opset: int) -> onnx.defs.OpSchema | None:
    """Returns ONNX's own description of a standard operator as it is in an opset; None where that opset has no such operator."""
    try:
        schema = onnx.defs.get_schema(kind, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def label(node: onnx.NodeProto, index: int | str = "") -> str:
    """Returns how a node is named in errors: by its name, its first output, or where it stands."""
    return f'node "{show(node.name or (node.output[0] if node.output else index))}" ({show(node.op_type)})'


def attributes(node: onnx.NodeProto, schema: onnx.defs.OpSchema, known: Collection[str]) -> dict[str, Any]:
    """Returns a node's attributes by name: numbers, lists of numbers, text or a TensorProto.

    Raises InputError for one that the operator does not have in this opset (`schema`), that is not `known` here, stands twice, or is of
    another kind than in ONNX's specification; and for one that is required and missing.
    """
    found: dict[str, Any] = {}
    what = label(node)
    for attribute in node.attribute:
        name = attribute.name
        if name in found:
            raise InputError(f'{what} has the attribute "{show(name)}" twice')
        if name not in schema.attributes:
            raise InputError(
                f'{what} has the attribute "{show(name)}", which {schema.name} does not have in this opset (its version is '
                f"{schema.since_version}); export the model again, without it or with another opset"
            )
        if name not in known:
            raise InputError(f'{what} has the attribute "{show(name)}", which has no meaning here; export without it')
        kind = schema.attributes[name].type.name
        if attribute.ref_attr_name or attribute.type != onnx.AttributeProto.AttributeType.Value(kind):
            raise InputError(f'{what} has the attribute "{show(name)}" of another kind than {kind}; export the model again')
        value = onnx.helper.get_attribute_value(attribute)
        if name in _FLAGS and value not in (0, 1):
            raise InputError(f'{what} has the attribute "{show(name)}" of {value}; 0 or 1 is wanted')
        found[name] = value.decode(errors="replace") if kind == "STRING" else list(value) if kind in ("INTS", "FLOATS") else value
    missing = [name for name, attribute in schema.attributes.items() if attribute.required and name not in found]
    if missing:
        raise InputError(f'{what} lacks the attribute "{missing[0]}"; export the model again')
    return found


def in_order(nodes: Sequence[onnx.NodeProto], given: Collection[str]) -> list[onnx.NodeProto]:
    """Returns the nodes such that each comes after those it reads from, in the file's order where that is one already.

    ONNX wants files to be sorted; runtimes sort those that are not, so that all of them are read alike. `given` are the names of the
    input and the initializers. Raises InputError that names a tensor that no node makes, or one of a cycle.
    """
    maker: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in maker or name in given:
                raise InputError(f'{label(node, i)} makes "{show(name)}", which exists already; give each tensor a name of its own')
            maker[name] = i
    readers: dict[int, list[int]] = {}
    waiting = [0] * len(nodes)
    for i, node in enumerate(nodes):
        for name in {name for name in node.input if name and name not in given}:
            if name not in maker:
                raise InputError(f'{label(node, i)} reads "{show(name)}", which no node makes')
            readers.setdefault(maker[name], []).append(i)
            waiting[i] += 1
    ready = [i for i, count in enumerate(waiting) if not count]
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(nodes[i])
        for reader in readers.get(i, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        node = nodes[next(i for i, count in enumerate(waiting) if count)]
        raise InputError(f"{label(node)} depends on its own output: the graph has a cycle")
    return order


def standardise(model: onnx.ModelProto) -> None:
    """Writes a model, in place, as ONNX's own tools want it and runtimes do not care: nodes sorted, the standard operators' domain as "".

    Strict shape inference fails on other spellings. Raises InputError as `in_order` does.
    """
    nodes = in_order(model.graph.node, {value.name for value in (*model.graph.input, *model.graph.initializer)})
    sets = {("" if entry.domain == "ai.onnx" else entry.domain): entry.version for entry in model.opset_import}
    del model.graph.node[:], model.opset_import[:]
    for node in nodes:
        model.graph.node.add().CopyFrom(node)
        if node.domain == "ai.onnx":
            model.graph.node[-1].domain = ""
    for domain, version in sets.items():
        model.opset_import.add(domain=domain, version=version)


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
