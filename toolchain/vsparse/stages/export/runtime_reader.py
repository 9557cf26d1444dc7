"""Reads a graph that ONNX Runtime saved, operator by operator, into fingerprints; unknown operators are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vsparse.graph.shapes import show
from vsparse.stages.export.runtime_hashes import Value
from vsparse.stages.export.runtime_moves import Moves
from vsparse.stages.export.runtime_reference import Reference
from vsparse.stages.export.runtime_sums import Attributes, Unknown, channels_first, channels_last

NCHWC, MICROSOFT = "com.microsoft.nchwc", "com.microsoft"
# Channels of a block of the vector kernels, by instruction set.
BLOCKS = (16, 8, 4, 32)


class RuntimeOperators(Moves):
    """The runtime's own operators: on integers, and on blocks of channels (NCHWc), whose padding channels are zeros here."""

    def __init__(self, reference: Reference, block: int) -> None:
        super().__init__(reference)
        self.block = block

    # Blocks of channels -----------------------------------------------------------------------------------------------

    def reorder_input(self, inputs: list[Any], a: Attributes) -> Value:
        x = self.value(inputs[0])
        if a.get("channels_last", 0):
            x = channels_first(x)
        missing = -x.shape[1] % self.block
        return x.moved(lambda array: np.pad(array, [(0, 0), (0, missing), *[(0, 0)] * (array.ndim - 2)]))

    def reorder_output(self, inputs: list[Any], a: Attributes) -> Value:
        x = self.value(inputs[0])
        if not x.shape[1] - self.block < a["channels"] <= x.shape[1]:
            raise Unknown("leaves out channels that are no padding")
        made = x.moved(lambda array: array[:, : a["channels"]])
        return channels_last(made) if a.get("channels_last", 0) else made

    def nchwc_conv(self, inputs: list[Any], a: Attributes) -> Value:
        weight = in_rows(self.numbers(inputs[1]), self.block, a.get("group", 1))
        return self.conv([inputs[0], weight, *inputs[2:]], a)

    # Integers ---------------------------------------------------------------------------------------------------------

    def qlinear_conv(self, inputs: list[Any], a: Attributes) -> Value:
        x = self.on_grid(*inputs[:3])
        if a.get("channels_last", 0):
            x = channels_first(x)
        weight = self.stored(*inputs[3:6], axis=0)
        bias = self.stored_bias(inputs[8] if len(inputs) > 8 else None, inputs[1], inputs[4])
        made = self.to_grid(self.convolved(x, weight, bias, None, a), *inputs[6:8])
        return channels_last(made) if a.get("channels_last", 0) else made

    def qgemm(self, inputs: list[Any], a: Attributes) -> Value:
        if a.get("alpha", 1.0) != 1 or a.get("transA", 0):
            raise Unknown("multiplies the product by a factor, or transposes its input")
        x, transposed = self.on_grid(*inputs[:3]), bool(a.get("transB", 0))
        weight = self.stored(*inputs[3:6], axis=0 if transposed else 1)
        bias = self.stored_bias(inputs[6] if len(inputs) > 6 else None, inputs[1], inputs[4])
        made = self._product(x, weight if transposed else weight.T, bias)
        return self.to_grid(made, *inputs[7:9]) if len(inputs) > 7 and inputs[7] is not None else made

    def qlinear_matmul(self, inputs: list[Any], a: Attributes) -> Value:
        x, weight = self.on_grid(*inputs[:3]), self.stored(*inputs[3:6], axis=1)
        return self.to_grid(self.matmul([x, weight], {}), *inputs[6:8])

    def matmul_integer_to_float(self, inputs: list[Any], a: Attributes) -> Value:
        zeros = [*inputs[4:], None, None, None][:3]
        x, weight = self.on_grid(inputs[0], inputs[2], zeros[0]), self.stored(inputs[1], inputs[3], zeros[1], axis=1)
        return self._product(x, weight.T, zeros[2])

    def qlinear_add(self, inputs: list[Any], a: Attributes) -> Value:
        x, y = self.on_grid(*inputs[:3]), self.on_grid(*inputs[3:6])
        return self.to_grid(self.add([x, y], {}), *inputs[6:8])

    def qlinear_average(self, inputs: list[Any], a: Attributes) -> Value:
        return self.to_grid(self.average_pool([self.on_grid(*inputs[:3])], a), *inputs[3:5])

    def qlinear_global_average(self, inputs: list[Any], a: Attributes) -> Value:
        return self.to_grid(self.global_average([self.on_grid(*inputs[:3])], a), *inputs[3:5])


