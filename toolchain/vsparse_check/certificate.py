"""A certificate that agrees with itself: its hash, its claims, its summary and its property."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vsparse_check.files import read_json
from vsparse_check.limits import ResourceBudget
from vsparse_check.refusal import need, reading
from vsparse_check.region import ClaimedRegion

NUMBER = re.compile(
    r"[0-9]{1,12}(\.[0-9]{1,24})?(e-?[0-9]{1,2})?|[0-9]{1,12} ?/ ?[0-9]{1,12}", re.IGNORECASE
)
INTERVAL, CROWN_IBP, CROWN = "interval", "crown-ibp", "crown"
ALPHA_CROWN, BRANCH_AND_BOUND = "alpha-crown", "branch-and-bound"
PHOTOMETRIC = "photometric-split"
METHODS = (INTERVAL, CROWN_IBP, CROWN, ALPHA_CROWN, BRANCH_AND_BOUND, PHOTOMETRIC)
VERDICTS = ("certified", "falsified", "unknown")
NOT_HASHED = ("time_ms", "certificate_sha256")


class ClassCounts(NamedTuple):
    """How many claims are about samples of one class, and what they say."""

    samples: int
    correct: int
    attacked: int  # classified correctly, and not falsified
    certified: int


def digest(content: dict[str, Any]) -> str:
    """Returns the certificate's hash: SHA-256 of its canonical JSON.

    Without `time_ms` and `certificate_sha256`, at any depth.
    """

    def kept(value: Any) -> Any:
        """Returns a value without the keys that are not hashed, at any depth."""
        if isinstance(value, dict):
            return {key: kept(item) for key, item in value.items() if key not in NOT_HASHED}
        return [kept(item) for item in value] if isinstance(value, list) else value

    with reading("certificate.json"):
        text = json.dumps(
            kept(content),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        return hashlib.sha256(text.encode()).hexdigest()


def read_certificate(
    path: Path, budget: ResourceBudget | None = None
) -> tuple[dict[str, Any], ClaimedRegion]:
    """Returns a certificate whose parts agree with each other, and the region it is about.

    Raises Refuted, which names the first thing that does not agree.
    """
    content = read_json(path, budget)
    with reading(path.name):
        need(
            digest(content) == content["certificate_sha256"],
            "the certificate was changed: its content does not have its hash",
        )
        void = content["void"]
        need(
            content["schema_version"] == 1 and void == "",
            f"the certificate is of an unknown version, or void: {void!s:.200}",
        )
        seen = set[int]()
        for claim in content["claims"]:
            _check_claim(claim, content, seen)
            seen.add(claim["id"])
        _check_summary(content)
        return content, _claimed_region(**content["property"])


def _check_claim(claim: dict[str, Any], content: dict[str, Any], seen: set[int]) -> None:
    """Refuses a claim that is malformed, about another certificate, or certified without cause."""
    number, label = claim["id"], claim["label"]
    typed = all(type(value) is int for value in (number, label, claim["predicted"]))
    once = typed and number not in seen and claim["verdict"] in VERDICTS
    need(
        once and number >= 0 and 0 <= label < len(content["data"]["classes"]),
        f"the claim about sample {number!s:.20} is there twice, or is none",
    )
    same = all(claim[key] == content[key] for key in ("model", "property"))
    need(
        same and claim["contract"] == content["contract"]["name"],
        f"the claim about sample {number} is about another model, property or contract",
    )
    _check_regression(claim, content)
    margin, method = claim["margin_lower"], claim["method"]
    positive = type(margin) is float and 0 < margin < np.inf
    sound = positive and claim["predicted"] == label and method in METHODS
    need(
        claim["verdict"] != "certified" or sound,
        f"sample {number} is called certified with margin {margin!s:.20} by method {method!s:.20}",
    )


def _check_regression(claim: dict[str, Any], content: dict[str, Any]) -> None:
    """Refuses a claim of a number in a certificate of classes, and the other way."""
    number, regression = claim["id"], is_regression(content)
    stated = {key for key in ("value", "target") if claim.get(key) is not None}
    need(regression or not stated, f"sample {number} has a target, and delta is not stated")
    if not regression:
        return
    finite = all(type(claim[key]) is float and np.isfinite(claim[key]) for key in stated)
    answered = claim["predicted"] == (0 if "value" in stated else -1)
    need(
        "target" in stated and finite and answered,
        f"sample {number} has no target, or its answer is no number",
    )
    of_change = claim["method"] in (INTERVAL, CROWN_IBP, CROWN)
    need(
        claim["label"] == 0 and (of_change or claim["verdict"] != "certified"),
        f"sample {number}: a change of an answer is not certified by {claim['method']!s:.20}",
    )


def is_regression(content: dict[str, Any]) -> bool:
    """Returns whether a certificate is about the change of a number, and not about a class."""
    return "delta" in content["property"]


def count_classes(claims: list[dict[str, Any]], classes: int) -> list[ClassCounts]:
    """Returns the counts of each class."""
    counted = [Counter[str]() for _ in range(classes)]
    for claim in claims:
        correct, verdict = claim["predicted"] == claim["label"], claim["verdict"]
        counted[claim["label"]].update(
            samples=1,
            correct=correct,
            attacked=correct and verdict != "falsified",
            certified=verdict == "certified",
        )
    return [ClassCounts(*(count[field] for field in ClassCounts._fields)) for count in counted]


def _check_summary(content: dict[str, Any]) -> None:
    """Refuses counts and accuracies that are not what the claims add up to."""
    claims, summary = content["claims"], content["summary"]
    rows = count_classes(claims, len(content["data"]["classes"]))
    total = ClassCounts(*(sum(column) for column in zip(*rows, strict=True)))
    verdicts = Counter(claim["verdict"] for claim in claims)
    expected = {
        **{verdict: verdicts[verdict] for verdict in VERDICTS},
        "samples": total.samples,
        "correct": total.correct,
        "clean_accuracy": total.correct / total.samples,
        "attacked_accuracy": total.attacked / total.samples,
        "certified_accuracy": total.certified / total.samples,
    }
    stated = [ClassCounts(*(row[key] for key in ClassCounts._fields)) for row in summary["classes"]]
    wrong = [key for key, value in expected.items() if summary[key] != value]
    need(
        stated == rows and not wrong,
        f"the accuracies and counts of the summary are not what the claims add up to: {wrong}",
    )


def exact(text: str) -> Fraction:
    """Returns the number that a text states exactly, such as 0.1, 1e-3 or 8/255."""
    return Fraction(text.replace(" ", ""))


def _claimed_region(
    norm: str,
    epsilon: str,
    clip: list[float],
    brightness: str = "0",
    contrast: str = "0",
    scales: Sequence[str] = (),
    delta: str | None = None,
) -> ClaimedRegion:
    """Returns the region; Refuted where a size is not exact, or the data range is none."""
    need(
        isinstance(scales, list | tuple) and all(isinstance(scale, str) for scale in scales),
        "the property's scales are no list of exact numbers",
    )
    sizes = (epsilon, brightness, contrast, *scales, *([] if delta is None else [delta]))
    need(
        norm in ("linf", "l2", "l1") and all(map(NUMBER.fullmatch, sizes)),
        "the property is no region of an exact size that is known",
    )
    low, high = clip
    numbers = {type(low), type(high)} <= {int, float}
    need(numbers and -np.inf < low <= high < np.inf, f"the data range {clip!s:.60} is none")
    data_range = (float(low), float(high))
    most = None if delta is None else exact(delta)
    need(most is None or most > 0, "delta, the most that the answer may change, is not above 0")
    found = ClaimedRegion(
        norm,
        exact(epsilon),
        exact(brightness),
        exact(contrast),
        data_range,
        tuple(exact(scale) for scale in scales),
        most,
    )
    need(
        not scales or (norm == "linf" and found.is_ball and any(found.scales)),
        "the property states radii of single inputs, and is no plain l∞ ball, or none is above 0",
    )
    return found
