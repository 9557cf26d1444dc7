"""Reads an ONNX file into a graph; what the graph cannot represent is refused by node and operator."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import onnx

from vsparse.errors import InputError
from vsparse.file_kind import no_network
from vsparse.files import read_bytes
from vsparse.graph.core import Graph
from vsparse.graph.onnx_context import Activation, OnnxContext
from vsparse.graph.onnx_file import MAX_ONNX_BYTES, declared_shape, in_order, label, open_model, read_tensor
from vsparse.graph.onnx_reader import read_node
from vsparse.graph.operators.affine import Affine
from vsparse.graph.operators.move import Move
from vsparse.graph.operators.reshape import Reshape
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.shapes import MAX_ELEMENTS, show
from vsparse.graph.validate import validate


@dataclass(frozen=True)
class Tensor:
    """How one tensor of a file was read: the graph's activation with its values, and its whole shape, None for a symbolic batch.

    `activation` is None for constants, computed shapes, integers between QuantizeLinear and DequantizeLinear, and tensors that the
    graph does not compute (the output does not need them, or a Pad that became a convolution's own padding).
    """

    activation: str | None
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Reading:
    """What was read of a file: the graph, each of the file's tensors by its name, and the declared batch (1, or None: symbolic).

    An activation of the graph is [batch, *shape]; it has the elements of the tensor in the same (row-major) order, but not always the
    same shape: a file with the batch 1 may drop that dimension and bring it back. Compare `value.reshape(tensor's shape)`.
    """

    graph: Graph
    batch: int | None
    tensors: dict[str, Tensor] = field(default_factory=dict)


def from_onnx(source: Path | str | bytes, name: str = "") -> Graph:
    """Returns the graph of `read_onnx`."""
    return read_onnx(source, name).graph


def read_onnx(source: Path | str | bytes, name: str = "") -> Reading:
    """Returns the network of an ONNX model, given as a path or as its bytes (`name` then stands in errors); nothing in it is executed or
    trusted.

    The model must have one float32 input [batch, ...] with fixed other dimensions and one output [batch, classes]. Operators
    become nodes one to one, so that the graph is what a device executes: MatMul and a following Add stay a Gemm without bias and
    an AddConstant, with a rounding each; BatchNormalization stays a BatchNorm node, which exporters should have folded.
    Parameters keep the initializers' names; one that is read twice is given a second name (the array is shared). Quantised models
    (QuantizeLinear, DequantizeLinear) and float16 ones are read as docs/numerics.md, sections 7.1 and 8, says.

    Raises InputError, in one sentence that names the node, its operator and where there is one a substitute, for files
    that are damaged, larger than `onnx_file.MAX_ONNX_BYTES`, have external data, NaN or infinite weights, or anything the
    graph cannot say. Sizes are compared with the data before memory is asked for.
    """
    where = f"model {name}" if name else "the model" if isinstance(source, bytes) else f"model {source}"
    data = source if isinstance(source, bytes) else read_bytes(Path(source), "model", MAX_ONNX_BYTES)
    try:
        reading = _read(*open_model(data))
        validate(reading.graph)
        return reading
    except InputError as error:
        other = "" if isinstance(source, bytes) else no_network(Path(source))
        raise InputError(f"{where} {other or f'cannot be read: {error}'}") from error
    except Exception as error:
        # Defence in depth: every known way to damage a file is named above; an unforeseen one must still end in a sentence.
        raise InputError(f"{where} cannot be read: it is damaged ({type(error).__name__}: {show(error)}); export it again") from error


def _read(model: onnx.ModelProto, opset: int) -> Reading:
    graph = model.graph
    constants = {}
    for tensor in graph.initializer:
        if tensor.name in constants:
            raise InputError(f'two initializers have the name "{show(tensor.name)}"')
        constants[tensor.name] = read_tensor(tensor, f'initializer "{show(tensor.name)}"')
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise InputError(f"it has {len(inputs)} input(s) and {len(graph.output)} output(s); a network with one of each is wanted")
    context = OnnxContext(inputs[0].name, *_input_shape(inputs[0]), opset, "fp16" if _half(graph) else "fp32")
    context.values |= constants
    context.foldable += 2 * sum(value.size for value in constants.values())
    for index, node in enumerate(in_order(graph.node, context.values)):
        try:
            read_node(context, node)
        except UnsupportedOperator as refusal:
            raise InputError(f"{label(node, index)} {refusal}") from None
    _require_one_value(context, graph)
    network = _finish(context, graph.output[0])
    computed = {network.input, *(node.name for node in network.nodes)}
    tensors = {}
    for name, value in context.values.items():
        shape = context.whole_shape(value)
        if shape is not None:
            read = value.name if isinstance(value, Activation) and value.name in computed else None
            tensors[name] = Tensor(read, shape)
    return Reading(network, context.batch, tensors)


def _half(graph: onnx.GraphProto) -> bool:
    """Returns whether a file computes with float16 numbers: it stores some, or converts to them."""
    half = onnx.TensorProto.FLOAT16
    casts = (a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to")
    return any(tensor.data_type == half for tensor in graph.initializer) or half in casts


def _require_one_value(context: OnnxContext, graph: onnx.GraphProto) -> None:
    """Raises InputError where a float16 file has a value in float32 that is not read once: bounds take an activation for one number,
    whoever reads it, and one reader may round it to float16 where another does not."""
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    if context.sums_input and context.rounds_input:
        raise InputError("the input is read both as it is and rounded to float16; convert it once, and let all read that, or never")
    for name, value in context.values.items():
        unrounded = isinstance(value, Activation) and value.format == "fp32" and not value.rounded and not value.raw
        if context.format == "fp16" and unrounded and readers[name] > 1:
            raise InputError(
                f'"{show(name)}" is in float32 in a network of float16 numbers, and is read {readers[name]} times; convert it to float16 '
                "once, and let all read that"
            )


def _input_shape(value: onnx.ValueInfoProto) -> tuple[tuple[int, ...], int | None]:
    what = f'the input "{show(value.name)}"'
    sizes = declared_shape(value, what)
    if len(sizes) < 2:
        raise InputError(f"{what} has {len(sizes)} dimension(s); [batch, ...] is wanted")
    batch, shape = sizes[0], tuple(size for size in sizes[1:] if size is not None)
    if len(shape) != len(sizes) - 1:
        raise InputError(f"{what} has a symbolic dimension other than the batch; export the network with a fixed input size")
    if batch not in (None, 1):
        raise InputError(f"{what} has a fixed batch of {batch}; export the network with batch 1 or a symbolic batch")
    if prod(shape) > MAX_ELEMENTS:
        raise InputError(f"{what} has {prod(shape)} elements, more than the {MAX_ELEMENTS} allowed")
    return shape, batch


def _finish(context: OnnxContext, value: onnx.ValueInfoProto) -> Graph:
    what = f'the output "{show(value.name)}"'
    result = context.values.get(value.name)
    if not isinstance(result, Activation):
        raise InputError(f"{what} is not computed from the input")
    shape = context.shape(result)
    if len(shape) != 1 or not result.batched:
        raise InputError(f"{what} has shape {list(context.whole(result))}; a classifier's [batch, classes] is wanted, so flatten it")
    if value.type.tensor_type.HasField("shape"):
        declared = declared_shape(value, what)
        if len(declared) != 2 or declared[1] not in (None, *shape):
            raise InputError(f"{what} is declared as {show(declared)} but is computed as [batch, {shape[0]}]")
    if result.format != "fp32":
        raise InputError(f"{what} is float16; convert it to float32 last")
    network = context.builder.graph(result.name)
    if context.format == "fp32" or context.sums != {"fp32"}:
        return replace(network, storage=context.format)
    unrounded = {network.input} if context.sums_input else set()
    name = result.name
    while name != network.input and isinstance(node := network.node(name), Move | Reshape) and len(node.inputs) == 1:
        name = node.inputs[0]
    if not result.rounded and name != network.input and isinstance(network.node(name), Affine):
        unrounded.add(name)
    return replace(network, storage=context.format, wide_sums=True, unrounded=frozenset(unrounded))
