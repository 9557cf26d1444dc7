"""The form of a file in which a runtime has nothing to fold (docs/numerics.md, section 10.3).

What a runtime folds is another network than the file's: a factor that goes into the weights of a convolution is rounded with them, and may
overflow there. Without a runtime at hand only the form of the file tells that nothing of it happens. Rules have the numbers of that page;
1, 2 and 9 hold for all that nodes.py reads, 8 is one of integers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse_check.op import Shape
from vsparse_check.refusal import known

MOVES = ("Transpose", "Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze", "Dropout")
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}  # what a runtime removes, with the constant that lets it
SUMS = ("Conv", "Gemm", "MatMul")


def check_form(model: onnx.ModelProto, shapes: Mapping[str, Shape], constants: Mapping[str, NDArray[Any]]) -> None:
    """Leaves a file unchecked that a runtime may execute as another network; `shapes` are those of its activations, without the batch."""
    form = Form(model, shapes, constants)
    for node in model.graph.node:
        if node.op_type in ("Mul", "Div") and form.constant(node):
            _check_factor(form, node)
        if node.op_type == "Add" and form.constant(node):
            _check_summand(form, node)
        if node.op_type == "MatMul":  # rule 5
            factor = form.made.get(form.behind(node.input[0])[0])
            scaled = factor is not None and factor.op_type in ("Mul", "Div") and form.constant(factor)
            known(not scaled, _folded(node, "reads a factor that may be applied elsewhere"))
        if node.op_type in SUMS and form.made_by(node.input[1], "DequantizeLinear"):  # rule 10
            direct = form.made_by(node.input[0], "DequantizeLinear")
            known(direct, _folded(node, "has a weight in integers, and may quantise what it reads"))
        if node.op_type == "MaxPool":  # rule 6
            known(form.kind_behind(node.input[0]) != "Pad", _folded(node, "reads a Pad, which may become its own padding"))
        if node.op_type in ("Add", "Sub", "Neg"):
            for name in form.activations(node):
                known(not form.undone(name), _folded(node, "reads a convolution or product through moves that may be undone"))


class Form:
    """Who makes what in a file, and what is read through moves of data."""

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, Shape], constants: Mapping[str, NDArray[Any]]) -> None:
        self.shapes, self.constants = shapes, constants
        self.made = {name: node for node in model.graph.node for name in node.output}

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """Returns the inputs of a node that are no constants."""
        return [name for name in node.input if name in self.shapes]

    def made_by(self, name: str, kind: str) -> bool:
        """Returns whether an operator of that kind makes a tensor itself, and no move of one."""
        return name in self.made and self.made[name].op_type == kind

    def constant(self, node: onnx.NodeProto) -> bool:
        """Returns whether one of two inputs is a constant."""
        return 0 < len(self.activations(node)) < len(node.input)

    def _moves(self, node: onnx.NodeProto) -> bool:
        if node.op_type in MOVES:
            return True
        values = [self.constants[name] for name in node.input if name in self.constants]
        return node.op_type in NEUTRAL and any(bool(np.all(value == NEUTRAL[node.op_type])) for value in values)

    def behind(self, name: str) -> tuple[str, list[str]]:
        """Returns the tensor that becomes `name` by moves alone, and the operators that these are."""
        passed = list[str]()
        while name in self.made and self._moves(self.made[name]) and self.activations(self.made[name]):
            passed.append(self.made[name].op_type)
            name = self.activations(self.made[name])[0]
        return name, passed

    def kind_behind(self, name: str) -> str:
        """Returns the operator behind moves, an empty string for the input."""
        source = self.behind(name)[0]
        return self.made[source].op_type if source in self.made else ""

    def behind_summand(self, name: str) -> tuple[str, bool]:
        """Returns the tensor behind moves and at most one addition of a constant, and whether there is one."""
        source = self.behind(name)[0]
        node = self.made.get(source)
        if node is None or node.op_type != "Add" or not self.constant(node):
            return source, False
        return self.behind(self.activations(node)[0])[0], True

    def undone(self, name: str) -> bool:
        """Returns whether `name` is a sum, or its opposite, behind moves that transpose or that come back to where they began (rule 7)."""
        source, passed = self.behind(name)
        summed = source in self.made and self.made[source].op_type in (*SUMS, "Neg", "Add", "Sub")
        return summed and bool(passed) and ("Transpose" in passed or self.shapes.get(source) == self.shapes[name])


def _check_factor(form: Form, node: onnx.NodeProto) -> None:
    """Rules 3 and 5: a factor behind a convolution goes into its weights, one at a product becomes a number of the fused product."""
    (read,) = form.activations(node)
    source, _ = form.behind_summand(read)
    conv = source in form.made and form.made[source].op_type == "Conv"
    known(node.op_type != "Mul" or not conv, _folded(node, "multiplies a convolution, whose weights may be multiplied"))
    known(form.kind_behind(read) != "MatMul", _folded(node, "multiplies a product, whose factor may be applied elsewhere"))


def _check_summand(form: Form, node: onnx.NodeProto) -> None:
    """Rule 4: a constant that is added behind a convolution goes into its bias, which is rounded again where there is one."""
    source, twice = form.behind_summand(form.activations(node)[0])
    conv = form.made.get(source)
    biased = conv is not None and conv.op_type == "Conv" and (twice or len([name for name in conv.input if name]) > 2)
    known(not biased, _folded(node, "adds a constant behind a convolution, whose bias may be changed"))


def _folded(node: onnx.NodeProto, how: str) -> str:
    return f'a runtime may fold "{node.name or node.output[0]:.60}" ({node.op_type}): it {how}; certify it under real, or rewrite it'
