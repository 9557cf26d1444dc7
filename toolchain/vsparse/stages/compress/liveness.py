"""Which units a network does not need, and why: constant zero, foldable constant, unread; iterated to a fixed point.

Each step keeps the function in real arithmetic. A column is set to zero only where its input is the constant zero (every
term it deletes is an exact zero) or where its constant was added to the bias; a row is set to zero only where nothing
reads it any more. What is then physically absent after packing is all zero before it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import (
    Add,
    AddConstant,
    Affine,
    AveragePool,
    Clip,
    Conv,
    Graph,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Node,
    Relu,
    Reshape,
    Sub,
)
from vsparse.stages.compress.state import Mask, State
from vsparse.stages.compress.units import Units, is_depthwise, is_reader

BIT_EXACT = "bit-exact modulo order of summation"
REAL = "real"

Constants = list[Fraction | None]  # per unit: its value at every position and for every input, or None


@dataclass(frozen=True)
class Reduction:
    """A kind of removal in one layer: how many units, and in which arithmetic the result is the same."""

    layer: str
    kind: str  # zero, constant, unread, dead, inactive columns, always-active ReLU, merged
    count: int
    exactness: str


def folds_constants(node: Affine) -> bool:
    """Whether a constant input channel is a constant in every output: always for Gemm, for Conv only without padding."""
    return not isinstance(node, Conv) or not any(node.pads)


def _filters(weight: NDArray[np.float32]) -> Mask:
    """Returns [out, in]: whether any tap of a filter is non-zero."""
    filters: Mask = np.any(weight.reshape(*weight.shape[:2], -1) != 0, axis=2)
    return filters


def _per_unit(constant: NDArray[np.float32], shape: tuple[int, ...]) -> list[Fraction | None]:
    """Returns the value of a broadcast constant in each unit, None where it varies inside the unit."""
    rows = np.broadcast_to(constant.reshape(constant.shape[max(0, constant.ndim - len(shape)) :]), shape).reshape(shape[0], -1)
    return [Fraction(float(row[0])) if (row == row[0]).all() else None for row in rows]


def _reshaped(values: Constants, source: tuple[int, ...], target: tuple[int, ...]) -> Constants:
    size = prod(source)
    before, after = size // source[0], size // target[0]
    result: Constants = []
    for unit in range(target[0]):
        parts = {values[part] for part in range(unit * after // before, ((unit + 1) * after - 1) // before + 1)}
        result.append(parts.pop() if len(parts) == 1 else None)
    return result


def _image(node: Neg | LeakyRelu | Clip, value: Fraction) -> Fraction:
    if isinstance(node, Neg):
        return -value
    if isinstance(node, LeakyRelu):
        return value if value >= 0 else value * Fraction(node.slope)
    value = value if value >= node.lowest else Fraction(node.lowest)
    return value if value <= node.highest else Fraction(node.highest)


def constants(state: State, dead: dict[str, Mask]) -> dict[str, Constants]:
    """Returns for each activation the units known to be constant; `dead` names ReLU units proved to be zero."""
    graph = state.graph
    known: dict[str, Constants] = {graph.input: [None] * graph.input_shape[0]}
    for node in graph.nodes:
        inputs = [known[name] for name in node.inputs]
        known[node.name] = _constant_outputs(state, graph, node, inputs, dead)
    return known


def _constant_outputs(state: State, graph: Graph, node: Node, inputs: list[Constants], dead: dict[str, Mask]) -> Constants:
    if isinstance(node, Affine):
        filters: Mask = np.any(_filters(state.weight[node.name]), axis=1)
        if isinstance(node, Conv) and is_depthwise(node, len(inputs[0])):
            filters &= np.repeat([value != 0 for value in inputs[0]], len(filters) // len(inputs[0]))
        bias = state.bias[node.name]
        return [None if used else bias[row] for row, used in enumerate(filters.tolist())]
    if isinstance(node, Add):
        return [None if a is None or b is None else a + b for a, b in zip(*inputs, strict=True)]
    if isinstance(node, Sub):
        return [None if a is None or b is None else a - b for a, b in zip(*inputs, strict=True)]
    if isinstance(node, Neg | LeakyRelu | Clip):
        return [None if value is None else _image(node, value) for value in inputs[0]]
    if not isinstance(node, Relu | AddConstant | MulConstant | Reshape | MaxPool | AveragePool):
        return [None] * node.shape[0]  # not followed; `Units` pins it
    (values,) = inputs
    if isinstance(node, Relu):
        zero = dead.get(node.name, np.zeros(len(values), dtype=bool)).tolist()
        return [
            Fraction(0) if proved else None if value is None else max(value, Fraction(0))
            for value, proved in zip(values, zero, strict=True)
        ]
    if isinstance(node, AddConstant):
        added = _per_unit(graph.params[node.constant], node.shape)
        return [None if a is None or b is None else a + b for a, b in zip(values, added, strict=True)]
    if isinstance(node, MulConstant):
        factors = _per_unit(graph.params[node.constant], node.shape)
        return [Fraction(0) if a == 0 else None if a is None or b is None else a * b for a, b in zip(values, factors, strict=True)]
    if isinstance(node, Reshape):
        return _reshaped(values, graph.shape_of(node.inputs[0]), node.shape)
    return values  # pools: the maximum or mean of one value is that value; padding never wins and the mean has none


def remove_units(state: State, units: Units, removed: Mask, dead: dict[str, Mask]) -> list[Reduction]:
    """Zeroes every unit that is not needed until nothing changes; marks its class in `removed` and says what was done.

    Classes are closed under the ties of `Units`, so a channel under a residual addition goes only when every reader of
    every member does not read it, reads the constant zero, or can fold its constant.
    """
    tally: Counter[tuple[str, str, str]] = Counter()
    readers = [node for node in state.affine() if is_reader(node)]
    dead_classes = np.zeros(units.count, dtype=bool)
    for name, proved in dead.items():
        dead_classes[units.classes[name][proved]] = True
    while True:
        known = constants(state, dead)
        blocked = units.pinned | removed
        folded = np.zeros(units.count, dtype=bool)
        read = np.zeros(units.count, dtype=bool)
        changed = False
        for node in readers:
            classes, values = units.classes[node.inputs[0]], known[node.inputs[0]]
            used = _filters(state.weight[node.name]).any(axis=0)
            zero = used & np.array([value == 0 for value in values])
            varying = used & np.array([value is None for value in values])
            fixed = used & ~zero & ~varying
            read[classes[used]] = True
            folded[classes[fixed]] = True
            blocked[classes[varying if folds_constants(node) else varying | fixed]] = True
        new = ~blocked
        for node in readers:
            classes, values = units.classes[node.inputs[0]], known[node.inputs[0]]
            weight = state.weight[node.name]
            used = _filters(weight).any(axis=0)
            for column in np.flatnonzero(used).tolist():
                value = values[column]
                if value is None or (value != 0 and not new[classes[column]]):
                    continue
                if value != 0:
                    _fold(state, node, column, value)
                elif not new[classes[column]]:
                    tally[node.name, "inactive columns", BIT_EXACT] += 1
                weight[:, column] = 0
                changed = True
        for node in state.affine():
            rows = new[units.classes[node.name]]
            for kind, exactness, member in (
                ("unread", BIT_EXACT, ~read),
                ("constant", REAL, read & folded),
                ("dead", BIT_EXACT, read & ~folded & dead_classes),
                ("zero", BIT_EXACT, read & ~folded & ~dead_classes),
            ):
                count = int((rows & member[units.classes[node.name]]).sum())
                if count:
                    tally[node.name, kind, exactness] += count
            state.zero_rows(node, rows)
        removed |= new
        if not (changed or new.any()):
            break
    return [Reduction(layer, kind, count, exactness) for (layer, kind, exactness), count in tally.items()]


def _fold(state: State, node: Affine, column: int, value: Fraction) -> None:
    """Adds a constant input, exactly, to the biases of the outputs that read it."""
    weight = state.weight[node.name][:, column].reshape(node.shape[0], -1)
    bias = state.bias[node.name]
    for row in np.flatnonzero(weight.any(axis=1)).tolist():
        bias[row] += value * sum(Fraction(float(tap)) for tap in weight[row] if tap)