def in_rows(weight: NDArray[np.float32], block: int, groups: int) -> NDArray[np.float32]:
    """Returns a weight [out, in/groups, h, w] whose memory is in blocks of channels in the usual order.

    [out/B, in/B, h, w, B in, B out] where the input is in blocks too, [out/B, in, h, w, B out] where it has few channels or each
    channel is a group of its own.
    """
    outputs, inputs, *kernel = weight.shape
    if outputs % block:
        raise Unknown("has a weight that is not in blocks of channels")
    if inputs < block or (groups > 1 and inputs == 1):
        split = weight.reshape(outputs // block, inputs, *kernel, block)
        return np.ascontiguousarray(split.transpose(0, 4, 1, 2, 3)).reshape(weight.shape)
    if inputs % block:
        raise Unknown("has a weight that is not in blocks of channels")
    split = weight.reshape(outputs // block, inputs // block, *kernel, block, block)
    return np.ascontiguousarray(split.transpose(0, 5, 1, 4, 2, 3)).reshape(weight.shape)


O = RuntimeOperators
OperatorReader = Callable[[Any, list[Any], Attributes], Any]

OPERATORS: dict[tuple[str, str], OperatorReader] = {
    ("", "Conv"): O.conv,
    ("", "Gemm"): O.gemm,
    ("", "MatMul"): O.matmul,
    ("", "Relu"): O.relu,
    ("", "Add"): O.add,
    ("", "Sub"): O.subtract,
    ("", "Mul"): O.multiply,
    ("", "Div"): O.divide,
    ("", "Neg"): O.negate,
    ("", "LeakyRelu"): O.leaky_relu,
    ("", "PRelu"): O.prelu,
    ("", "Clip"): O.clip,
    ("", "Less"): O.less,
    ("", "Where"): O.where,
    ("", "Sigmoid"): O.sigmoid,
    ("", "Tanh"): O.tanh,
    ("", "MaxPool"): O.max_pool,
    ("", "AveragePool"): O.average_pool,
    ("", "GlobalAveragePool"): O.global_average,
    ("", "ReduceSum"): O.reduce_sum,
    ("", "ReduceMean"): O.reduce_mean,
    ("", "Flatten"): O.flatten,
    ("", "Reshape"): O.reshape,
    ("", "Squeeze"): O.squeeze,
    ("", "Unsqueeze"): O.unsqueeze,
    ("", "Transpose"): O.transpose,
    ("", "Slice"): O.slice,
    ("", "Pad"): O.pad,
    ("", "Concat"): O.concat,
    ("", "Gather"): O.gather,
    ("", "Shape"): O.shape_of,
    ("", "Identity"): O.identity,
    ("", "Dropout"): O.dropout,
    ("", "Constant"): O.constant,
    ("", "Cast"): O.cast,
    ("", "QuantizeLinear"): O.quantise,
    ("", "DequantizeLinear"): O.dequantise,
    ("", "QLinearConv"): O.qlinear_conv,
    ("", "QLinearMatMul"): O.qlinear_matmul,
    (MICROSOFT, "QuantizeLinear"): O.quantise,
    (MICROSOFT, "DequantizeLinear"): O.dequantise,
    (MICROSOFT, "FusedConv"): O.conv,
    (MICROSOFT, "FusedGemm"): O.gemm,
    (MICROSOFT, "FusedMatMul"): O.matmul,
    (MICROSOFT, "NhwcMaxPool"): lambda o, inputs, a: o.max_pool(inputs, {**a, "channels_last": 1}),
    (MICROSOFT, "QLinearConv"): O.qlinear_conv,
    (MICROSOFT, "QGemm"): O.qgemm,
    (MICROSOFT, "QLinearAdd"): O.qlinear_add,
    (MICROSOFT, "QLinearAveragePool"): O.qlinear_average,
    (MICROSOFT, "QLinearGlobalAveragePool"): O.qlinear_global_average,
    (MICROSOFT, "MatMulIntegerToFloat"): O.matmul_integer_to_float,
    (NCHWC, "Conv"): O.nchwc_conv,
    (NCHWC, "MaxPool"): O.max_pool,
    (NCHWC, "AveragePool"): O.average_pool,
    (NCHWC, "GlobalAveragePool"): O.global_average,
    (NCHWC, "ReorderInput"): O.reorder_input,
    (NCHWC, "ReorderOutput"): O.reorder_output,
}


@dataclass
class Fingerprints:
    """What a runtime's graph computes: its output and all else, by name."""

    output: Any
    tensors: dict[str, Any]
    operators: RuntimeOperators
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def is_known(self, node: onnx.NodeProto) -> bool:
        """Returns whether the elements of a node's outputs are all elements of the file's network."""
        made = [self.tensors.get(name) for name in node.output]
        return all(self.operators.is_known(one.hashes) for one in made if isinstance(one, Value))


def needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Returns the nodes that the output is made of, each behind those that it reads; files need not have them in that order."""
    made = {name: node for node in graph.node for name in node.output if name}
    order: list[onnx.NodeProto] = []
    done: set[int] = set()
    todo = [(made[graph.output[0].name], False)] if graph.output[0].name in made else []
    while todo:
        node, ready = todo.pop()
        if id(node) in done:
            continue
        if ready:
            done.add(id(node))
            order.append(node)
        else:
            todo.append((node, True))
            todo += [(made[name], False) for name in node.input if name in made and id(made[name]) not in done]
    return order


def read_runtime_graph(model: onnx.ModelProto, reference: Reference, block: int) -> Fingerprints:
    """Evaluates an optimised graph on the input of `reference`.

    Raises Unknown, with the node's name in front, for an operator or a use of one that is not known.
    """
    graph = model.graph
    tensors: dict[str, Any] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors |= {one.name: reference.input for one in graph.input if one.name not in tensors}
    operators = RuntimeOperators(reference, block)
    nodes = needed(graph)
    for node in nodes:
        made = _made(node, tensors, operators)
        for name, value in zip(node.output, made, strict=False):
            if isinstance(value, Value) and not value.shape:
                raise Unknown(f"{called(node)} leaves no batch")
            tensors[name] = value
    return Fingerprints(tensors.get(graph.output[0].name), tensors, operators, nodes)


def _made(node: onnx.NodeProto, tensors: dict[str, Any], operators: RuntimeOperators) -> list[Any]:
    a = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        inputs = [tensors[name] if name else None for name in node.input]
        if (domain, node.op_type) == ("", "Split"):
            return operators.split(inputs, a, len(node.output))
        method = OPERATORS.get((domain, node.op_type))
        if method is None:
            raise Unknown("is an operator that is not known here")
        return [method(operators, inputs, a)]
    except Unknown as reason:
        raise Unknown(f"{called(node)} {reason}") from None
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # Operands that do not fit together in the way known here: whatever it computes, it cannot be told to be the file's.
        raise Unknown(f"{called(node)} cannot be followed ({type(error).__name__}: {show(error)})") from error


def called(node: onnx.NodeProto) -> str:
    """Returns how a sentence names a node of the runtime's graph."""
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    name = node.name or (node.output[0] if node.output else "")
    return f'its node "{show(name)}" ({show(kind)})'
