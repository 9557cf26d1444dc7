"""What the network answers to single points, in every execution that a contract allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse_check.arrays import Interval
from vsparse_check.bounds import Bounds
from vsparse_check.change import answers, certainly_within
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model
from vsparse_check.refusal import Refuted, need
from vsparse_check.region import ClaimedRegion, SampleRegions, point_in
from vsparse_check.samples import Inputs, at_once, input_sha256

OPEN = -1  # the class where rounding leaves it open
WITHIN = 1 - 2.0**-20  # of a radius: a corner in float32 then lies inside the exact ball
EVERYTHING = float(np.finfo(np.float32).max)
POINT = point_in((-EVERYTHING, EVERYTHING))  # no data range clips


class Predictor:
    """The classes of points under one contract, by interval bounds around each."""

    def __init__(self, model: Model, contract: Mapping[str, str]) -> None:
        """Takes the contract of a certificate.

        Predictions under `real` are those of a runtime all the same, so of fp32 or one on integers.
        """
        if contract["storage"] == "real":
            contract = CONTRACTS[model.tensors.quantised.contract if model.grids else "fp32"]
        self.model, self.errors = model, ErrorTerms(model, contract)

    def predicted(self, points: NDArray[np.float32]) -> NDArray[np.int64]:
        """Returns the class of each point [n, size], OPEN where rounding leaves it open."""
        found, step = [np.zeros(0, dtype=np.int64)], at_once(self.model)
        for start in range(0, len(points), step):
            some = points[start : start + step].astype(np.float64)
            found.append(self._classes(some))
        return np.concatenate(found)

    def _classes(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """Returns the class whose logit is certainly the largest, OPEN where none is."""
        bounds = Bounds(self.model, self.errors, SampleRegions(POINT, points), refine=False)
        lower, upper = bounds.boxes[self.model.output]
        best = lower.argmax(axis=1)
        others = upper.copy()
        others[np.arange(len(points)), best] = -np.inf
        return np.where(lower.max(axis=1) > others.max(axis=1), best, OPEN)

    def answers(self, points: NDArray[np.float32]) -> Interval:
        """Returns an enclosure, each end [n], of the one answer to each point [n, size]."""
        return answers(self.model, self.errors, points.astype(np.float64))

    def broken_by_one_step(
        self, xs: NDArray[np.float32], labels: list[int], claimed: ClaimedRegion
    ) -> int:
        """Returns how many samples of an l∞ ball one step of the gradient certainly breaks.

        The step goes from the sample to the corner of the ball that the gradient of the margin to
        the next class points away from.
        """
        corners = xs.copy()
        radius = np.array([float(one) for one in claimed.radii(xs.shape[1])]) * WITHIN
        for index, (x, label) in enumerate(zip(xs.astype(np.float64), labels, strict=True)):
            step = radius * np.sign(self._margin_gradient(x, label))
            corners[index] = np.clip(x - step, *claimed.clip)
        predicted = self.predicted(corners)
        return int(((predicted != OPEN) & (predicted != np.array(labels))).sum())

    def _margin_gradient(self, x: NDArray[np.float64], label: int) -> NDArray[np.float64]:
        """Returns the gradient at x [size] of z_label − z_j, j the largest other logit."""
        region = SampleRegions(POINT, x[None])
        bounds = Bounds(self.model, self.errors, region, refine=False)
        logits = bounds.executed.value(self.model.output)[0].copy()
        unit = np.eye(len(logits))
        logits[label] = -np.inf
        row = unit[label] - unit[int(logits.argmax())]
        return np.asarray(bounds.slopes_at_input(row[None])[0])


def check_counterexamples(
    arrays: dict[str, Any],
    claims: Mapping[int, dict[str, Any]],
    claimed: ClaimedRegion,
    predictor: Predictor,
) -> Inputs:
    """Returns the samples of the falsified claims; Refuted where a counterexample is none.

    Each lies in its region and is not classified as its label. A point of an l∞ ball is compared
    in rational arithmetic; of other regions only what lies outside of the box around them is
    refused.
    """
    if not arrays:
        return {}
    originals: Inputs = {}
    predicted = predictor.predicted(arrays["inputs"])
    region = SampleRegions(claimed, arrays["originals"].astype(np.float64))
    both = (arrays["originals"], arrays["inputs"])
    for index, number in enumerate(arrays["ids"].tolist()):
        claim, x, point = claims.get(number), arrays["originals"][index], arrays["inputs"][index]
        if claim is None or claim["verdict"] != "falsified":
            raise Refuted(f"counterexamples.npz is about sample {number}, which is not falsified")
        same = input_sha256(x) == claim["input_sha256"]
        need(
            same and arrays["labels"][index] == claim["label"],
            f"counterexamples.npz holds another input or label of sample {number} "
            "than the claim is about",
        )
        inside = bool(
            ((point >= region.box.lower[index]) & (point <= region.box.upper[index])).all()
        )
        if inside and region.is_box:
            inside = _in_ball(point, x, claimed.radii(len(x)))
        need(inside, f"the counterexample of sample {number} does not lie in its region")
        if claimed.delta is not None:
            pair = [predictor.answers(array[index : index + 1]) for array in both]
            need(
                not certainly_within(pair[0], pair[1], claimed.delta),
                f"the counterexample of sample {number} changes the answer by no more than delta",
            )
        need(
            claimed.delta is not None or predicted[index] != claim["label"],
            f"the counterexample of sample {number} is classified as its label, {claim['label']}",
        )
        originals[number] = x
    return originals


def _in_ball(point: NDArray[np.float32], x: NDArray[np.float32], radii: Sequence[Fraction]) -> bool:
    """Returns whether a point lies in the l∞ ball around x, exactly; one radius a coordinate."""
    return all(
        abs(Fraction(float(p)) - Fraction(float(v))) <= radius
        for p, v, radius in zip(point, x, radii, strict=True)
    )
