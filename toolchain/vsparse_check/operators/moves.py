"""Moves: the elements of the output are elements of the inputs, in another order, or constants.

Kinds `move` (one input) and `concat` (several): `moves` says for each input which elements stand
where, `bias` [size] holds the constants around them, and `constants` is the padded number. Another
operator that moves elements is a reader that ends in `moved_from`, and one line of ONNX.
"""

from __future__ import annotations

from math import isfinite, prod

import numpy as np
import onnx

from vsparse_check.arrays import Dims, FloatArray, IntArray, Interval, largest
from vsparse_check.integers import OnGrid
from vsparse_check.onnx_rules import OnnxRule
from vsparse_check.op import ElementMove, Op
from vsparse_check.operators.affine import constant_terms
from vsparse_check.refusal import need
from vsparse_check.rules import (
    BackwardContext,
    ErrorContext,
    ExecutedValue,
    LinearBound,
    OperatorRules,
)
from vsparse_check.tensors import MAX_SIZE, OnnxNode, ShapedActivation, TensorTable

MAX_PAD = 2**16


# The steps of the theorem: all exact, but for a constant that a format does not hold.


def moved(op: Op, values: list[FloatArray], constants: FloatArray) -> FloatArray:
    """Returns the output [n, size] for values [n, size in] of each input, and constants [size]."""
    out = np.repeat(constants[None], len(values[0]), axis=0)
    for value, move in zip(values, op.moves, strict=True):
        out[:, move.target] = value[:, move.element]
    return out


def move_interval(op: Op, boxes: list[Interval]) -> Interval:
    """Returns the intervals of the elements, in their new order."""
    lower = moved(op, [box.lower for box in boxes], op.bias)
    upper = moved(op, [box.upper for box in boxes], op.bias)
    return Interval(lower, upper)


def move_backward(op: Op, a: FloatArray, context: BackwardContext) -> LinearBound:
    """Returns a·z = Σ_i (a moved back to input i)·x_i + a·constants.

    The coefficients of an element that the output has several times are added up: g·m of each of
    them, in E of the output, covers the rounding of that sum (docs/checker.md, section 5).
    """
    rows = []
    for name, move in zip(op.inputs, op.moves, strict=True):
        row = np.zeros((len(a), context.boxes[name].lower.shape[1]))
        if move.repeated:
            np.add.at(row.T, move.element, a[:, move.target].T)
        else:
            row[:, move.element] = a[:, move.target]
        rows.append(row)
    return LinearBound(rows, constant_terms(a, op.bias))


def move_error(op: Op, context: ErrorContext) -> FloatArray:
    """Returns E of a move: 0, and g·m for the backward pass; the padded number's own rounding.

    docs/numerics.md, section 3.1, last row but one.
    """
    (number,) = op.constants
    padding = context.arithmetic.constant_error(number)
    return context.arithmetic.g * largest(context.out) + np.where(op.bias != 0, padding, 0.0)


def move_execution(op: Op, inputs: list[ExecutedValue], g: float) -> ExecutedValue:
    """Returns the moved values, with their errors moved likewise; constants have none."""
    values = [one.value for one in inputs]
    errors = [np.broadcast_to(one.error, one.value.shape) for one in inputs]
    return ExecutedValue(moved(op, values, op.bias), moved(op, errors, np.zeros(op.size)))


# Reading.


def moved_from(node: OnnxNode, x: ShapedActivation, element: IntArray) -> Op:
    """Returns the operator whose output has the elements `element` of x, in the same shape."""
    repeated = len(np.unique(element)) < element.size
    move = ElementMove(np.arange(element.size), element.reshape(-1), repeated)
    constants = np.zeros(element.size)
    return Op(
        "move",
        node.output,
        (x.name,),
        element.shape,
        bias=constants,
        constants=(0.0,),
        moves=(move,),
    )


def numbered(x: ShapedActivation) -> IntArray:
    """Returns the number of each element of an activation, in its shape."""
    return np.arange(prod(x.shape)).reshape(x.shape)


def _moved_activations(node: OnnxNode, tensors: TensorTable, count: int) -> list[ShapedActivation]:
    """Returns the first inputs of a node, which must be activations that fit into memory."""
    tensors.activation(node)
    for name in node.inputs[:count]:
        need(name in tensors.activations, f'{node.kind} reads "{name:.60}", which is no activation')
    found = [tensors.activations[name] for name in node.inputs if name in tensors.activations]
    tensors.budget.fit(8.0 * 12 * sum(prod(x.shape) for x in found))
    return found


