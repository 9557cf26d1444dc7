"""Rows of coefficients, passed from an activation back to the input: linear bounds (CROWN).

Zhang et al., arXiv 1811.00866, theorem 3.2; on graphs: Xu et al., arXiv 2002.12920. The executed
value of every activation is the variable, so that each operator costs |A|·E for a row A that
passes it (docs/numerics.md, sections 4.1 and 4.2). Every operator after an activation is passed
before it, so that in the end rows are left at the input alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vsparse_check.arrays import FLOOR, FloatArray, IntArray, Interval, dot, largest
from vsparse_check.model import Model
from vsparse_check.operators import RULES
from vsparse_check.region import SampleRegions, over_box
from vsparse_check.rules import BackwardContext, ChosenSlopes

TOO_LARGE = 1e100  # sums of such terms prove nothing
RowsByName = dict[str, FloatArray]  # by activation: coefficients [r, size]


class Enclosures(NamedTuple):
    """What is known about all executions: boxes of all activations, and what rows cost there."""

    boxes: Mapping[str, Interval]  # [n, size]
    # What a unit of coefficient costs: E, and g·m for adding up coefficients.
    costs: Mapping[str, FloatArray]  # [n, size]


class Arrived(NamedTuple):
    """Rows at the input, or at the activation where a pass stops, and what was left on the way.

    row·z >= Σ rows·(input) + constant; `absolute` bounds the sizes of all terms added up so far.
    """

    rows: RowsByName
    constant: FloatArray  # [r]
    absolute: FloatArray  # [r]


class BackwardPass:
    """The backward passes of one model over given enclosures."""

    def __init__(
        self,
        model: Model,
        enclosures: Enclosures,
        g: float,
        cut: Mapping[str, Interval] | None = None,
        slopes: ChosenSlopes | None = None,
        samples: IntArray | slice = slice(None),
        over_box: bool = False,
    ) -> None:
        """Takes what may differ from row to row.

        `cut`: boxes [r, size] of what ReLUs read that hold for one row each; `slopes`: those that
        a proof chooses; `samples`: of which sample each row is, where there are several;
        `over_box`: whether the region is a box.
        """
        self.model, self.enclosures = model, enclosures
        self.g, self.samples = g, samples
        self.context = BackwardContext(enclosures.boxes, cut or {}, slopes, over_box)

    def to_input(self, rows: RowsByName, stop: str = "") -> Arrived:
        """Passes rows [r, size] of activations back, operator by operator, to the input.

        Or to `stop`, one activation that everything after it depends on. At each operator

            A·z = A·(f(x) + e) >= A·f(x) − |A|·E >= Σ rows·x + constants − |A|·(E + g·m)

        with |e| <= E, by its backward rule (docs/numerics.md, sections 4.1 and 4.2; for g·m
        docs/checker.md, section 5). Rows that reach one activation from several operators are
        added up.
        """
        pending = dict(rows)
        constant = np.zeros(1)
        absolute = self._sizes(rows)
        for op in reversed(self.model.ops):
            if op.output not in pending or op.output == stop:
                continue
            a = pending.pop(op.output)
            self.model.budget.spend(op.work(len(a)))
            charge = dot(np.abs(a), self.enclosures.costs[op.output][self.samples])
            found = RULES[op.kind].backward(op, a, self.context)
            terms = [-charge, *found.constants]
            constant = constant + sum(terms)
            absolute = absolute + sum(map(np.abs, terms))
            for name, row in zip(op.inputs, found.rows, strict=True):
                pending[name] = pending[name] + row if name in pending else row
        return Arrived(pending, constant, absolute)

    def _sizes(self, rows: RowsByName) -> FloatArray:
        """Returns |A|·m of the rows that a pass begins with.

        Adding up the first coefficients errs by g of that; later each reader is charged for the
        coefficients that it passes on, in its own E.
        """
        total: FloatArray = np.zeros(1)
        for name, a in rows.items():
            total = total + dot(np.abs(a), largest(self._box_with_cut(name)))
        return total

    def _box(self, name: str) -> Interval:
        """Returns the box of an activation for each row: [1, size], or [r, size] by sample."""
        box = self.enclosures.boxes[name]
        return Interval(box.lower[self.samples], box.upper[self.samples])

    def _box_with_cut(self, name: str) -> Interval:
        """Returns the box of each row, [r, size] and cut where splits are about the activation."""
        return self.context.cut[name] if name in self.context.cut else self._box(name)

    def over_region(self, rows: RowsByName, region: SampleRegions) -> FloatArray:
        """Returns lower bounds [r] of the sum of rows[name]·z_name over the region.

        a·x̂ >= a·x − |a|·E of storing the input, and a·x >= `region.least` of a (docs/numerics.md,
        sections 4.2 and 5.3).
        """
        arrived = self.to_input(rows)
        constant, absolute = arrived.constant, arrived.absolute
        for name, a in arrived.rows.items():
            cost = dot(np.abs(a), self.enclosures.costs[name][self.samples])
            constant = constant - cost + region.least(a, self.g)
            absolute = absolute + cost + dot(np.abs(a), largest(self._box(name)))
        return self._rounded_down(constant, absolute)

    def over_box_of(self, stop: str, rows: RowsByName) -> FloatArray:
        """Returns lower bounds [r] of the sum of rows[name]·z_name over the box of `stop`.

        a·z >= a·centre − |a|·radius (docs/numerics.md, section 4.2, last-layer folding). The box is
        one of executed values: E of the operator that makes them is in it already.
        """
        arrived = self.to_input(rows, stop)
        constant, absolute = arrived.constant, arrived.absolute
        for name, a in arrived.rows.items():
            box = self._box(name)
            cost = dot(np.abs(a), 2 * self.g * largest(box))
            constant = constant - cost + over_box(a, box, self.g)
            absolute = absolute + cost + dot(np.abs(a), largest(box))
        return self._rounded_down(constant, absolute)

    def _rounded_down(self, constant: FloatArray, absolute: FloatArray) -> FloatArray:
        """Returns the sums, lowered by γ_K of the sizes of all their terms; −inf for what is none.

        docs/numerics.md, section 5.3.
        """
        bound = constant - self.g * (absolute + np.abs(constant)) * 1.01 - FLOOR
        finite = np.isfinite(bound) & (absolute < TOO_LARGE)
        return np.asarray(np.where(finite, bound, -np.inf))
