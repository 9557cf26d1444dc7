"""Bounds of a network over a region: interval and backward linear (CROWN), with the rounding of the device included."""

from vsparse.bounds.ball import Box, ball, inner_ball_float32, inside
from vsparse.bounds.choices import Choices
from vsparse.bounds.crown import crown
from vsparse.bounds.curves import linear_relaxation
from vsparse.bounds.executions import Executions
from vsparse.bounds.interval import interval
from vsparse.bounds.last_layers import last_layer_folding
from vsparse.bounds.margins import lowest_margin, margin_rows
from vsparse.bounds.membership import member
from vsparse.bounds.operators import FAMILIES
from vsparse.bounds.refine import refine, unstable_count
from vsparse.bounds.region import Region, box_of, region, samples_of
from vsparse.bounds.relaxation import LinearRelaxation
from vsparse.bounds.rounding import Rounding

__all__ = [
    "FAMILIES",
    "Box",
    "Choices",
    "Executions",
    "LinearRelaxation",
    "Region",
    "Rounding",
    "ball",
    "box_of",
    "crown",
    "inner_ball_float32",
    "inside",
    "interval",
    "last_layer_folding",
    "linear_relaxation",
    "lowest_margin",
    "margin_rows",
    "member",
    "refine",
    "region",
    "samples_of",
    "unstable_count",
]
