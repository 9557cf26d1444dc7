"""Bounds of a network over a region: interval and backward linear (CROWN), with the rounding of the device included."""

from vsparse.bounds.ball import Box, ball, inner_ball_float32, inside
from vsparse.bounds.choices import Choices
from vsparse.bounds.crown import crown
from vsparse.bounds.interval import interval
from vsparse.bounds.last_layers import elided
from vsparse.bounds.margins import lowest_margin, margin_rows
from vsparse.bounds.refine import refine, unstable_count
from vsparse.bounds.rounding import Rounding

__all__ = [
    "Box",
    "Choices",
    "Rounding",
    "ball",
    "crown",
    "elided",
    "inner_ball_float32",
    "inside",
    "interval",
    "lowest_margin",
    "margin_rows",
    "refine",
    "unstable_count",
]
