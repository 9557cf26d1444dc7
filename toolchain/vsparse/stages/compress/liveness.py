"""Which units a network does not need, and why: constant zero, foldable constant, unread; iterated to a fixed point.

Each step keeps the function in real arithmetic. A column is set to zero only where its input is the constant zero (every
term it deletes is an exact zero) or where its constant was added to the bias; a row is set to zero only where nothing
reads it any more. What is then physically absent after packing is all zero before it.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np

from vsparse.artifact.layers import Removal
from vsparse.graph.ir import Affine
from vsparse.stages.compress.layers import filters, folds_constants, is_reader
from vsparse.stages.compress.reduced_graph import Mask, ReducedGraph
from vsparse.stages.compress.rules import Constants, rules_of
from vsparse.stages.compress.units import UnitClasses

BIT_EXACT = "bit-exact modulo order of summation"
REAL = "real"


def constants(reduced: ReducedGraph, dead: dict[str, Mask]) -> dict[str, Constants]:
    """Returns for each activation the units known to be constant; `dead` names ReLU units proved to be zero."""
    graph = reduced.graph
    known: dict[str, Constants] = {graph.input: [None] * graph.input_shape[0]}
    for node in graph.nodes:
        inputs = [known[name] for name in node.inputs]
        known[node.name] = rules_of(node).constants(node, reduced, inputs, dead)
    return known


def remove_units(reduced: ReducedGraph, units: UnitClasses, removed: Mask, dead: dict[str, Mask]) -> list[Removal]:
    """Zeroes every unit that is not needed until nothing changes; marks its class in `removed` and says what was done.

    Classes are closed under the ties of `UnitClasses`, so a channel under a residual addition goes only when every reader of
    every member does not read it, reads the constant zero, or can fold its constant.
    """
    tally: Counter[tuple[str, str, str]] = Counter()
    readers = [node for node in reduced.affine() if is_reader(node)]
    dead_classes = np.zeros(units.count, dtype=bool)
    for name, proved in dead.items():
        dead_classes[units.classes[name][proved]] = True
    while True:
        known = constants(reduced, dead)
        blocked = units.pinned | removed
        folded = np.zeros(units.count, dtype=bool)
        read = np.zeros(units.count, dtype=bool)
        changed = False
        for node in readers:
            classes, values = units.classes[node.inputs[0]], known[node.inputs[0]]
            used = filters(reduced.weight[node.name]).any(axis=0)
            zero = used & np.array([value == 0 for value in values])
            varying = used & np.array([value is None for value in values])
            fixed = used & ~zero & ~varying
            read[classes[used]] = True
            folded[classes[fixed]] = True
            blocked[classes[varying if folds_constants(node) else varying | fixed]] = True
        new = ~blocked
        for node in readers:
            classes, values = units.classes[node.inputs[0]], known[node.inputs[0]]
            weight = reduced.weight[node.name]
            used = filters(weight).any(axis=0)
            for column in np.flatnonzero(used).tolist():
                value = values[column]
                if value is None or (value != 0 and not new[classes[column]]):
                    continue
                if value != 0:
                    _fold(reduced, node, column, value)
                elif not new[classes[column]]:
                    tally[node.name, "inactive columns", BIT_EXACT] += 1
                weight[:, column] = 0
                changed = True
        for node in reduced.affine():
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
            reduced.zero_rows(node, rows)
        removed |= new
        if not (changed or new.any()):
            break
    return [Removal(layer=layer, kind=kind, count=count, exactness=exactness) for (layer, kind, exactness), count in tally.items()]


def _fold(reduced: ReducedGraph, node: Affine, column: int, value: Fraction) -> None:
    """Adds a constant input, exactly, to the biases of the outputs that read it."""
    weight = reduced.weight[node.name][:, column].reshape(node.shape[0], -1)
    bias = reduced.bias[node.name]
    for row in np.flatnonzero(weight.any(axis=1)).tolist():
        bias[row] += value * sum(Fraction(float(tap)) for tap in weight[row] if tap)
