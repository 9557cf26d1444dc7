"""Each verdict derived again: by intervals, by rows passed to the input, over refined boxes."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from vsparse_check.arrays import FloatArray
from vsparse_check.bounds import Bounds
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model
from vsparse_check.refusal import need
from vsparse_check.region import ClaimedRegion, SampleRegions, point_in
from vsparse_check.samples import Inputs, at_once


class RecordedVerdict(NamedTuple):
    """One recorded answer: on the sample `id` at radius `epsilon`, and the radius found for it."""

    id: int
    epsilon: float
    label: int
    certified: bool
    margin: float
    radius: float


class CertifyingForm(NamedTuple):
    """A network in C that certifies: what its file and its answers are called, what they follow."""

    source: str
    where: str
    model: str
    contract: str
    certificate: str


class VerdictReplay:
    """Derives verdicts again, under the contract of the C, from its network."""

    def __init__(
        self, form: CertifyingForm, model: Model, inputs: Inputs, clip: tuple[float, ...]
    ) -> None:
        """Takes a form, its network, inputs [size] by sample id, and the data range."""
        self.where = form.where
        self.model, self.inputs, self.clip = model, inputs, (clip[0], clip[1])
        self.errors = ErrorTerms(model, CONTRACTS[form.contract])

    def run(self, verdicts: list[RecordedVerdict]) -> tuple[int, int, int]:
        """Returns the counts of verdicts, all of which are confirmed; raises at the first other.

        All of them, those that certify, and those of which interval bounds alone do.
        """
        low, high = self.clip
        for one in verdicts:
            x = self.inputs.get(one.id)
            need(
                x is not None, f"{self.where}: sample {one.id}: inputs.npz does not hold its input"
            )
            need(
                not one.certified or one.epsilon <= high - low,
                f"{self.where}: sample {one.id}: its radius is above the data range",
            )
            silent = not one.certified and one.radius == -1
            need(
                silent or self._is_inside(one),
                f"{self.where}: sample {one.id}: its input lies outside the data range",
            )
            need(
                one.label < self.model.size_of_output,
                f"{self.where}: sample {one.id}: no such class",
            )
        told = [one for one in verdicts if one.label >= 0 and self._is_inside(one)]
        self._check_points(told)
        certified = [one for one in verdicts if one.certified]
        by_interval = self._derive(certified, [one.margin for one in certified], "margin")
        reached = [one._replace(epsilon=one.radius) for one in told if one.radius >= 0]
        self._derive(reached, [float(np.nextafter(0, 1))] * len(reached), "margin at its radius")
        return len(verdicts), len(certified), by_interval

    def _is_inside(self, one: RecordedVerdict) -> bool:
        """Returns whether a sample consists of numbers within the data range."""
        x = self.inputs[one.id]
        return bool(((x >= self.clip[0]) & (x <= self.clip[1])).all())

    def _check_points(self, verdicts: list[RecordedVerdict]) -> None:
        """Refuses a class that is certainly another one, and a margin above the sample's own.

        A sample lies in its region: no lower bound is above the margin of an execution on it.
        """
        step = at_once(self.model)
        for start in range(0, len(verdicts), step):
            some = verdicts[start : start + step]
            lower, upper = self._bounds(some, Fraction(0), False).boxes[self.model.output]
            rows, labels = np.arange(len(some)), np.array([one.label for one in some])
            own, others = upper[rows, labels], lower.copy()
            others[rows, labels] = -np.inf
            most = own - others.max(axis=1)
            most = most + 1e-12 * (np.abs(own) + np.abs(others.max(axis=1)))
            for one, largest in zip(some, most.tolist(), strict=True):
                name = f"{self.where}: sample {one.id}"
                need(not largest < 0, f"{name}: it is not classified as {one.label}")
                need(
                    not one.margin > largest,
                    f"{name}: its own margin is at most {largest:.6g}, and {one.margin:.6g} is "
                    "recorded as a lower bound",
                )

    def _derive(self, verdicts: list[RecordedVerdict], margins: list[float], what: str) -> int:
        """Returns how many of the margins interval bounds confirm; Refuted where none does.

        Where these are weaker than what is recorded, rows passed backward to the input decide, then
        rows over refined boxes: each is a proof.
        """
        by_interval, step = 0, at_once(self.model)
        radii = sorted({one.epsilon for one in verdicts})
        for radius in radii:
            pairs = [
                pair for pair in zip(verdicts, margins, strict=True) if pair[0].epsilon == radius
            ]
            for start in range(0, len(pairs), step):
                some = pairs[start : start + step]
                least = self._by_interval([one for one, _ in some], Fraction(radius))
                for (one, margin), found in zip(some, least.tolist(), strict=True):
                    if found >= margin:
                        by_interval += 1
                        continue
                    self._by_rows(one, margin, found, what)
        return by_interval

    def _by_interval(self, verdicts: list[RecordedVerdict], radius: Fraction) -> FloatArray:
        """Returns the least margins [n] by interval arithmetic.

        With rows folded at the end, or as the difference of two logits' own ends: the larger holds.
        """
        bounds = self._bounds(verdicts, radius, False)
        labels = np.array([one.label for one in verdicts])
        folded = bounds.margins(labels, fold_only=True)[1].reshape(len(verdicts), -1).min(axis=1)
        lower, upper = bounds.boxes[self.model.output]
        rows, others = np.arange(len(labels)), upper.copy()
        others[rows, labels] = -np.inf
        plain = np.nextafter(lower[rows, labels] - others.max(axis=1), -np.inf)
        return np.asarray(np.fmax(folded, plain))

    def _by_rows(self, one: RecordedVerdict, margin: float, found: float, what: str) -> None:
        """Confirms a margin by rows passed to the input; Refuted where these are weaker, too."""
        for refine in (False, True):
            bounds = self._bounds([one], Fraction(one.epsilon), refine)
            rows = bounds.margins(np.array([one.label]), fold_only=False)[1]
            found = max(found, float(rows.min()))
            if found >= margin:
                return
        need(
            False,
            f"{self.where}: sample {one.id}: its {what} is at least {found:.6g} by interval and "
            f"linear bounds, and {margin:.6g} is recorded",
        )

    def _bounds(self, verdicts: list[RecordedVerdict], radius: Fraction, refine: bool) -> Bounds:
        """Returns bounds over the regions of a radius around the samples of some verdicts."""
        claimed = ClaimedRegion("linf", radius, Fraction(0), Fraction(0), self.clip)
        if not radius:
            claimed = point_in(self.clip)
        xs = np.stack([self.inputs[one.id] for one in verdicts]).astype(np.float64)
        return Bounds(self.model, self.errors, SampleRegions(claimed, xs), refine)
