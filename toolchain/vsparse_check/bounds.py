"""Bounds of all executions of a network on regions: boxes, refined boxes, margins.

float64, its own rounding included. The executed value of every activation is the variable: ReLU
acts exactly on it, a branch z <= 0 or z >= 0 is exact, and each operator costs |A|·E for a row A
that passes it (docs/numerics.md, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from vsparse_check.arrays import BoolArray, FloatArray, IntArray, Interval, largest
from vsparse_check.backward import BackwardPass, Enclosures, RowsByName
from vsparse_check.errors import ErrorTerms
from vsparse_check.execution import SampleExecution
from vsparse_check.model import Model
from vsparse_check.op import Op
from vsparse_check.operators import RULES
from vsparse_check.refusal import Unchecked
from vsparse_check.region import SampleRegions
from vsparse_check.rules import ChosenSlopes

# Bytes of one array of rows: small enough for caches, large enough to be fast.
WORKING_SET = 2**25


class Bounds:
    """What is known about the executions of a model on regions of n samples.

    `boxes`: by activation, [n, size]; `costs`: what a unit of coefficient costs there; `executed`:
    the model executed on the samples themselves, which every bound is held against.
    """

    def __init__(
        self, model: Model, errors: ErrorTerms, region: SampleRegions, refine: bool
    ) -> None:
        """Bounds every activation, in order; with `refine` (n = 1) by backward passes as well.

        Raises Unchecked, as a contradiction, where the execution of a sample leaves a box.
        """
        self.model, self.errors, self.region = model, errors, region
        self.step = self._rows_at_once()
        error = errors.of_input(region.box)
        self.boxes = {model.input: widened(region.box, error)}
        self.costs = {model.input: self._cost(model.input, error)}
        self.executed = SampleExecution(model, region.x)
        for op in model.ops:
            self._enclose(op)
            self.charge(op)
            if refine:
                self._refine(op)

    def _rows_at_once(self) -> int:
        """Returns how many rows are passed back together."""
        widest = max(self.model.largest, 1)
        return max(1, min(WORKING_SET, self.model.budget.memory // 64) // (8 * widest))

    # Step 1: interval arithmetic.

    def _enclose(self, op: Op) -> None:
        """Encloses what an operator makes: the interval of the exact operator, widened by E.

        |z − f(x)| <= E and x in its box give z in f(box) ± E (docs/numerics.md, section 4.2).
        Operators that a device computes exactly are not widened. Where E is not finite (something
        may overflow, or what is read is unknown) nothing is known of the result, of these
        operators too: the box is (−inf, inf).
        """
        self.model.budget.spend(6 * op.work(len(self.region.x)))
        rules = RULES[op.kind]
        box = rules.interval(op, [self.boxes[name] for name in op.inputs])
        error = self.errors.of(op, self.boxes, box)
        if rules.exact and not (rules.rounded_as_output and op.output == self.model.output):
            error = np.where(np.isfinite(error), 0.0, np.inf)
        self.boxes[op.output] = widened(box, error)
        self.executed.run(op)
        self.executed.check_box(op.output, self.boxes[op.output])

    def charge(self, op: Op) -> None:
        """Sets what a unit of coefficient costs at an operator's output, from the present boxes."""
        error = self.errors.of(op, self.boxes, self.boxes[op.output])
        self.costs[op.output] = self._cost(op.output, error)

    def _cost(self, name: str, error: FloatArray) -> FloatArray:
        """Returns E + g·m: the operator's error, and adding up coefficients of several readers."""
        return error + self.errors.g * largest(self.boxes[name])

    # Step 2: refined boxes.

    def _refine(self, op: Op) -> None:
        """Tightens a box by backward passes where its readers' relaxations would gain from it.

        Both bounds hold, so that their intersection does (docs/numerics.md, section 4.2). Nothing
        is gained behind one linear map of a box, nor where an element is a function of one element.
        """
        readers = self.model.kinked_readers[op.output]
        if not readers or RULES[op.kind].monotone or self._is_linear_map_of_box(op):
            return
        box = Interval(*(end[0] for end in self.boxes[op.output]))
        unstable = [unstable_elements(reader, box) for reader in readers]
        units = np.flatnonzero(np.any(unstable, axis=0))
        self.tighten(op.output, np.tile(units, 2), np.repeat([0, 1], len(units)))
        self.charge(op)

    def _is_linear_map_of_box(self, op: Op) -> bool:
        """Returns whether only one linear map, and maps of single elements, follow a box region.

        The interval of such a map is as good as a row of it; nothing rests on this being so.
        """
        if not (self.region.is_box and op.weight.size):
            return False
        return self._behind(op.inputs[0], elementwise=True) == self.model.input

    def _behind(self, name: str, elementwise: bool) -> str:
        """Returns what the longest chain of linear operators that ends in an activation reads.

        With `elementwise`, of linear operators on single elements alone.
        """
        made = self.model.made
        while name in made:
            rules = RULES[made[name].kind]
            if not (rules.elementwise_linear if elementwise else rules.linear):
                break
            name = made[name].inputs[0]
        return name

    def tighten(
        self, name: str, units: IntArray, sides: IntArray, slopes: ChosenSlopes | None = None
    ) -> None:
        """Bounds units of an activation by backward passes, and keeps the better bounds.

        z >= bound of the row e_unit, and z <= −(bound of −e_unit); both hold with what was known
        before (docs/numerics.md, section 4.2, refinement).
        units [p]; sides [p]: 0 from below, by the row e_unit, 1 from above, by −e_unit. With
        `slopes`, row k uses the set slopes.sets[k].
        """
        lower, upper = (end[0].copy() for end in self.boxes[name])
        for start in range(0, len(units), self.step):
            part = slice(start, start + self.step)
            unit, side = units[part], sides[part]
            rows = np.zeros((len(unit), len(lower)))
            rows[np.arange(len(unit)), unit] = 1 - 2 * side
            chosen = slopes and slopes._replace(sets=slopes.sets[part])
            found = self.backward({name: rows}, slopes=chosen)
            np.maximum.at(lower, unit[side == 0], found[side == 0])
            np.minimum.at(upper, unit[side == 1], -found[side == 1])
        self.boxes[name] = Interval(lower[None], upper[None])
        self.executed.check_box(name, self.boxes[name])

    # Step 3: linear bounds.

    def backward(
        self,
        rows: RowsByName,
        cut: Mapping[str, Interval] | None = None,
        slopes: ChosenSlopes | None = None,
    ) -> FloatArray:
        """Returns lower bounds [r] of the sum of rows[name]·z_name over the region of one sample.

        rows are [r, size]; `cut` holds boxes [r, size] of what ReLUs read that hold for a row each.
        """
        return self._pass(cut, slopes).over_region(rows, self.region)

    def folded(self, rows: FloatArray, samples: IntArray | slice) -> FloatArray:
        """Returns lower bounds [r] of row·output, folded into the linear operators at the end.

        Bounded over the box of the activation before these (docs/numerics.md, section 4.2, "folded
        into the linear operators"); `samples` says which sample each row is about.
        """
        output = self.model.output
        stop = self._behind(output, elementwise=False)
        return self._pass(samples=samples).over_box_of(stop, {output: rows})

    def _pass(
        self,
        cut: Mapping[str, Interval] | None = None,
        slopes: ChosenSlopes | None = None,
        samples: IntArray | slice = slice(None),
    ) -> BackwardPass:
        """Returns a backward pass over the present boxes and costs."""
        enclosures = Enclosures(self.boxes, self.costs)
        over_box = self.region.is_box
        return BackwardPass(self.model, enclosures, self.errors.g, cut, slopes, samples, over_box)

    def slopes_at_input(self, rows: FloatArray) -> FloatArray:
        """Returns rows [r, size] of the output as rows at the input: at a point, gradients."""
        found = self._pass().to_input({self.model.output: rows}).rows
        return found.get(self.model.input, np.zeros((len(rows), prod(self.model.shape))))

    # Step 4: margins.

    def margins(self, labels: IntArray, fold_only: bool) -> tuple[FloatArray, FloatArray]:
        """Returns the rows z_label − z_j of each sample, and a lower bound of each, [rows].

        For all classes j ≠ label in order. Each row is folded into the last layers; unless
        `fold_only`, which is for one sample alone, it is also passed to the input, and the larger
        bound holds.
        """
        classes = self.boxes[self.model.output].lower.shape[1]
        rows = margin_rows(labels, classes)
        several = len(labels) > 1
        samples = np.repeat(np.arange(len(labels)), classes - 1)
        bounds = np.full(len(rows), -np.inf)
        for start in range(0, len(rows), self.step):
            part = slice(start, start + self.step)
            bounds[part] = self.folded(rows[part], samples[part] if several else slice(None))
            if not fold_only:
                passed = self.backward({self.model.output: rows[part]})
                bounds[part] = np.maximum(bounds[part], passed)
        self.executed.check_rows(self.model.output, rows, bounds, samples)
        return rows, bounds


def margin_rows(labels: IntArray, classes: int) -> FloatArray:
    """Returns e_label − e_j for all classes j ≠ label in order, label after label."""
    unit = np.eye(classes)
    return np.concatenate(
        [unit[label] - np.delete(unit, label, axis=0) for label in labels.tolist()]
    )


def unstable_elements(reader: Op, box: Interval) -> BoolArray:
    """Returns which elements of what an operator reads would gain from tighter bounds."""
    rule = RULES[reader.kind].unstable
    assert rule is not None
    return rule(reader, box)


def widened(box: Interval, error: FloatArray) -> Interval:
    """Returns the box with both ends moved out by `error`; (−inf, inf) where nothing is known."""
    lower, upper = box.lower - error, box.upper + error
    known = np.isfinite(lower) & np.isfinite(upper)
    if (known & (lower > upper)).any():
        raise Unchecked(
            "a contradiction: a lower bound lies above the upper one; please report this artifact"
        )
    return Interval(np.where(known, lower, -np.inf), np.where(known, upper, np.inf))
