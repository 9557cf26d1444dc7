"""Drift of the radius, by a one-sided cumulative sum of its ranks among those of calibration frames (Page, Biometrika 41, 1954)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from vsparse.errors import InputError

# A frame's mean rank must fall from 1/2 below 1/2 − ALLOWANCE for the sum to grow.
ALLOWANCE = 0.125
# Exceeded once in exp(3.2 · THRESHOLD) frames or more, on average, where frames are like those of the calibration (docs/live.md).
THRESHOLD = 5.0
LEAST = 20


class RadiusDrift:
    """The statistic S_t = max(0, S_{t−1} + ½ − p_t − ALLOWANCE), p_t the mid-rank in [0, 1] of frame t's radius among the calibration's.

    It stands at 0 while radii are as they were, grows by up to ⅜ a frame when they fall, and warns above THRESHOLD: after 14 frames whose
    radii are below all of the calibration, after about 40 whose mean rank has halved.
    """

    def __init__(self, calibration: Sequence[float]) -> None:
        """Takes radii of at least LEAST calibration frames; InputError where there are fewer."""
        if len(calibration) < LEAST:
            raise InputError(f"drift needs the radii of {LEAST} calibration frames, and there are {len(calibration)}; record more of them")
        self._sorted = sorted(float(value) for value in calibration)
        self.value = 0.0
        self.frames = 0
        self.warned_at: int | None = None

    @property
    def median(self) -> float:
        """The median radius of the calibration frames."""
        return self._sorted[len(self._sorted) // 2]

    @property
    def warns(self) -> bool:
        """Whether the statistic is above THRESHOLD now."""
        return self.value > THRESHOLD

    def rank(self, radius: float) -> float:
        """Returns the mid-rank of a radius among those of the calibration: the fraction below it, and half of those equal to it."""
        below, upto = bisect_left(self._sorted, radius), bisect_right(self._sorted, radius)
        return (below + upto) / (2 * len(self._sorted))

    def add(self, radius: float) -> float:
        """Returns the statistic after one more frame; `warned_at` keeps the number of the first one, from 0, at which it warns."""
        self.value = max(0.0, self.value + 0.5 - self.rank(radius) - ALLOWANCE)
        if self.warns and self.warned_at is None:
            self.warned_at = self.frames
        self.frames += 1
        return self.value
