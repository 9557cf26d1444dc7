"""Claims by the method `photometric-split`: brightness and contrast cut into equal pieces, each with a box of its own.

The claim says how many pieces [N, M] of [−B, B] and of [−C, C] there are; everything else follows (docs/reference-certificate.md). In the
piece with b in [b0, b1] and c in [c0, c1] every v lies within ε of x0 + b + c·(x0 − 1/2), coordinate by coordinate; it is clipped to the
data range, moves by at most ρ, and stays within the data range.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from vsparse_check.bounds import Bounds
from vsparse_check.model import Network
from vsparse_check.op import Array
from vsparse_check.refusal import need
from vsparse_check.region import Property, Region, over_box
from vsparse_check.rounding import Box, Rounding
from vsparse_check.samples import at_once

METHOD = "photometric-split"
MOST_PIECES, AT_ONCE = 65_536, 64


class Pieces(Region):
    """Boxes [n, size] of some pieces of the region around x [1, size]: box regions, one a sample."""

    def __init__(self, of: Property, x: Array, pieces: tuple[int, int], places: range) -> None:
        super().__init__(of, np.repeat(x, len(places), axis=0))
        ends = []
        for most, number, place in (
            (of.brightness, pieces[0], [k // pieces[1] for k in places]),
            (of.contrast, pieces[1], [k % pieces[1] for k in places]),
        ):
            exact = [[Fraction(2 * (one + side), number) * most - most for one in place] for side in (0, 1)]
            # float() rounds to nearest, so one step further is outside.
            ends.append(
                [np.nextafter([float(end) for end in row], far)[:, None] for row, far in zip(exact, (-np.inf, np.inf), strict=True)]
            )
        (b0, b1), (c0, c1) = ends
        tilt = x - 0.5
        epsilon = self.reach[0]
        size = np.abs(x) + np.maximum(np.abs(b0), np.abs(b1)) + np.maximum(np.abs(c0), np.abs(c1)) * (np.abs(tilt) + 1e-15) + epsilon
        slack = 1e-14 * size  # far more than these few sums and products lose
        lower = x + b0 + np.minimum(c0 * tilt, c1 * tilt) - epsilon - slack
        upper = x + b1 + np.maximum(c0 * tilt, c1 * tilt) + epsilon + slack
        self.is_box, self.before = True, (lower, upper)
        low, high = (np.clip(end, *of.clip) for end in self.before)
        self.box: Box = (
            np.clip(np.nextafter(low - self.rho, -np.inf), *of.clip),
            np.clip(np.nextafter(high + self.rho, np.inf), *of.clip),
        )
        # What is executed beside the bounds must lie in the piece, as the sample itself does in one of them alone.
        self.x = np.clip((self.box[0] + self.box[1]) * 0.5, *self.box)

    def least(self, a: Array, g: float) -> Array:
        """Returns lower bounds [r] of a · x over the box of the one piece, or of one piece each."""
        return over_box(a, self.box, g)


def pieces_of(claim: dict[str, Any], allowed: Property) -> tuple[int, int]:
    """Returns how many pieces of brightness and of contrast a claim says; Refused where that is no number of pieces."""
    stated = claim.get("pieces")
    numbers = list(stated) if isinstance(stated, list) else []
    right = len(numbers) == 2 and all(type(one) is int and one >= 1 for one in numbers)
    need(right and numbers[0] * numbers[1] <= MOST_PIECES, f"{stated!s:.40} are no numbers of pieces")
    need(bool(allowed.brightness or allowed.contrast), "there is no brightness or contrast to cut into pieces")
    return int(numbers[0]), int(numbers[1])


def lowest(network: Network, rounding: Rounding, allowed: Property, x: Array, label: int, pieces: tuple[int, int], margin: float) -> float:
    """Returns a lower bound of all margins over the region around x [1, size], and stops at the first piece that stays below `margin`.

    Each piece by interval arithmetic with the rows folded into the last layers, and where that is not enough by one backward pass too.
    """
    least, step = np.inf, min(AT_ONCE, at_once(network))
    for start in range(0, pieces[0] * pieces[1], step):
        places = range(start, min(start + step, pieces[0] * pieces[1]))
        whole = Bounds(network, rounding, Pieces(allowed, x, pieces, places), refine=False)
        found = whole.margins(np.full(len(places), label), fold_only=True)[1].reshape(len(places), -1)
        for k, folded in enumerate(found):
            if not folded.min() >= margin:
                one = Bounds(network, rounding, Pieces(allowed, x, pieces, range(places[k], places[k] + 1)), refine=False)
                folded = np.maximum(folded, one.margins(np.array([label]), fold_only=False)[1])
            least = min(least, float(np.nan_to_num(folded, nan=-np.inf).min(initial=np.inf)))
            if not least >= margin:
                return least
    return least
