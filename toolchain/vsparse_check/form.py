"""The form of a file in which a runtime has nothing to fold (docs/numerics.md, section 10.3).

What a runtime folds is another network than the file's: a factor that goes into the weights of a
convolution is rounded with them, and may overflow there. Without a runtime at hand only the form
of the file tells that nothing of it happens. Rules have the numbers of that section; 1, 2, 9 and
11 hold for all that is read (operators/), 8 is one of integers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse_check.arrays import Dims
from vsparse_check.refusal import known

MOVES = ("Transpose", "Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze", "Dropout")
# What a runtime may take away between two operators, if only its constants are neutral ones.
REMOVABLE = (*MOVES, "Slice", "Add", "Sub", "Mul", "Div")
# What a runtime removes as it changes nothing, with the constant that lets it.
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
SUMS = ("Conv", "Gemm", "MatMul")


class BehindMoves(NamedTuple):
    """A tensor that becomes another one by moves alone, and the operators that these are."""

    name: str
    moves: list[str]


class Producers:
    """Which node makes what in a file, and what is read through moves of data."""

    def __init__(
        self,
        model: onnx.ModelProto,
        shapes: Mapping[str, Dims],
        constants: Mapping[str, NDArray[Any]],
    ) -> None:
        """Takes a file, the shapes of its activations and the values of its constants, by name."""
        self.shapes, self.constants = shapes, constants
        self.made = {name: node for node in model.graph.node for name in node.output}

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """Returns the inputs of a node that are no constants."""
        return [name for name in node.input if name in self.shapes]

    def kind_of(self, name: str) -> str:
        """Returns the operator that makes a tensor itself, an empty string for the input."""
        return self.made[name].op_type if name in self.made else ""

    def has_constant(self, node: onnx.NodeProto) -> bool:
        """Returns whether one of two inputs is a constant."""
        return 0 < len(self.activations(node)) < len(node.input)

    def moves_only(self, node: onnx.NodeProto) -> bool:
        """Returns whether a node only moves data, or changes nothing."""
        if node.op_type in MOVES:
            return True
        values = [self.constants[name] for name in node.input if name in self.constants]
        neutral = NEUTRAL.get(node.op_type)
        return neutral is not None and any(bool(np.all(value == neutral)) for value in values)

    def behind(self, name: str) -> BehindMoves:
        """Returns the tensor that becomes `name` by moves alone."""
        passed = list[str]()
        while name in self.made:
            node = self.made[name]
            read = self.activations(node)
            if not read or not (self.moves_only(node) or node.op_type == "Cast"):
                break
            passed += [node.op_type] if node.op_type != "Cast" else []  # some runtimes keep float32
            name = read[0]
        return BehindMoves(name, passed)

    def kind_behind(self, name: str) -> str:
        """Returns the operator behind moves, an empty string for the input."""
        return self.kind_of(self.behind(name).name)

    def behind_summand(self, name: str) -> tuple[str, bool]:
        """Returns the tensor behind moves and at most one added constant, and whether one is."""
        source = self.behind(name).name
        node = self.made.get(source)
        if node is None or node.op_type != "Add" or not self.has_constant(node):
            return source, False
        return self.behind(self.activations(node)[0]).name, True

    def is_moved_sum(self, name: str) -> bool:
        """Returns whether `name` is a sum, or its opposite, behind moves that may be undone.

        Those that transpose, or that come back to the shape where they began (rule 7).
        """
        source, moves = self.behind(name)
        summed = self.kind_of(source) in (*SUMS, "Neg", "Add", "Sub")
        same_shape = self.shapes.get(source) == self.shapes[name]
        return summed and bool(moves) and ("Transpose" in moves or same_shape)


def check_form(
    model: onnx.ModelProto,
    shapes: Mapping[str, Dims],
    constants: Mapping[str, NDArray[Any]],
) -> None:
    """Leaves a file unchecked that a runtime may execute as another network.

    `shapes` are those of its activations, without the batch.
    """
    producers = Producers(model, shapes, constants)
    for node in model.graph.node:
        for check in CHECKS.get(node.op_type, ()):
            check(producers, node)


def check_kernels(model: onnx.ModelProto, contract: Mapping[str, str]) -> None:
    """Leaves a file unchecked that other kernels execute than the contract is about.

    Under `fp16-chain` a Gemm that transposes its weight, or adds anything but one number for each
    output, is executed in an order that it does not state. An addition to a depthwise convolution
    is fused, and wrong, where sums are kept in float16 (docs/numerics.md, section 8.2).
    """
    if contract["accumulate"] != "fp16":
        return
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        name = f'"{(node.name or node.output[0]):.60}" ({node.op_type})'
        known(
            node.op_type != "Gemm" or contract["order"] != "chain" or _is_plain(node, sizes),
            f"{name} transposes its weight, or adds another bias than one number for each output: "
            "the order of its sum is not the contract's",
        )
        known(
            node.op_type != "Add" or not any(_is_depthwise(one, made, sizes) for one in node.input),
            f"{name} adds to a depthwise convolution, which a runtime computes wrongly in float16",
        )


def _is_plain(node: onnx.NodeProto, sizes: Mapping[str, list[int]]) -> bool:
    """Returns whether a Gemm transposes nothing and adds nothing but a number for each output."""
    weight = sizes.get(node.input[1], [])
    stored = len(weight) == 2  # what makes it might be folded into transB
    outputs = weight[-1] if stored else 0
    biased = len(node.input) > 2 and node.input[2] != ""
    simple = not biased or sizes.get(node.input[2]) in ([outputs], [1, outputs])
    return stored and simple and not any(a.name == "transB" and a.i for a in node.attribute)


def _is_depthwise(
    name: str, made: Mapping[str, onnx.NodeProto], sizes: Mapping[str, list[int]]
) -> bool:
    """Returns whether a tensor is a convolution of single channels, but for what may be removed."""
    pending, seen = [name], set[str]()
    while pending:
        node = made.get(pending.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        single = node.op_type == "Conv" and sizes.get(node.input[1], [groups, 1])[:2] == [groups, 1]
        if single:
            return True
        if node.op_type in REMOVABLE:
            pending += node.input
    return False


def check_factor(producers: Producers, node: onnx.NodeProto) -> None:
    """Rules 3 and 5: a factor behind a convolution goes into its weights.

    One behind a product becomes a number of the fused product.
    """
    if not producers.has_constant(node):
        return
    (read,) = producers.activations(node)
    source, _ = producers.behind_summand(read)
    known(
        node.op_type != "Mul" or producers.kind_of(source) != "Conv",
        folded(node, "multiplies a convolution, whose weights may be multiplied"),
    )
    known(
        producers.kind_behind(read) != "MatMul",
        folded(node, "multiplies a product, whose factor may be applied elsewhere"),
    )


def check_summand(producers: Producers, node: onnx.NodeProto) -> None:
    """Rule 4: a constant that is added behind a convolution goes into its bias.

    It is rounded again where there is a bias, or another constant before.
    """
    if not producers.has_constant(node):
        return
    source, twice = producers.behind_summand(producers.activations(node)[0])
    conv = producers.made.get(source)
    if conv is None or conv.op_type != "Conv":
        return
    biased = twice or len([name for name in conv.input if name]) > 2
    known(
        not biased, folded(node, "adds a constant behind a convolution, whose bias may be changed")
    )


def check_product(producers: Producers, node: onnx.NodeProto) -> None:
    """Rule 5: no MatMul reads a factor."""
    factor = producers.made.get(producers.behind(node.input[0]).name)
    scales = factor is not None and factor.op_type in ("Mul", "Div")
    scaled = scales and factor is not None and producers.has_constant(factor)
    known(not scaled, folded(node, "reads a factor that may be applied elsewhere"))


def check_stored_weight(producers: Producers, node: onnx.NodeProto) -> None:
    """Rule 10: a sum with a weight in integers reads quantised values, not through moves."""
    stored = producers.kind_of(node.input[1]) == "DequantizeLinear"
    direct = producers.kind_of(node.input[0]) == "DequantizeLinear"
    known(
        not stored or direct,
        folded(node, "has a weight in integers, and may quantise what it reads"),
    )


def check_max_pool(producers: Producers, node: onnx.NodeProto) -> None:
    """Rule 6: no MaxPool reads a Pad."""
    padded = producers.kind_behind(node.input[0]) == "Pad"
    known(not padded, folded(node, "reads a Pad, which may become its own padding"))


def check_moved_sum(producers: Producers, node: onnx.NodeProto) -> None:
    """Rule 7: no addition reads a sum through moves that may be undone, and then fused with it."""
    for name in producers.activations(node):
        known(
            not producers.is_moved_sum(name),
            folded(node, "reads a convolution or product through moves that may be undone"),
        )


def folded(node: onnx.NodeProto, how: str) -> str:
    """Returns what to say of a node that a runtime may fold."""
    name = node.name or node.output[0]
    return (
        f'a runtime may fold "{name:.60}" ({node.op_type}): it {how}; '
        "certify it under real, or rewrite it"
    )


CHECKS = {
    "Mul": (check_factor,),
    "Div": (check_factor,),
    "Add": (check_summand, check_moved_sum),
    "Sub": (check_moved_sum,),
    "Neg": (check_moved_sum,),
    "MatMul": (check_product, check_stored_weight),
    "Conv": (check_stored_weight,),
    "Gemm": (check_stored_weight,),
    "MaxPool": (check_max_pool,),
}
