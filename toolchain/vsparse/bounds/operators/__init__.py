"""Bounds of the operators beside the core's, one module for each kind; importing this package registers their rules.

A rule is registered with each of `interval.propagate`, `backward.backward`, `rounding.operator_error` and, for operators that
are relaxed, `relaxation.unsettled`.
"""

from vsparse.bounds.operators import arithmetic, curves, moves, piecewise, quantised, sigmoidal
from vsparse.bounds.operators.curves import Lines, lines

__all__ = ["Lines", "arithmetic", "curves", "lines", "moves", "piecewise", "quantised", "sigmoidal"]
