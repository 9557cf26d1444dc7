"""What a kind of operator must say of itself: one function for each step of the theorem.

The table of all kinds is RULES in operators/__init__.py; docs/checker.md says how the steps fit
together. Below, x are the *executed* values that an operator reads, z those that it makes, f the
exact operator, and E its error term: |z − f(x)| <= E (docs/numerics.md, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from vsparse_check.arithmetic import ContractArithmetic
from vsparse_check.arrays import BoolArray, FloatArray, IntArray, Interval, largest
from vsparse_check.fusion import FusedBound
from vsparse_check.integers import OnGrid
from vsparse_check.op import Op
from vsparse_check.sums import SumError


class SlopeTable(NamedTuple):
    """The slopes that a proof stores for one ReLU operator."""

    listed: BoolArray  # [size]: which of its units have stored slopes
    bytes: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]  # [sets, listed units]: 255 times them


class ChosenSlopes(NamedTuple):
    """Lower slopes of ReLUs that a proof chooses; by default a slope is 0 or 1."""

    tables: Mapping[str, SlopeTable]  # by the activation that a ReLU makes
    sets: IntArray  # [r]: row k uses set sets[k] of each table, or the default slopes where −1


class BackwardContext(NamedTuple):
    """What a backward rule may use."""

    boxes: Mapping[str, Interval]  # of all activations, over the whole region
    cut: Mapping[str, Interval]  # [r, size]: of what ReLUs read, cut by the splits above each leaf
    slopes: ChosenSlopes | None = None
    over_box: bool = False  # whether the input may be anywhere in its box

    def box(self, op: Op) -> Interval:
        """Returns the box of what an operator of one input reads."""
        return self.boxes[op.inputs[0]]

    def cut_box(self, op: Op) -> Interval:
        """Returns the box of what a ReLU reads, cut where a split is about it."""
        return self.cut.get(op.inputs[0], self.boxes[op.inputs[0]])


class LinearBound(NamedTuple):
    """A row at an operator's output, bounded at its inputs.

    a·f(x) >= Σ_i rows[i]·x_i + Σ constants, for all x in the boxes.
    """

    rows: list[FloatArray]  # [r, size] for each input
    constants: list[FloatArray]  # [r] each


class ErrorContext(NamedTuple):
    """What an error rule may use."""

    arithmetic: ContractArithmetic
    inputs: list[Interval]  # boxes of what the operator reads
    out: Interval  # the box of its result, exact or executed
    sum_error: SumError | None  # of sums of products: their own error
    fused: FusedBound | None  # what a runtime may add up in one sum with this operator
    input_scales: list[float]  # of the inputs that are quantised
    is_output: bool  # whether the operator makes the network's output
    chain: FloatArray | None = None  # the error of a sum in its kernel's own order
    unrounded: bool = False  # whether a file of float16 numbers keeps the output in float32

    @property
    def m(self) -> FloatArray:
        """Returns the largest magnitudes of the first input."""
        return largest(self.inputs[0])


class ExecutedValue(NamedTuple):
    """Values [n, size] in float64, each at most `error` away from those of exact arithmetic."""

    value: FloatArray
    error: FloatArray


class OperatorRules(NamedTuple):
    """The functions of one kind of operator, and what the steps need to know of it."""

    # Boxes of the inputs to the box of f(x): docs/numerics.md, section 4.2.
    interval: Callable[[Op, list[Interval]], Interval]
    # A row at the output to rows at the inputs: docs/numerics.md, sections 4.2 and 5.2.
    backward: Callable[[Op, FloatArray, BackwardContext], LinearBound]
    # E: docs/numerics.md, section 3.1; with the float64 rounding of bounds through this operator:
    # docs/checker.md, section 5.
    error: Callable[[Op, ErrorContext], FloatArray]
    # Values with their float64 errors to value and error: docs/numerics.md, section 4.4.
    execute: Callable[[Op, list[ExecutedValue], float], ExecutedValue]
    # What it may do with quantised activations: docs/numerics.md, section 7.4.
    on_grid: OnGrid = OnGrid.REFUSED
    # Which elements of the input would gain from tighter bounds; None where f is linear.
    unstable: Callable[[Op, Interval], BoolArray] | None = None
    # The device makes f(x) exactly and E only covers the backward pass: boxes are not widened.
    exact: bool = False
    # Exact for its readers alone, which are charged for the rounding of what they read: as the
    # network's output it is rounded, and its box widened (docs/numerics.md, section 7.2).
    rounded_as_output: bool = False
    # Each element is a function of one element, not decreasing: its box is as good as its input's.
    monotone: bool = False
    # Linear, and each element reads at most one element.
    elementwise_linear: bool = False
    # Linear, of one input.
    linear: bool = False
