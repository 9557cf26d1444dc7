"""The form of a file in which a runtime has nothing to fold (docs/numerics.md, section 10.3, rules 1 to 8 and 10)."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vsparse.graph.quantised import SMALLEST_BEHIND_CLIP
from vsparse.graph.shapes import show

MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
AFFINE = frozenset({"Conv", "Gemm", "MatMul"})
# What a runtime removes because it changes nothing: an operator and the constant with which it does not.
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}


def foldable(model: onnx.ModelProto) -> tuple[str, ...]:
    """Returns where a file is out of the form, one entry `rule N: operator "name"` for each operator; none where it is in the form."""
    return tuple(f'rule {rule}: {node.op_type} "{show(node.name or node.output[0])}"' for rule, node in _Form(model).broken())


class _Form:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = model.graph.node
        self.constants: dict[str, NDArray[np.generic]] = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        for node in self.nodes:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if attribute.name == "value":
                    self.constants[node.output[0]] = numpy_helper.to_array(attribute.t)
        narrow = (onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16)
        stored = {one.name for one in model.graph.initializer if one.data_type in narrow}
        self.widenings = {node.output[0] for node in self.nodes if node.op_type == "Cast" and stored.issuperset(node.input)}
        for node in self.nodes:  # moves of constants are constants; what they hold does not change
            moves = node.op_type in MOVES or node.output[0] in self.widenings
            if moves and all(name in self.constants for name in node.input):
                self.constants[node.output[0]] = self.constants[node.input[0]]
        self.made = {output: node for node in self.nodes for output in node.output}
        try:
            known = onnx.shape_inference.infer_shapes(model).graph
        except Exception:  # shape inference raises several unrelated types; without shapes every move counts as coming back
            known = onnx.GraphProto()
        values = [*known.value_info, *known.input, *known.output]
        self.shapes = {one.name: [(d.dim_value, d.dim_param) for d in one.type.tensor_type.shape.dim] for one in values}

    def broken(self) -> list[tuple[int, onnx.NodeProto]]:
        """Returns the rules that are broken, with the node at which each is."""
        return [(rule, node) for node in self.nodes for rule in sorted(self._rules(node))]

    def _rules(self, node: onnx.NodeProto) -> set[int]:
        broken = set()
        if node.op_type == "BatchNormalization":
            broken.add(1)
        stored = node.op_type in MOVES | {"Constant", "DequantizeLinear"} or node.output[0] in self.widenings
        if not stored and all(name in self.constants for name in node.input):
            return broken | {2}
        # Where it leaves a Dropout out, the runtime passes on the last input that a node makes, which should be the first.
        if node.op_type == "Dropout" and any(name in self.made and self.made[name].op_type != "Constant" for name in node.input[1:]):
            broken.add(2)
        if self._by_constant(node, "Mul") and self._behind_conv(self._operand(node)):
            broken.add(3)
        if self._by_constant(node, "Add"):
            before, _ = self._back(self._operand(node))
            with_bias = before is not None and before.op_type == "Conv" and len(before.input) > 2
            if with_bias or (before is not None and self._by_constant(before, "Add") and self._behind_conv(self._operand(before))):
                broken.add(4)
        if self._by_constant(node, "Mul", "Div") and self._kind_behind(self._operand(node)) == "MatMul":
            broken.add(5)
        if node.op_type == "MatMul" and self._by_constant(self._back(node.input[0])[0], "Mul", "Div"):
            broken.add(5)
        if node.op_type == "MaxPool" and self._kind_behind(node.input[0]) == "Pad":
            broken.add(6)
        if node.op_type in ("Add", "Sub", "Neg") and any(self._moved_sum(name) for name in node.input):
            broken.add(7)
        if node.op_type == "QuantizeLinear" and self._clip_before_tiny_steps(node):
            broken.add(8)
        if node.op_type in AFFINE and [self._made_by_dequantisation(name) for name in node.input[:2]] == [False, True]:
            broken.add(10)
        return broken

    def _made_by_dequantisation(self, name: str) -> bool:
        return name in self.made and self.made[name].op_type == "DequantizeLinear"

    def _back(self, name: str, through: frozenset[str] = MOVES) -> tuple[onnx.NodeProto | None, list[str]]:
        """Returns the operator behind moves, and the kinds of these."""
        passed: list[str] = []
        while (node := self.made.get(name)) is not None and (node.op_type in through or self._is_neutral(node) or node.op_type == "Cast"):
            if not node.input:
                break
            passed += [node.op_type] if node.op_type != "Cast" else []  # a runtime may keep float16 tensors in float32
            name = node.input[0] if node.input[0] not in self.constants else node.input[-1]
        return self.made.get(name), passed

    def _is_neutral(self, node: onnx.NodeProto) -> bool:
        neutral = NEUTRAL.get(node.op_type)
        return neutral is not None and any(bool(np.all(self.constants[name] == neutral)) for name in node.input if name in self.constants)

    def _operand(self, node: onnx.NodeProto) -> str:
        return str(next(name for name in node.input if name not in self.constants))

    def _by_constant(self, node: onnx.NodeProto | None, *kinds: str) -> bool:
        if node is None or node.op_type not in kinds:
            return False
        constant = sum(name in self.constants for name in node.input)
        return 0 < constant < len(node.input)

    def _kind_behind(self, name: str) -> str:
        node, _ = self._back(name)
        return "" if node is None else str(node.op_type)

    def _behind_conv(self, name: str) -> bool:
        node, _ = self._back(name)
        if node is not None and self._by_constant(node, "Add"):
            node, _ = self._back(self._operand(node))
        return node is not None and node.op_type == "Conv"

    def _moved_sum(self, name: str) -> bool:
        before, passed = self._back(name)
        if before is None or not passed or before.op_type not in AFFINE | {"Neg", "Add", "Sub"}:
            return False
        there = self.shapes.get(before.output[0])
        return "Transpose" in passed or there is None or there == self.shapes.get(name)

    def _clip_before_tiny_steps(self, node: onnx.NodeProto) -> bool:
        before, _ = self._back(node.input[0], MOVES | {"Slice", "MaxPool", "Relu"})
        scale = self.constants.get(node.input[1])
        return before is not None and before.op_type == "Clip" and scale is not None and float(np.min(scale)) < SMALLEST_BEHIND_CLIP
