"""The form of docs/numerics.md in which nothing can be folded, written down once more for tests."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

MOVES = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
AFFINE = {"Conv", "Gemm", "MatMul"}


def reasons(data: bytes) -> list[int]:
    """Returns the numbers of the rules that a file breaks."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    shapes = {one.name: [d.dim_value for d in one.type.tensor_type.shape.dim] for one in [*graph.value_info, *graph.input, *graph.output]}

    def nothing(node: onnx.NodeProto) -> bool:
        neutral = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}.get(node.op_type)
        return neutral is not None and any(name in constants and (constants[name] == neutral).all() for name in node.input)

    def back(name: str, through: set[str] = MOVES) -> tuple[onnx.NodeProto | None, list[str]]:
        """The operator behind moves, and the moves."""
        passed: list[str] = []
        while (node := made.get(name)) is not None and (node.op_type in through or nothing(node)):
            passed.append(node.op_type)
            name = node.input[0] if node.input[0] not in constants else node.input[1]
        return made.get(name), passed

    def operand(node: onnx.NodeProto) -> str:
        return next(name for name in node.input if name not in constants)

    def by_constant(node: onnx.NodeProto | None, *kinds: str) -> bool:
        return node is not None and node.op_type in kinds and any(name in constants for name in node.input)

    def behind_conv(name: str) -> bool:
        node, _ = back(name)
        if by_constant(node, "Add"):
            node, _ = back(operand(node))
        return node is not None and node.op_type == "Conv"

    broken = []
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            broken.append(1)
        if node.op_type not in MOVES | {"Constant", "DequantizeLinear"} and all(name in constants for name in node.input):
            broken.append(2)
        if by_constant(node, "Mul") and behind_conv(operand(node)):
            broken.append(3)
        if by_constant(node, "Add"):
            before, _ = back(operand(node))
            conv_with_bias = before is not None and before.op_type == "Conv" and len(before.input) > 2
            if conv_with_bias or (by_constant(before, "Add") and behind_conv(operand(before))):
                broken.append(4)
        if by_constant(node, "Mul", "Div"):
            before, _ = back(operand(node))
            if before is not None and before.op_type == "MatMul":
                broken.append(5)
        if node.op_type == "MatMul" and by_constant(back(node.input[0])[0], "Mul", "Div"):
            broken.append(5)
        if node.op_type == "MaxPool":
            before, _ = back(node.input[0])
            if before is not None and before.op_type == "Pad":
                broken.append(6)
        if node.op_type in ("Add", "Sub", "Neg"):
            for name in node.input:
                before, passed = back(name)
                sums = {*AFFINE, "Neg", "Add", "Sub"}
                if before is None or before.op_type not in sums or not passed or name in constants:
                    continue
                if "Transpose" in passed or shapes.get(before.output[0]) == shapes.get(name):
                    broken.append(7)
        if node.op_type == "QuantizeLinear":
            before, _ = back(node.input[0], MOVES | {"Slice", "MaxPool"})
            if before is not None and before.op_type in ("Clip", "Relu") and float(np.max(constants[node.input[1]])) < 2.0**-20:
                broken.append(8)
    return sorted(set(broken))