def read_concat(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Concat, along a dimension other than the batch."""
    inputs = _moved_activations(node, tensors, len(node.inputs))
    shapes = [x.shape for x in inputs]
    axis = int(node.attributes.get("axis", 0)) - 1
    first, rank = shapes[0], len(shapes[0])
    around = (*first[:axis], *first[axis + 1 :])
    fits = 0 <= axis < rank and all(
        len(shape) == rank and (*shape[:axis], *shape[axis + 1 :]) == around for shape in shapes
    )
    need(fits, f"Concat of the shapes {shapes!s:.100} along axis {axis + 1}")
    shape = (*first[:axis], sum(one[axis] for one in shapes), *first[axis + 1 :])
    output, start, moves = np.arange(prod(shape)).reshape(shape), 0, []
    for one in shapes:
        part = slice(start, start + one[axis])
        target = output[(*[slice(None)] * axis, part)].reshape(-1)
        moves.append(ElementMove(target, np.arange(prod(one))))
        start += one[axis]
    return Op(
        "concat",
        node.output,
        tuple(x.name for x in inputs),
        shape,
        bias=np.zeros(prod(shape)),
        constants=(0.0,),
        moves=tuple(moves),
    )


def read_transpose(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Transpose, which must leave the batch first."""
    x = _moved_activations(node, tensors, 1)[0]
    order = [int(axis) for axis in node.attributes.get("perm", ())]
    fits = sorted(order) == list(range(len(x.shape) + 1)) and order[0] == 0
    need(fits, f"Transpose by {order!s:.60} moves the batch, or is none")
    return moved_from(node, x, numbered(x).transpose([axis - 1 for axis in order[1:]]))


def read_slice(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Slice by constant starts, ends, axes and steps, which must leave the batch alone."""
    x = _moved_activations(node, tensors, 1)[0]
    given = [tensors.whole_numbers(name) if name else [] for name in node.inputs[1:]]
    need(len(given) >= 2, "Slice has no constant starts and ends")
    starts, ends = given[:2]
    axes = given[2] if len(given) > 2 else []
    steps = given[3] if len(given) > 3 else []
    axes = axes or list(range(len(starts)))
    steps = steps or [1] * len(starts)
    fits = len(starts) == len(ends) == len(axes) == len(steps) and len(set(axes)) == len(axes)
    fits = fits and all(1 <= axis <= len(x.shape) for axis in axes)
    need(fits and min(steps, default=1) >= 1, "Slice is along the batch, or backward")
    parts = [slice(None)] * len(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Negative ends, and those beyond the size, mean the same in ONNX and in Python.
        parts[axis - 1] = slice(start, end, step)
    element = numbered(x)[tuple(parts)]
    need(element.size, "Slice leaves nothing")
    return moved_from(node, x, element)


def read_gather(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Gather by constant indices in one list, not along the batch."""
    x = _moved_activations(node, tensors, 1)[0]
    given = tensors.parameters.get(node.input(1))
    axis = int(node.attributes.get("axis", 0)) - 1
    known = given is not None and given.dtype == np.int64 and given.ndim == 1 and given.size > 0
    need(
        known and 0 <= axis < len(x.shape), "Gather is along the batch, or by no list of constants"
    )
    assert given is not None
    size, picked = x.shape[axis], prod(x.shape) // x.shape[axis] * given.size
    need(given.min() >= 0 and given.max() < size, f"Gather picks outside of {size} parts")
    need(picked <= MAX_SIZE, f"Gather makes an activation of {picked} elements")
    return moved_from(node, x, np.take(numbered(x), given, axis=axis))


def read_pad(node: OnnxNode, tensors: TensorTable) -> Op:
    """Reads Pad with a constant, not along the batch."""
    x = _moved_activations(node, tensors, 1)[0]
    number = tensors.scalar(node.input(2)) if node.input(2) else 0.0
    need(len(node.inputs) > 1, "Pad has no constant pads")
    pads = tensors.whole_numbers(node.input(1))
    rank = len(x.shape) + 1
    fits = len(pads) == 2 * rank and pads[0] == pads[rank] == 0
    fits = fits and 0 <= min(pads) <= max(pads) <= MAX_PAD and isfinite(number)
    need(fits, f"Pad by {pads!s:.60} with {number} is along the batch, negative or not finite")
    before, after = pads[1:rank], pads[rank + 1 :]
    shape = _padded_shape(x.shape, before, after)
    need(prod(shape) <= MAX_SIZE, f"an activation has the impossible shape {shape!s:.60}")
    inside = tuple(slice(b, b + size) for b, size in zip(before, x.shape, strict=True))
    constants = np.full(shape, number)
    constants[inside] = 0
    target = np.arange(prod(shape)).reshape(shape)[inside].reshape(-1)
    return Op(
        "move",
        node.output,
        (x.name,),
        shape,
        bias=constants.reshape(-1),
        constants=(number,),
        moves=(ElementMove(target, np.arange(prod(x.shape))),),
    )


def _padded_shape(shape: Dims, before: list[int], after: list[int]) -> Dims:
    """Returns before + size + after in each dimension."""
    return tuple(b + size + a for b, size, a in zip(before, shape, after, strict=True))


def read_reshape(node: OnnxNode, tensors: TensorTable) -> ShapedActivation:
    """Reads Reshape to a constant shape that leaves the batch first."""
    x = tensors.activation(node)
    target = tensors.parameters.get(node.input(1))
    need(
        target is not None and target.dtype == np.int64,
        "Reshape has no constant shape",
    )
    assert target is not None
    batch, *shape = target.reshape(-1).tolist()
    same = batch in (0, -1) and min(shape, default=0) >= 1 and prod(shape) == prod(x.shape)
    need(same, "Reshape mixes samples, or changes the number of elements")
    return ShapedActivation(x.name, tuple(shape))


def read_flatten(node: OnnxNode, tensors: TensorTable) -> ShapedActivation:
    """Reads Flatten of all but the batch."""
    x = tensors.activation(node)
    return ShapedActivation(x.name, (prod(x.shape),))


def read_identity(node: OnnxNode, tensors: TensorTable) -> ShapedActivation:
    """Reads Identity."""
    return tensors.activation(node)


def read_cast(node: OnnxNode, tensors: TensorTable) -> ShapedActivation | None:
    """Reads Cast to float16 and float32, of weights in bfloat16 and float16 too.

    Those to float32 are exact; one to float16 is the rounding that is charged of the input, or of
    the sum before it (docs/numerics.md, section 8). Which ones may stand where: casts.py.
    """
    to = node.attributes["to"]
    if node.input(0) in tensors.bfloat16:
        need(to == onnx.TensorProto.FLOAT, "Cast of bfloat16 numbers is not to float32")
        tensors.widen(node.output, node.input(0))
        return None
    if node.input(0) in tensors.parameters:
        need(to == onnx.TensorProto.FLOAT, "Cast of a parameter is not to float32")
        tensors.widen(node.output, node.input(0))
        return None
    x = tensors.activation(node)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    need(to in floats, "Cast is not to float32 or float16")
    return x


RULES = {
    "move": OperatorRules(
        interval=move_interval,
        backward=move_backward,
        error=move_error,
        execute=move_execution,
        on_grid=OnGrid.SELECTS,
        linear=True,
        elementwise_linear=True,
    ),
    "concat": OperatorRules(
        interval=move_interval,
        backward=move_backward,
        error=move_error,
        execute=move_execution,
        on_grid=OnGrid.SELECTS,
    ),
}
ONNX = {
    "Concat": OnnxRule(read_concat, {"axis": None}, inputs=1000),
    "Transpose": OnnxRule(read_transpose, {"perm": None}),
    "Slice": OnnxRule(read_slice, {}, inputs=5),
    "Gather": OnnxRule(read_gather, {"axis": None}, inputs=2),
    "Pad": OnnxRule(read_pad, {"mode": b"constant"}, inputs=3),
    "Reshape": OnnxRule(read_reshape, {"allowzero": 0}, inputs=2),
    "Flatten": OnnxRule(read_flatten, {"axis": 1}),
    "Identity": OnnxRule(read_identity, {}),
    "Cast": OnnxRule(read_cast, {"to": None, "saturate": 1}),
}
