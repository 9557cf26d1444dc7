"""The region of a property: an l∞ ball with an exact radius, clipped to the data range."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import cycle
from math import inf, nextafter

import torch
from torch import Tensor

from vsparse.errors import InputError

# (lower, upper), each [batch, *shape], elementwise lower <= upper.
Box = tuple[Tensor, Tensor]


def checked_centre(x: Tensor, radius: Fraction, clip: tuple[float, float]) -> Tensor:
    """Returns x in float64; InputError where it cannot be the centre of a region."""
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(f"the centre of a ball must be float32 or float64, not {x.dtype}; convert the samples first")
    if radius < 0:
        raise InputError(f"the radius {radius} is negative; give zero or more")
    if clip[0] > clip[1] or clip[0] != clip[0] or clip[1] != clip[1]:
        raise InputError(f"the data range {clip} is empty; give (lowest, highest)")
    wide = x.detach().to(torch.float64)
    if not bool(torch.isfinite(wide).all()):
        raise InputError("a sample has a value that is not finite; repair the data")
    if x.numel() and not (float(wide.min()) >= clip[0] and float(wide.max()) <= clip[1]):
        raise InputError(f"a sample lies outside the data range {clip}; scale the data, or give its range")
    return wide


def radius_up(radius: Fraction) -> float:
    """Returns the smallest double that is at least the radius."""
    nearest = float(radius)
    return nextafter(nearest, inf) if Fraction(nearest) < radius else nearest


def radii_up(radii: Sequence[Fraction], x: Tensor) -> Tensor:
    """Returns a radius for each value of a sample, rounded up, float64 of the shape of the samples x [batch, *shape].

    InputError unless there are as many as a sample has values, and none is negative.
    """
    size = x[0].numel() if len(x) else len(radii)
    if len(radii) != size or min(radii) < 0:
        raise InputError(f"{len(radii)} radii, none negative, are stated for samples of {size} values; give one for each value")
    return torch.tensor([radius_up(one) for one in radii], dtype=torch.float64, device=x.device).view(x.shape[1:])


def ball(x: Tensor, radius: Fraction, clip: tuple[float, float] = (0.0, 1.0), radii: Sequence[Fraction] = ()) -> Box:
    """Returns a float64 box [batch, …] that contains every point of `clip` within `radius` of x in each coordinate.

    With `radii`, one for each value of a sample in C order, they take the place of `radius`; where one is 0 the box is x itself.

    x is float32 or float64 and finite, inside `clip` = (lowest, highest). Each end is the exact one rounded outward by at
    least one unit and then clipped (docs/numerics.md, section 1.2; the radius is rounded up first, since it may not be a double).
    InputError when x is not finite, lies outside `clip`, or the radius is negative.
    """
    wide = checked_centre(x, radius, clip)
    reach: float | Tensor = radii_up(radii, wide) if radii else radius_up(radius)
    down, up = torch.tensor(-inf, dtype=wide.dtype, device=wide.device), torch.tensor(inf, dtype=wide.dtype, device=wide.device)
    lower, upper = torch.nextafter(wide - reach, down), torch.nextafter(wide + reach, up)
    if isinstance(reach, Tensor):  # a feature that nothing may change is a point, not one rounding wide
        lower, upper = torch.where(reach == 0, wide, lower), torch.where(reach == 0, wide, upper)
    return lower.clamp(*clip), upper.clamp(*clip)


def inside(x: Tensor, x0: Tensor, radius: Fraction, clip: tuple[float, float] = (0.0, 1.0), radii: Sequence[Fraction] = ()) -> bool:
    """Returns whether x is exactly a member of the ball around x0 within `clip`; no rounding enters, NaN is never inside.

    x and x0 have one shape and any floating dtype. Differences are decided in float64 where its rounding error
    cannot matter, and in rational arithmetic at the boundary. `radii`, as of `ball`, are of one sample, or of each alike.
    """
    if x.shape != x0.shape or (radii and x.numel() % len(radii)):
        return False
    a, b = x.detach().to(torch.float64), x0.detach().to(torch.float64)
    if not bool((torch.isfinite(a) & torch.isfinite(b) & (a >= clip[0]) & (a <= clip[1])).all()):
        return False
    if radii:
        points = zip(a.flatten().tolist(), b.flatten().tolist(), cycle(radii), strict=False)
        return all(abs(Fraction(p) - Fraction(q)) <= most for p, q, most in points)
    reach = radius_up(radius)
    distance = (a - b).abs()
    if bool((distance > reach * (1 + 2.0**-40)).any()):
        return False
    rim = distance >= reach * (1 - 2.0**-40)
    pairs = torch.unique(torch.stack([a[rim], b[rim]], dim=1), dim=0)
    return all(abs(Fraction(p) - Fraction(q)) <= radius for p, q in pairs.tolist())


def inner_ball_float32(x: Tensor, radius: Fraction, clip: tuple[float, float] = (0.0, 1.0), radii: Sequence[Fraction] = ()) -> Box:
    """Returns the largest float32 box [batch, …] inside the exact ball: each of its float32 points is a true member.

    x and `radii` as for `ball`; `clip` is rounded inward too. Since x itself is a member, the box is never empty for a float32 x.
    """
    wide = checked_centre(x, radius, clip)
    if radii:
        radii_up(radii, wide)  # as many as there are values
        columns = [value.contiguous() for value in wide.flatten(1).unbind(1)]
        low = [-_largest_float32_below(-value, one, -clip[0]) for value, one in zip(columns, radii, strict=True)]
        high = [_largest_float32_below(value, one, clip[1]) for value, one in zip(columns, radii, strict=True)]
        return torch.stack(low, 1).view(x.shape), torch.stack(high, 1).view(x.shape)
    lower = -_largest_float32_below(-wide, radius, -clip[0])
    upper = _largest_float32_below(wide, radius, clip[1])
    return lower, upper


def nearest_float32(box: Box) -> tuple[Tensor, Tensor]:
    """Returns the largest float32 box inside a float64 one (its nearest float32 numbers where there is none)."""
    lower, upper = box[0].float(), box[1].float()
    ends = lower.new_full((), inf), lower.new_full((), -inf)
    lower = torch.where(lower.double() < box[0], torch.nextafter(lower, ends[0]), lower)
    upper = torch.where(upper.double() > box[1], torch.nextafter(upper, ends[1]), upper)
    return torch.minimum(lower, upper), upper


def _largest_float32_below(x: Tensor, radius: Fraction, limit: float) -> Tensor:
    """Returns the largest float32 values that are at most the exact min(x + radius, limit)."""
    values, index = torch.unique(x, return_inverse=True)
    reach = radius_up(radius)
    estimate = values + reach
    # |estimate − exact| is at most one unit in the last place of each operand and of the result.
    slack = (values.abs() + reach + estimate.abs()) * 2.0**-51 + 2.0**-1074
    low, high = _float32_down(estimate - slack), _float32_down(estimate + slack)
    for i in (low != high).nonzero().flatten().tolist():
        exact = Fraction(values[i].item()) + radius
        double = float(exact)
        double = nextafter(double, -inf) if Fraction(double) > exact else double
        low[i] = _float32_down(torch.tensor(double, dtype=torch.float64))
    top = _float32_down(torch.tensor(limit, dtype=torch.float64, device=x.device))
    return torch.minimum(low, top)[index]


def _float32_down(x: Tensor) -> Tensor:
    """Returns the largest float32 values that are at most x (float64)."""
    nearest = x.to(torch.float32)
    below = torch.nextafter(nearest, torch.tensor(-inf, dtype=torch.float32, device=x.device))
    return torch.where(nearest.to(torch.float64) > x, below, nearest)
