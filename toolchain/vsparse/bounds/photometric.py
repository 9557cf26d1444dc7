"""Brightness and contrast cut into equal pieces, each bounded over the box of its inputs.

One b and one c move every coordinate of a sample; a box around all changes loses that dependency. Within a small piece of
[−B, B] × [−C, C] little of it is lost. A proof states only the number of pieces (docs/reference-certificate.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import inf, nextafter

import torch
from torch import Tensor

from vsparse.bounds.ball import Box, radius_up
from vsparse.bounds.crown import crown
from vsparse.bounds.executions import Executions
from vsparse.bounds.float64 import TINY, UNIT64
from vsparse.bounds.interval import interval
from vsparse.bounds.last_layers import last_layer_folding
from vsparse.bounds.margins import lowest_margin, margin_rows
from vsparse.bounds.rounding import Rounding
from vsparse.compute_device import reading_back, to_host
from vsparse.perturbation import PerturbationSet

# Numbers of pieces to try in turn: where one of the two changes, and in each direction where both do.
ONE, BOTH = (16, 64, 256), (8, 16, 32)
AT_ONCE = 64
Pieces = tuple[int, int]


def attempts(perturbation: PerturbationSet) -> list[Pieces]:
    """Returns the numbers of pieces (of brightness, of contrast) to try for a region that has one of them at least, few first."""
    if perturbation.brightness and perturbation.contrast:
        return [(n, n) for n in BOTH]
    return [(n, 1) if perturbation.brightness else (1, n) for n in ONE]


def piece_boxes(x: Tensor, perturbation: PerturbationSet, pieces: Pieces, first: int, count: int) -> Box:
    """Returns boxes float64 [count, *shape] that contain the pieces first … first + count − 1 of the region around x [1, *shape].

    Piece i·M + j of N × M: b from −B + 2B·i/N to −B + 2B·(i+1)/N and c likewise. There v lies within ε of x0 + b + c·(x0 − 1/2), which is
    clipped, moved by ρ and clipped again. The ends of b and c are exact and
    rounded outward once; the sums by more than their rounding error. They are made on the processor, where x is.
    """
    wide = x.detach().to(torch.float64)
    spans = [
        [_span(most, number, index) for index in indices]
        for most, number, indices in zip(
            (perturbation.brightness, perturbation.contrast),
            pieces,
            ([i // pieces[1] for i in range(first, first + count)], [i % pieces[1] for i in range(first, first + count)]),
            strict=True,
        )
    ]
    shape = (count, *[1] * (wide.dim() - 1))
    b, c = ([torch.tensor(side, dtype=torch.float64).view(shape) for side in zip(*ends, strict=True)] for ends in spans)
    epsilon, tilt = radius_up(perturbation.epsilon), wide - 0.5
    turned = torch.stack([tilt * c[0], tilt * c[1]])
    # Five roundings at most, each of no more than the sum of all magnitudes.
    slack = (wide.abs() + b[0].abs().maximum(b[1].abs()) + turned.abs().amax(0) + epsilon) * (16 * UNIT64) + TINY
    lower, upper = wide + b[0] + turned.amin(0) - epsilon - slack, wide + b[1] + turned.amax(0) + epsilon + slack
    rho, clip = perturbation.rounding, perturbation.clip
    down, up = lower.new_tensor(-inf), lower.new_tensor(inf)
    return (
        torch.nextafter(lower.clamp(*clip) - rho, down).clamp(*clip),
        torch.nextafter(upper.clamp(*clip) + rho, up).clamp(*clip),
    )


def _span(most: Fraction, number: int, index: int) -> tuple[float, float]:
    """Returns (lower, upper), rounded outward, of part `index` of [−most, most] cut into `number` equal ones."""
    low, high = (-most + 2 * most * k / number for k in (index, index + 1))
    lower, upper = float(low), float(high)
    return (
        nextafter(lower, -inf) if Fraction(lower) > low else lower,
        nextafter(upper, inf) if Fraction(upper) < high else upper,
    )


def lowest_of_pieces(x: Tensor, label: int, perturbation: PerturbationSet, pieces: Pieces, rounding: Rounding) -> float:
    """Returns a lower bound of min over j ≠ label of z_label − z_j over the region around x [1, *shape], −inf where none is positive.

    Each piece is bounded by interval arithmetic with the rows folded into the last layers, and where that is not positive also by one
    backward pass (CROWN) over the interval boxes, row by row the larger; the least of all pieces counts. It ends with the first piece
    that neither proves. SoundnessError where an executed point contradicts a bound.
    """
    least = inf
    graph = rounding.graph
    for boxes, box, rows in _batches(x, label, perturbation, pieces, rounding):
        bounds = last_layer_folding(graph, rounding.params, rows, boxes, rounding)
        with reading_back("the pieces that are open"):
            open_ = (bounds.amin(1) <= 0).nonzero().flatten()
        if len(open_):
            mine = {name: (one[0][open_], one[1][open_]) for name, one in boxes.items()}
            part = box[0][open_], box[1][open_]
            bounds[open_] = torch.fmax(bounds[open_], crown(graph, rounding.params, part, rows[open_], mine, rounding))
        _check(rounding, boxes, box, rows, bounds)
        least = min(least, float(to_host(lowest_margin(bounds)).min()))
        if not least > 0:
            return -inf
    return least


def _check(rounding: Rounding, boxes: dict[str, Box], box: Box, rows: Tensor, bounds: Tensor) -> None:
    """Executes the middle of each piece in float64; SoundnessError where a value leaves its box, or a row falls below its bound."""
    middle = torch.minimum(torch.maximum((box[0] + box[1]) * 0.5, box[0]), box[1])
    executions = Executions.of(rounding.graph, rounding.params, middle)
    executions.check(boxes, "interval bounds of a piece of brightness and contrast")
    executions.check_rows(rows, bounds, "the margins of a piece of brightness and contrast")


def _batches(
    x: Tensor, label: int, perturbation: PerturbationSet, pieces: Pieces, rounding: Rounding
) -> Iterator[tuple[dict[str, Box], Box, Tensor]]:
    """Yields interval boxes, the boxes of the inputs and the rows of some pieces at a time."""
    total = pieces[0] * pieces[1]
    classes = rounding.graph.node(rounding.graph.output).size
    for first in range(0, total, AT_ONCE):
        count = min(AT_ONCE, total - first)
        lower, upper = piece_boxes(x, perturbation, pieces, first, count)
        box = lower.to(rounding.device), upper.to(rounding.device)
        rows = margin_rows(torch.full((count,), label), classes).to(rounding.device)
        yield interval(rounding.graph, rounding.params, box, rounding), box, rows
