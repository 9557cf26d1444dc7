"""Bounds of a network over a region: interval and backward linear (CROWN), with the rounding of the device included."""

from vsparse.bounds.ball import Box, ball, inner_ball_float32, inside
from vsparse.bounds.interval import interval
from vsparse.bounds.margins import lowest_margin, margin_rows

__all__ = ["Box", "ball", "inner_ball_float32", "inside", "interval", "lowest_margin", "margin_rows"]
