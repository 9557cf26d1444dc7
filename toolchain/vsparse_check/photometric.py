"""Claims by `photometric-split`: brightness and contrast in equal pieces, each with its own box.

The claim says how many pieces [N, M] of [−B, B] and of [−C, C] there are; everything else follows
(docs/reference-certificate.md, step 6).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from vsparse_check.arrays import FloatArray, Interval
from vsparse_check.bounds import Bounds
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model
from vsparse_check.refusal import need
from vsparse_check.region import ClaimedRegion, SampleRegions, over_box
from vsparse_check.samples import at_once

MOST_PIECES, AT_ONCE = 65_536, 64


class PieceCounts(NamedTuple):
    """How many pieces there are."""

    brightness: int
    contrast: int

    @property
    def total(self) -> int:
        """Returns how many there are in all; number k has those of `of`."""
        return self.brightness * self.contrast


class PhotometricPieces(SampleRegions):
    """Boxes [n, size] of some pieces of the region around x [1, size], each a box region.

    In the piece with b in [b0, b1] and c in [c0, c1] every v lies within ε of x0 + b + c·(x0 −
    1/2), coordinate by coordinate; it is clipped to the data range, moves by at most ρ, and stays
    within the data range.
    """

    def __init__(
        self, claimed: ClaimedRegion, x: FloatArray, counts: PieceCounts, pieces: range
    ) -> None:
        """Takes x [1, size] and the numbers of the pieces, k·M + l for the parts k of b, l of c."""
        super().__init__(claimed, np.repeat(x, len(pieces), axis=0))
        b = parts_of(claimed.brightness, counts.brightness, [k // counts.contrast for k in pieces])
        c = parts_of(claimed.contrast, counts.contrast, [k % counts.contrast for k in pieces])
        self.is_box, self.before = True, self._before_clipping(x, b, c)
        low, high = (np.clip(end, *claimed.clip) for end in self.before)
        self.box = Interval(
            np.clip(np.nextafter(low - self.rho, -np.inf), *claimed.clip),
            np.clip(np.nextafter(high + self.rho, np.inf), *claimed.clip),
        )
        # What is executed beside the bounds must lie in the piece, and the sample itself lies in
        # one of them alone.
        self.x = np.clip((self.box.lower + self.box.upper) * 0.5, *self.box)

    def _before_clipping(self, x: FloatArray, b: Interval, c: Interval) -> Interval:
        """Returns [x + b0 + min(c0·t, c1·t) − ε, x + b1 + max(c0·t, c1·t) + ε], t = x − 1/2."""
        t = x - 0.5
        b_size = np.maximum(np.abs(b.lower), np.abs(b.upper))
        c_size = np.maximum(np.abs(c.lower), np.abs(c.upper))
        size = np.abs(x) + b_size + c_size * (np.abs(t) + 1e-15) + self.epsilon
        slack = 1e-14 * size  # far more than the errors of these few sums and products
        tilted = c.lower * t, c.upper * t
        lower = x + b.lower + np.minimum(*tilted) - self.epsilon - slack
        upper = x + b.upper + np.maximum(*tilted) + self.epsilon + slack
        return Interval(lower, upper)

    def least(self, a: FloatArray, g: float) -> FloatArray:
        """Returns lower bounds [r] of a·x over the box of the one piece, or of one piece each."""
        return over_box(a, self.box, g)


def parts_of(most: Fraction, count: int, parts: list[int]) -> Interval:
    """Returns the ends [n, 1] of parts of [−most, most] cut into so many, rounded outward.

    float() rounds to nearest, so that one number further is outside.
    """
    lower = [float(Fraction(2 * part, count) * most - most) for part in parts]
    upper = [float(Fraction(2 * (part + 1), count) * most - most) for part in parts]
    return Interval(np.nextafter(lower, -np.inf)[:, None], np.nextafter(upper, np.inf)[:, None])


def pieces_of(claim: dict[str, Any], claimed: ClaimedRegion) -> PieceCounts:
    """Returns how many pieces a claim says; Refuted where that is no number of pieces."""
    stated = claim.get("pieces")
    numbers = list(stated) if isinstance(stated, list) else []
    typed = len(numbers) == 2 and all(type(one) is int and one >= 1 for one in numbers)
    fits = typed and numbers[0] * numbers[1] <= MOST_PIECES
    need(fits, f"{stated!s:.40} are no numbers of pieces")
    need(not claimed.is_ball, "there is no brightness or contrast to cut into pieces")
    return PieceCounts(int(numbers[0]), int(numbers[1]))


def least_margin(
    model: Model,
    errors: ErrorTerms,
    claimed: ClaimedRegion,
    x: FloatArray,
    label: int,
    pieces: tuple[int, int],
    margin: float,
) -> float:
    """Returns a lower bound of all margins over the region around x [1, size].

    The least of all pieces; it stops at the first piece that stays below `margin`. Each piece by
    interval arithmetic with the rows folded into the last layers, and where that is not enough by
    one backward pass too.
    """
    counts = PieceCounts(*pieces)
    least, step = np.inf, min(AT_ONCE, at_once(model))
    for start in range(0, counts.total, step):
        some = range(start, min(start + step, counts.total))
        together = Bounds(model, errors, PhotometricPieces(claimed, x, counts, some), refine=False)
        labels = np.full(len(some), label)
        folded = together.margins(labels, fold_only=True)[1].reshape(len(some), -1)
        for piece, found in zip(some, folded, strict=True):
            if not found.min() >= margin:
                alone = PhotometricPieces(claimed, x, counts, range(piece, piece + 1))
                bounds = Bounds(model, errors, alone, refine=False)
                passed = bounds.margins(np.array([label]), fold_only=False)[1]
                found = np.maximum(found, passed)
            finite = np.nan_to_num(found, nan=-np.inf)
            least = min(least, float(finite.min(initial=np.inf)))
            if not least >= margin:
                return least
    return least
