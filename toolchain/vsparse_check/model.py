"""The network as it is read from an ONNX file; what is not understood exactly is refused.

Convolutions, fully connected layers, average pools and operations with a constant are linear
operators z = W·x + b. QuantizeLinear and DequantizeLinear of an activation are one operator, whose
values are scale·k exactly. What only gives an activation another shape vanishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import onnx

from vsparse_check.arrays import Dims
from vsparse_check.casts import typed_sums
from vsparse_check.limits import ResourceBudget
from vsparse_check.op import Op, QuantisedGrid
from vsparse_check.operators import ONNX, RULES
from vsparse_check.refusal import Refuted, need
from vsparse_check.tensors import MAX_SIZE, OnnxNode, ShapedActivation, TensorTable, possible

OPSETS = range(13, 27)
MAX_NODES = 1000
MAX_TOTAL = 2**25  # elements of all activations
ROWS = 8  # arrays of rows of margins, a row for each pair of classes, that are held at once


class Model:
    """Operators in order of execution from one input to one output, and all parameters.

    `input`, `output`: the names of activations, `shape` that of the input without the batch;
    `ops` in order; `parameters` and `used` (those that sums read); `half`: whether the file
    converts to float16, `wide_sums` whether it then types its sums as float32, and `unrounded`
    which of the input and the sum that is the output it leaves in float32; `grids`: what
    activations are quantised to; `made`: operators by what they make; `kinked_readers`: by
    activation, the operators that read it and are not linear; `largest`: the most numbers that one
    row of any operator takes.
    """

    def __init__(self, model: onnx.ModelProto, budget: ResourceBudget | None = None) -> None:
        """Reads a file; raises Refuted, which names the first thing that is not understood."""
        self.budget = budget or ResourceBudget()
        graph = model.graph
        _check_file(model)
        self.tensors = TensorTable(list(graph.initializer), self.budget)
        self.parameters, self.used = self.tensors.parameters, self.tensors.used
        self.shape = self._read_input(graph)
        self.input = self.tensors.input
        self.ops = list[Op]()
        self.total = prod(self.shape)
        for node in graph.node:
            self._read_node(node)
        typed = typed_sums(model)
        self.half, self.wide_sums = typed.half, typed.wide
        self.output = self._read_output(graph)
        self.made = {op.output: op for op in self.ops}
        self.ops = [self._joined(op) for op in self.ops]
        self.made = {op.output: op for op in self.ops}
        ends = {self.input} if typed.input else set[str]()
        last = self.made.get(self.output)
        if typed.output and last is not None and last.kind == "affine":
            ends.add(self.output)
        self.unrounded = frozenset(ends)
        self.kinked_readers = {
            name: self._kinked_readers(name) for name in (self.input, *self.made)
        }
        self.largest = max(prod(self.shape), *(op.working_size for op in self.ops), 1)
        # At once there are three numbers for each activation (box and cost) of a sample, and a few
        # rows of the largest operator.
        self.budget.hold(8.0 * 4 * self.total)
        self.budget.fit(8.0 * (12 * self.largest + ROWS * self.size_of_output**2))

    @property
    def grids(self) -> Mapping[str, QuantisedGrid]:
        """Returns what activations are quantised to, by name."""
        return self.tensors.quantised.grids

    @property
    def shapes(self) -> Mapping[str, Dims]:
        """Returns the shape of each tensor of the file that is an activation."""
        return {name: activation.shape for name, activation in self.tensors.activations.items()}

    @property
    def names(self) -> Mapping[str, str]:
        """Returns for each tensor of the file that is an activation the name it is known by."""
        return {name: activation.name for name, activation in self.tensors.activations.items()}

    @property
    def size_of_output(self) -> int:
        """Returns the number of logits."""
        return next((op.size for op in self.ops if op.output == self.output), prod(self.shape))

    @property
    def size_of_input(self) -> int:
        """Returns the number of elements of one input."""
        return prod(self.shape)

    @property
    def size_of_execution(self) -> int:
        """Returns how many numbers an execution of one sample holds."""
        return prod(self.shape) + sum(op.size for op in self.ops)

    def work(self, rows: int) -> float:
        """Returns the work of one pass of so many rows through all operators."""
        return sum(op.work(rows) for op in self.ops)

    def _joined(self, op: Op) -> Op:
        """Returns a quantisation with the ReLU that it reads, and whether it reads the input.

        q(ReLU(z)) is the staircase of z whose least step is 0: where z <= 0 it is 0, whether or not
        a device computes the ReLU (docs/numerics.md, section 7.3).
        """
        if op.grid is None or op.kind != "quantise":
            return op
        (source,) = op.inputs
        relu = self.made.get(source)
        if relu is not None and relu.kind == "relu":
            grid = op.grid._replace(first=0)
            return op._replace(inputs=relu.inputs, grid=grid, rectifier=relu.output)
        while source in self.made and _moves_alone(self.made[source]):
            source = self.made[source].inputs[0]
        return op._replace(at_input=source == self.input)

    def _kinked_readers(self, name: str) -> list[Op]:
        """Returns the operators that read an activation and are not linear."""
        readers = [op for op in self.ops if name in op.inputs]
        return [op for op in readers if RULES[op.kind].unstable is not None]

    def _read_input(self, graph: onnx.GraphProto) -> Dims:
        """Reads the only input, and returns its shape without the batch."""
        need(
            len(graph.input) == len(graph.output) == 1, "the model has not one input and one output"
        )
        (source,) = graph.input
        tensor = source.type.tensor_type
        need(tensor.elem_type == onnx.TensorProto.FLOAT, "the model's input is not float32")
        shape = possible(tuple(int(dim.dim_value) for dim in tensor.shape.dim[1:]))
        self.tensors.input = source.name
        self.tensors.activations[source.name] = ShapedActivation(source.name, shape)
        return shape

    def _read_node(self, proto: onnx.NodeProto) -> None:
        """Reads one operator, and records what it makes."""
        attributes = attributes_of(proto)
        node = OnnxNode(proto.op_type, proto.output[0], tuple(proto.input), attributes)
        rule = ONNX[node.kind]
        if rule.commutes and node.input(0) in self.parameters:
            node = node._replace(inputs=(node.input(1), node.input(0), *node.inputs[2:]))
        reading = rule.read(node, self.tensors)
        if isinstance(reading, Op):
            self._add(reading, node)
        elif reading is not None:
            shape = possible(reading.shape)
            self.tensors.activations[node.output] = ShapedActivation(reading.name, shape)

    def _add(self, op: Op, node: OnnxNode) -> None:
        """Adds an operator, once it is known that it fits."""
        possible(op.shape)
        self.total += op.size
        fits = self.total <= MAX_TOTAL and op.padded_size <= MAX_SIZE
        need(fits, "the model's activations are too large to be checked")
        self.budget.fit(8.0 * (4 * self.total + 12 * op.working_size))
        self.ops.append(op)
        self.tensors.activations[op.output] = ShapedActivation(op.output, op.shape)
        weight, bias = node.input(1), node.input(2)
        on_grid = RULES[op.kind].on_grid
        self.tensors.quantised.check(op, on_grid, weight, bias, node.transposes_weight)

    def _read_output(self, graph: onnx.GraphProto) -> str:
        """Returns the activation that the only output is: a vector of logits."""
        (target,) = graph.output
        activations = self.tensors.activations
        need(target.name in activations, "the model's output is made by no operator")
        output = activations[target.name]
        need(
            len(output.shape) == 1,
            "the model's output is not one vector of logits for each sample",
        )
        if output.name in self.grids:
            kinds = {op.output: op.kind for op in self.ops}
            need(kinds[output.name] == "quantise", "the model's output moves quantised values")
        return output.name


def _moves_alone(op: Op) -> bool:
    """Returns whether each element of the output reads one element that no other reads."""
    once = len(op.inputs) == 1 and not any(move.repeated for move in op.moves)
    return once and RULES[op.kind].elementwise_linear


def _check_file(model: onnx.ModelProto) -> None:
    """Refuses operator sets and constructions that are not read, and names that are ambiguous."""
    graph = model.graph
    standard = [entry.domain in ("", "ai.onnx") for entry in model.opset_import]
    versions = [entry.version for entry in model.opset_import]
    fits = standard == [True] and versions[0] in OPSETS
    need(fits, "the model's operator set is not one of 13 to 26")
    odd = model.functions or graph.sparse_initializer or graph.quantization_annotation
    need(
        not odd and len(graph.node) <= MAX_NODES,
        "the model has functions, sparse or quantised tensors, or more than 1000 operators",
    )
    made = [value.name for value in [*graph.initializer, *graph.input]]
    made += [name for node in graph.node for name in node.output]
    unique = len(set(made)) == len(made) and "" not in made
    need(unique, "the model has two tensors of one name, or one without")


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Returns the attributes of a node; Refuted names an operator or attribute that is not read."""
    found = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    rule = ONNX.get(node.op_type)
    sane = len(found) == len(node.attribute) and len(node.output) == 1
    standard = node.domain in ("", "ai.onnx")
    if rule is None or not (sane and standard and 1 <= len(node.input) <= rule.inputs):
        raise Refuted(f'operator "{node.op_type:.60}" is not one that is checked')
    for name, value in found.items():
        allowed = rule.attributes.get(name, "") in (None, value)
        need(allowed, f"{node.op_type} has {name:.60} = {value!s:.60}, which is not checked")
    return found
