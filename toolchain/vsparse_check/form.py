"""The form of a file in which a runtime has nothing to fold (numerics.md, "the form in which nothing can be folded").

What a runtime folds is another network than the file's: a factor that goes into the weights of a convolution is rounded with them, and may
overflow there. Without a runtime at hand only the form of the file tells that nothing of it happens. Rules have the numbers of that page;
1, 2 and 9 hold for all that nodes.py reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from vsparse_check.op import Shape
from vsparse_check.refusal import known

MOVES = ("Transpose", "Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze", "Dropout")
SUMS = ("Conv", "Gemm", "MatMul")
# The shape of the sum that is reached, whether data moves on the way, and whether in a way that a runtime may undo.
Path = tuple[Shape, bool, bool]


def check_form(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> None:
    """Leaves a file unchecked that a runtime may execute as another network; `shapes` are those of its activations."""
    form = Form(model, shapes)
    for node in model.graph.node:
        _check_factor(form, node)
        _check_summand(form, node)
        if node.op_type == "MaxPool":  # rule 6
            known(form.kind(form.behind(node.input[0])) != "Pad", _folded(node, "reads a Pad, which may become its own padding"))
        if node.op_type in ("Add", "Sub"):  # rule 7
            for name in form.activations(node):
                undone = any(bad or (moved and shape == shapes[name]) for shape, moved, bad in form.paths(name))
                known(not undone, _folded(node, "reads a convolution or product through moves that may be undone"))


class Form:
    """Who makes what in a file, and what is read through moves of data."""

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> None:
        self.shapes, self.found = shapes, dict[str, frozenset[Path]]()
        self.made = {name: node for node in model.graph.node for name in node.output}

    def kind(self, name: str) -> str:
        """Returns the operator that makes a tensor, an empty string for inputs and constants."""
        return self.made[name].op_type if name in self.made else ""

    def behind(self, name: str) -> str:
        """Returns the tensor that becomes `name` by moves alone."""
        while self.kind(name) in MOVES:
            name = self.made[name].input[0]
        return name

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """Returns the inputs of a node that are no constants."""
        return [name for name in node.input if name in self.shapes]

    def constant(self, node: onnx.NodeProto) -> bool:
        """Returns whether one of two inputs is a constant."""
        return len(self.activations(node)) < len(node.input)

    def _steps(self, name: str) -> Iterator[Path]:
        """Yields one path for each sum that `name` is made of by moves, Neg, Add and Sub; paths of what is read must be known."""
        if self.kind(name) in SUMS:
            yield self.shapes[name], False, False
        elif self.kind(name) in (*MOVES, "Neg", "Add", "Sub"):
            node = self.made[name]
            for source in self.activations(node):
                for shape, moved, bad in self.found[source]:
                    move = node.op_type in MOVES
                    begin = self.behind(name) if move else name
                    again = move and self.shapes.get(begin) == self.shapes[name]
                    yield shape, moved or move, bad or again or node.op_type == "Transpose"

    def paths(self, name: str) -> frozenset[Path]:
        """Returns how `name` is made of sums by moves, Neg, Add and Sub."""
        waiting = [name]
        while waiting:
            one = waiting[-1]
            sources = self.activations(self.made[one]) if self.kind(one) in (*MOVES, "Neg", "Add", "Sub") else []
            missing = [source for source in sources if source not in self.found]
            waiting += missing
            if not missing:
                self.found[one] = frozenset(self._steps(one))
                waiting.pop()
        return self.found[name]


def _check_factor(form: Form, node: onnx.NodeProto) -> None:
    """Rules 3 and 5: a factor behind a convolution goes into its weights, one at a product becomes a number of the fused product."""
    if node.op_type in ("Mul", "Div") and form.constant(node):
        behind = form.behind(form.activations(node)[0])
        summand = form.kind(behind) == "Add" and form.constant(form.made[behind])
        if summand:
            behind = form.behind(form.activations(form.made[behind])[0])
        known(
            node.op_type != "Mul" or form.kind(behind) != "Conv", _folded(node, "multiplies a convolution, whose weights may be multiplied")
        )
        known(summand or form.kind(behind) != "MatMul", _folded(node, "multiplies a product, whose factor may be applied elsewhere"))
    if node.op_type == "MatMul":
        factors = [name for name in map(form.behind, form.activations(node)) if form.kind(name) in ("Mul", "Div")]
        known(not any(form.constant(form.made[name]) for name in factors), _folded(node, "reads a factor that may be applied elsewhere"))


def _check_summand(form: Form, node: onnx.NodeProto) -> None:
    """Rule 4: a constant that is added behind a convolution goes into its bias, which is rounded again where there is one."""
    if node.op_type != "Add" or not form.constant(node):
        return
    behind, twice = form.behind(form.activations(node)[0]), False
    if form.kind(behind) == "Add" and form.constant(form.made[behind]):
        behind, twice = form.behind(form.activations(form.made[behind])[0]), True
    biased = form.kind(behind) == "Conv" and (twice or len([name for name in form.made[behind].input if name]) > 2)
    known(not biased, _folded(node, "adds a constant behind a convolution, whose bias may be changed"))


def _folded(node: onnx.NodeProto, how: str) -> str:
    return f'a runtime may fold "{node.name or node.output[0]:.60}" ({node.op_type}): it {how}; certify it under real, or rewrite it'
