"""The table of ONNX operators that are read, and the reader that applies it node by node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx

from vsparse.graph.onnx_compute_ops import ComputeOps
from vsparse.graph.onnx_file import attributes, operator_schema
from vsparse.graph.onnx_quant_ops import QuantOps
from vsparse.graph.onnx_values import Activation, Refused
from vsparse.graph.shapes import show

SUBSTITUTES = {
    "Elu": "Relu",
    "Selu": "Relu",
    "HardSigmoid": "Clip",
    "Gelu": "Relu",
    "HardSwish": "Relu",
    "Mish": "Relu",
    "Softplus": "Relu",
    "Erf": "Relu",
    "Softmax": "the network without it, so that it ends with its logits",
    "LogSoftmax": "the network without it, so that it ends with its logits",
    "LayerNormalization": "batch normalisation",
    "InstanceNormalization": "batch normalisation",
    "ConstantOfShape": "an initializer",
    "ConvTranspose": "Conv",
    "Upsample": "Conv with a stride where the map is made smaller",
    "Resize": "Conv with a stride where the map is made smaller",
    "ReduceMax": "MaxPool",
    "Max": "Relu: max(a, b) = a + relu(b - a)",
    "Min": "Relu: min(a, b) = a - relu(a - b)",
    "Pow": "Mul by a constant",
    "Sqrt": "a constant",
    "Exp": "Sigmoid",
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
        schema = operator_schema(node.op_type, self.opset)
        if schema is None:
            raise Refused(f"is no operator of opset {self.opset}; export the model again")
        if not node.output or not node.output[0] or (any(node.output[1:]) and node.op_type not in ("Dropout", "Split")):
            raise Refused("must have one output")
        if node.op_type == "Split" and not all(node.output):
            raise Refused("has an output without a name; name it, even where nothing reads it")
        inputs = list(node.input)
        while inputs and not inputs[-1]:
            inputs.pop()
        least, most = max(operator.least, schema.min_input), min(operator.most, schema.max_input)
        if not least <= len(inputs) <= most:
            raise Refused(f"has {len(inputs)} inputs; {least} to {most} are wanted in opset {self.opset}")
        if len(node.output) > schema.max_output:
            raise Refused(f"has {len(node.output)} outputs; in opset {self.opset} it makes at most {schema.max_output}")
        for name in inputs:
            if name and name not in self.values:
                raise Refused(f'reads "{show(name)}", which is no value here (the second output of a Dropout, or an optional one, is none)')
        formats = {value.format for name in inputs if isinstance(value := self.values.get(name), Activation)}
        if formats - {self.format} and node.op_type not in ("Cast", "Identity"):
            raise Refused("mixes float32 with float16; convert the input to float16 first, the result to float32 last, and nothing else")
        found = attributes(node, schema, operator.attributes)
        self.output = node.output[0]
        self.outputs = list(node.output)
        made = operator.method(self, [self.values[name] if name else None for name in inputs], inputs, found)
        self.values |= zip(self.outputs, made, strict=True) if isinstance(made, list) else {node.output[0]: made}


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
    "LeakyRelu": Operator(Reader.leaky_relu, 1, 1, {"alpha"}),
    "PRelu": Operator(Reader.prelu, 2, 2, set()),
    "Clip": Operator(Reader.clip, 1, 3, {"min", "max"}),
    "Sigmoid": Operator(Reader.sigmoid, 1, 1, set()),
    "Tanh": Operator(Reader.tanh, 1, 1, set()),
    "Neg": Operator(Reader.negate, 1, 1, set()),
    "ReduceSum": Operator(Reader.reduce_sum, 1, 2, {"axes", "keepdims", "noop_with_empty_axes"}),
    "ReduceMean": Operator(Reader.mean, 1, 2, {"axes", "keepdims", "noop_with_empty_axes"}),
    "Flatten": Operator(Reader.flatten, 1, 1, {"axis"}),
    "Reshape": Operator(Reader.reshape, 2, 2, {"allowzero"}),
    "Squeeze": Operator(Reader.squeeze, 1, 2, {"axes"}),
    "Unsqueeze": Operator(Reader.unsqueeze, 1, 2, {"axes"}),
    "Transpose": Operator(Reader.transpose, 1, 1, {"perm"}),
    "Slice": Operator(Reader.slice, 1, 5, {"starts", "ends", "axes"}),
    "Split": Operator(Reader.split, 1, 2, {"axis", "split", "num_outputs"}),
    "Pad": Operator(Reader.pad, 1, 4, {"mode", "pads", "value"}),
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
