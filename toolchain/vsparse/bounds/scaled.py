"""The interval of x · scale + shift."""

from __future__ import annotations

from torch import Tensor

from vsparse.bounds.ball import Box


def scaled(scale: Tensor, shift: Tensor | None, lower: Tensor, upper: Tensor) -> Box:
    """Returns the box of x · scale + shift; sums and differences of the ends are halved in the scale, not in both activations."""
    centre, radius = (lower + upper) * (scale * 0.5), (upper - lower) * (scale.abs() * 0.5)
    if shift is not None:
        centre = centre + shift
    return centre - radius, centre + radius
