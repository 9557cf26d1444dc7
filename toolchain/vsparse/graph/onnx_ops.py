"""The table of ONNX operators that are read, and the reader that applies it node by node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx

from vsparse.graph.onnx_compute_ops import ComputeOps
from vsparse.graph.onnx_file import attributes
from vsparse.graph.onnx_quant_ops import QuantOps
from vsparse.graph.onnx_values import Activation, Refused
from vsparse.graph.shapes import show

SUBSTITUTES = {
    "LeakyRelu": "Relu",
    "PRelu": "Relu",
    "Elu": "Relu",
    "Selu": "Relu",
    "Clip": "Relu",
    "Sigmoid": "Relu",
    "Tanh": "Relu",
    "Gelu": "Relu",
    "HardSwish": "Relu",
    "Softplus": "Relu",
    "Erf": "Relu",
    "Softmax": "the network without it, so that it ends with its logits",
    "LogSoftmax": "the network without it, so that it ends with its logits",
    "LayerNormalization": "batch normalisation",
    "InstanceNormalization": "batch normalisation",
    "Pad": "the pads of the next Conv",
    "ConstantOfShape": "an initializer",
    "Concat": "a residual Add",
    "ConvTranspose": "Conv",
    "ReduceSum": "ReduceMean or a Gemm",
    "Neg": "Mul by a constant",
}


class Reader(ComputeOps, QuantOps):
    """Reads nodes one after the other into its builder."""

    def read(self, node: onnx.NodeProto) -> None:
        """Adds one node; raises Refused or InputError."""
        if node.domain not in ("", "ai.onnx"):
            raise Refused(f'comes from the operator set "{show(node.domain)}"; only the standard one is read')
        operator = OPERATORS.get(node.op_type)
        if operator is None:
            substitute = SUBSTITUTES.get(node.op_type)
            raise Refused("has no bounds here" + (f"; use {substitute}" if substitute else ""))
        if not node.output or not node.output[0] or (any(node.output[1:]) and node.op_type != "Dropout"):
            raise Refused("must have one output")
        if node.output[0] in self.values:
            raise Refused(f'makes "{show(node.output[0])}", which exists already')
        inputs = list(node.input)
        while inputs and not inputs[-1]:
            inputs.pop()
        if not operator.least <= len(inputs) <= operator.most:
            raise Refused(f"has {len(inputs)} inputs; {operator.least} to {operator.most} are wanted")
        for name in inputs:
            if name and name not in self.values:
                raise Refused(f'reads "{show(name)}", which no earlier node makes; the graph has a cycle, a gap, or unsorted nodes')
        formats = {value.format for name in inputs if isinstance(value := self.values.get(name), Activation)}
        if formats - {self.format} and node.op_type not in ("Cast", "Identity"):
            raise Refused("mixes float32 with float16; convert the input to float16 first, the result to float32 last, and nothing else")
        found = attributes(node, operator.attributes, "it")
        self.output = node.output[0]
        self.values[self.output] = operator.method(self, [self.values[name] if name else None for name in inputs], inputs, found)


@dataclass(frozen=True)
class Operator:
    """How one ONNX operator is read: the method, how many inputs it may have, and the attributes it may carry."""

    method: Callable[[Reader, list[Any], list[str], dict[str, Any]], Any]
    least: int
    most: int
    attributes: set[str]
    window: ClassVar[set[str]] = {"kernel_shape", "strides", "pads", "dilations", "auto_pad"}


OPERATORS: dict[str, Operator] = {
    "Conv": Operator(Reader.conv, 2, 3, Operator.window | {"group"}),
    "Gemm": Operator(Reader.gemm, 2, 3, {"alpha", "beta", "transA", "transB"}),
    "MatMul": Operator(Reader.matmul, 2, 2, set()),
    "BatchNormalization": Operator(Reader.batch_norm, 5, 5, {"epsilon", "momentum", "training_mode", "spatial"}),
    "Relu": Operator(Reader.relu, 1, 1, set()),
    "Add": Operator(Reader.plus, 2, 2, set()),
    "Sub": Operator(Reader.minus, 2, 2, set()),
    "Mul": Operator(Reader.times, 2, 2, set()),
    "Div": Operator(Reader.divide, 2, 2, set()),
    "MaxPool": Operator(Reader.max_pool, 1, 1, Operator.window | {"ceil_mode", "storage_order"}),
    "AveragePool": Operator(Reader.average_pool, 1, 1, Operator.window | {"ceil_mode", "count_include_pad"}),
    "GlobalAveragePool": Operator(Reader.global_average, 1, 1, set()),
    "ReduceMean": Operator(Reader.mean, 1, 2, {"axes", "keepdims", "noop_with_empty_axes"}),
    "Flatten": Operator(Reader.flatten, 1, 1, {"axis"}),
    "Reshape": Operator(Reader.reshape, 2, 2, {"allowzero"}),
    "Squeeze": Operator(Reader.squeeze, 1, 2, {"axes"}),
    "Unsqueeze": Operator(Reader.unsqueeze, 1, 2, {"axes"}),
    "Transpose": Operator(Reader.transpose, 1, 1, {"perm"}),
    "Identity": Operator(Reader.identity, 1, 1, set()),
    "Dropout": Operator(Reader.dropout, 1, 3, {"ratio", "seed"}),
    "Constant": Operator(Reader.constant, 0, 0, {"value", "value_float", "value_floats", "value_int", "value_ints"}),
    "QuantizeLinear": Operator(Reader.quantise, 2, 3, {"axis"}),
    "DequantizeLinear": Operator(Reader.dequantise, 2, 3, {"axis"}),
    "Cast": Operator(Reader.cast, 1, 1, {"to"}),
    "Shape": Operator(Reader.shape_of, 1, 1, {"start", "end"}),
    "Gather": Operator(Reader.gather, 2, 2, {"axis"}),
    "Concat": Operator(Reader.concat, 1, 64, {"axis"}),
}
