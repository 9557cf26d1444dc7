"""Reads ONNX nodes, one after the other, by the table that the families of operators fill; what is not in it is refused by name."""

from __future__ import annotations

import onnx

from vsparse.graph.bfloat16 import BFloat16
from vsparse.graph.onnx_context import Activation, OnnxContext
from vsparse.graph.onnx_file import attributes, operator_schema
from vsparse.graph.operators import OPERATORS
from vsparse.graph.refusal import UnsupportedOperator
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

# What adds up many numbers; and what may stand in float32 between casts of a float16 file: that, and what rounds nothing and keeps order
# (docs/numerics.md, section 8.3).
SUMS = frozenset({"Conv", "Gemm", "MatMul", "AveragePool", "GlobalAveragePool", "ReduceMean"})
MOVES = frozenset({"Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
WIDE = SUMS | MOVES | {"Relu", "MaxPool"}


# Of files whose operators compute on integers; the same file in another format is read.
ON_INTEGERS = "quantise into QuantizeLinear and DequantizeLinear around standard operators (QuantFormat.QDQ in onnxruntime.quantization)"


def read_node(context: OnnxContext, node: onnx.NodeProto) -> None:
    """Reads one node into the context; raises UnsupportedOperator or InputError."""
    if node.domain not in ("", "ai.onnx"):
        way_out = f"; {ON_INTEGERS}" if node.op_type.startswith(("QLinear", "QGemm")) else ""
        raise UnsupportedOperator(f'comes from the operator set "{show(node.domain)}"; only the standard one is read{way_out}')
    operator = OPERATORS.get(node.op_type)
    if operator is None:
        substitute = SUBSTITUTES.get(node.op_type)
        if node.op_type.startswith("QLinear") or node.op_type.endswith("Integer"):
            raise UnsupportedOperator(f"computes on integers, which are read in another form; {ON_INTEGERS}")
        raise UnsupportedOperator("has no bounds here" + (f"; use {substitute}" if substitute else ""))
    schema = operator_schema(node.op_type, context.opset)
    if schema is None:
        raise UnsupportedOperator(f"is no operator of opset {context.opset}; export the model again")
    if not node.output or not node.output[0] or (any(node.output[1:]) and operator.outputs == "one"):
        raise UnsupportedOperator("must have one output")
    if operator.outputs == "all" and not all(node.output):
        raise UnsupportedOperator("has an output without a name; name it, even where nothing reads it")
    inputs = list(node.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    least, most = max(operator.least, schema.min_input), min(operator.most, schema.max_input)
    if not least <= len(inputs) <= most:
        raise UnsupportedOperator(f"has {len(inputs)} inputs; {least} to {most} are wanted in opset {context.opset}")
    if len(node.output) > schema.max_output:
        raise UnsupportedOperator(f"has {len(node.output)} outputs; in opset {context.opset} it makes at most {schema.max_output}")
    for name in inputs:
        if name and name not in context.values:
            raise UnsupportedOperator(
                f'reads "{show(name)}", which is no value here (the second output of a Dropout, or an optional one, is none)'
            )
        if isinstance(context.values.get(name), BFloat16) and node.op_type != "Cast":
            raise UnsupportedOperator(
                f'reads "{show(name)}", which is stored in bfloat16; convert it to float32 by a Cast first, or export it in float32'
            )
    activations = [value for name in inputs if isinstance(value := context.values.get(name), Activation)]
    formats = {value.format for value in activations}
    raw = any(value.raw for value in activations)
    context.wide = context.format == "fp16" and formats == {"fp32"} and node.op_type in (SUMS | MOVES if raw else WIDE)
    context.moves_input = raw and node.op_type in MOVES
    context.moves_rounded = node.op_type in MOVES and any(value.rounded for value in activations)
    context.sums_input |= raw and context.wide and node.op_type in SUMS
    if formats - {context.computes_in} and not operator.any_format:
        raise UnsupportedOperator(
            "mixes float32 with float16; convert the input to float16 first, the result to float32 last, and nothing else but what "
            "products and averages read, and what they make"
        )
    if node.op_type in SUMS:
        context.sums |= formats
    found = attributes(node, schema, operator.attributes)
    context.output = node.output[0]
    context.outputs = list(node.output)
    made = operator.read(context, [context.values[name] if name else None for name in inputs], inputs, found)
    context.values |= zip(context.outputs, made, strict=True) if isinstance(made, list) else {node.output[0]: made}
