"""Linear relaxations of ReLU, max-pooling and quantisation: a row of coefficients at the output becomes one at the input."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsparse_check.integers import WHOLE
from vsparse_check.op import Array, Ints, Op
from vsparse_check.rounding import FLOOR, Box, dot, largest

HALF = 0.5 + 2.0**-10  # from a step to where the next one must be taken


def relu(a: Array, box: Box, slopes: tuple[NDArray[np.bool_], NDArray[np.uint8]] | None, sets: Ints, terms: list[Array]) -> Array:
    """Relaxes ReLU on [l, u], l < 0 < u: α·x <= ReLU(x) <= s·x + t; any α in [0, 1], by default 1 if u > −l else 0; s = u / (u − l).

    t is raised until the line, with s as computed, is above ReLU at l and at u; ReLU is convex, so it is above it between them.
    """
    lower, upper = box
    unstable, active = (lower < 0) & (upper > 0), (lower >= 0).astype(np.float64)
    span = np.where(unstable, upper - lower, 1)
    slope = np.where(unstable, np.clip(upper / span, 0, 1), active)
    intercept = np.where(unstable, np.maximum(-slope * lower, upper - slope * upper) + 1e-15 * span, 0)
    alpha = np.where(unstable, upper > -lower, active)
    if slopes and slopes[0].any():
        listed, named = np.flatnonzero(slopes[0]), np.flatnonzero(sets >= 0)
        chosen = np.broadcast_to(alpha, a.shape).astype(np.float64)
        chosen[np.ix_(named, listed)] = slopes[1][sets[named]] / 255.0
        alpha = np.where(unstable, chosen, alpha)
    below = np.minimum(a, 0)
    terms.append(dot(below, intercept))
    return np.asarray((a - below) * alpha + below * slope)


def strongest(op: Op, a: Array, box: Box, terms: list[Array]) -> Array:
    """Relaxes a maximum: at least the input with the highest lower bound; at most that one if no other can exceed it, else max u."""
    best, choice = np.full((1, op.size), -np.inf), np.zeros((1, op.size), dtype=np.int64)
    top, others = best.copy(), best.copy()
    pairs = zip(op.views(box[0], -np.inf), op.views(box[1], -np.inf), strict=True)
    highest = best.copy()  # the highest upper bound of the present choice
    for place, (low, high) in enumerate((one.reshape(1, -1), other.reshape(1, -1)) for one, other in pairs):
        better = low > best
        others = np.maximum(others, np.where(better, highest, high))  # of those that are not chosen
        highest, choice, best = np.where(better, high, highest), np.where(better, place, choice), np.where(better, low, best)
        top = np.maximum(top, high)
    below = np.where(best >= others, 0, np.minimum(a, 0))
    terms += [below @ np.maximum(top, 0)[0], below @ np.minimum(top, 0)[0]]
    taps = int(np.prod(op.kernel))
    return op.scattered((np.where(choice == place, a - below, 0) for place in range(taps)), len(a))


def steps(op: Op, box: Box) -> Box:
    """Returns the least and greatest step that a device may round x / scale to; its own error and ours are below 2^-10 inside the clamp."""
    scale, first, last, _ = op.grid
    low, high = np.clip(np.ceil(box[0] / scale - HALF), first, last), np.clip(np.floor(box[1] / scale + HALF), first, last)
    wild = largest(box) >= scale * WHOLE
    return np.where(wild, first, low), np.where(wild, last, high)


def staircase(op: Op, a: Array, box: Box, terms: list[Array]) -> Array:
    """Relaxes scale · step(x) by lines with the slopes of those around clip(x); any slope in [0, 1] is sound with these intercepts.

    A step k above the least is taken for x >= scale·(k − HALF) only, and scale·k − slope·x does not fall with k there, so the line above
    needs the greatest k at its least x, and the least k at l; the line below likewise.
    """
    (lower, upper), (low, high), (scale, *ends, _) = box, steps(op, box), op.grid
    start, end = (np.clip(side, scale * ends[0], scale * ends[1]) for side in box)
    inside, flat, middle = (start == lower) & (end == upper), (high <= low + 1) | (start == end), (lower + upper) * 0.5
    below, above = (
        np.where(flat, 0, np.where(inside, 1, np.where(wanted, np.clip((end - start) / np.maximum(run, FLOOR), 0, 1), 0)))
        for wanted, run in ((middle > start, upper - start), (middle < end, end - lower))
    )
    wild = largest(box) >= scale * WHOLE
    below, above = np.where(wild, 0, below), np.where(wild, 0, above)
    slack = 1e-15 * (largest(box) + scale * largest((low, high))) + FLOOR
    over = np.maximum(scale * high - above * np.maximum(lower, scale * (high - HALF)), scale * low - above * lower) + slack
    under = np.minimum(scale * low - below * np.minimum(upper, scale * (low + HALF)), scale * high - below * upper) - slack
    positive, negative = np.maximum(a, 0), np.minimum(a, 0)
    terms += [dot(positive, under), dot(negative, over)]
    return np.asarray(positive * below + negative * above)
