"""The confidence interval beside each share of test samples, on the page and in report.json."""

from __future__ import annotations

from typing import Any

from vsparse.artifact.facts import Facts
from vsparse.artifact.live import LiveAnswers
from vsparse.artifact.outcome import NetworkOutcome
from vsparse.proportion import CONFIDENCE, clopper_pearson, interval_of_share, percent_span

Ends = tuple[float, float]
METHOD = "Clopper-Pearson"


def span(ends: Ends) -> str:
    """Returns an interval as `89.8–95.5 %`, its ends rounded outwards."""
    return f"{percent_span(*ends)} %"


def of_counts(successes: int, samples: int) -> str:
    """Returns the interval of a count as text; empty without samples."""
    return span(clopper_pearson(successes, samples)) if samples else ""


def of_share(share: float, samples: int) -> str:
    """Returns the interval of a share of so many samples as text; empty without samples."""
    return span(interval_of_share(share, samples)) if samples else ""


def of_outcome(outcome: NetworkOutcome | None) -> dict[str, Ends]:
    """Returns the intervals of a network's shares, by their keys in report.json."""
    if outcome is None:
        return {}
    counts = {"clean_share": outcome.correct, "attacked_share": outcome.robust, "certified_share": outcome.certified}
    return {name: clopper_pearson(count, outcome.samples) for name, count in counts.items()}


def as_json(facts: Facts) -> dict[str, Any]:
    """Returns all intervals: of both networks, their classes, the certificates, the curve, and what the device certifies by itself."""
    return {
        "confidence": CONFIDENCE,
        "method": METHOD,
        **{
            name: {key: list(ends) for key, ends in of_outcome(outcome).items()}
            | {"classes": [list(clopper_pearson(row.certified, row.samples)) if row.samples else None for row in outcome.classes]}
            for name, outcome in (("sparse", facts.sparse), ("dense", facts.dense))
            if outcome is not None
        },
        "certificates": [
            {
                "name": row.name,
                **{
                    key: list(interval_of_share(value, row.samples))
                    for key, value in (
                        ("clean_share", row.clean_accuracy),
                        ("attacked_share", row.robust_accuracy),
                        ("certified_share", row.certified_accuracy),
                    )
                },
            }
            for row in facts.certificates
        ],
        "curves": {
            name: [list(interval_of_share(point.certified_accuracy, curve.samples)) for point in curve.points]
            for name, curve in (("sparse", facts.curve_sparse), ("dense", facts.curve_dense))
            if curve is not None
        },
        "live": _of_live(facts.live),
        "live_int8": None if facts.live is None else _of_live(facts.live.int8),
    }


def _of_live(found: LiveAnswers | None) -> dict[str, list[float]] | None:
    if found is None:
        return None
    at = found.at_epsilon
    return {"certified": list(clopper_pearson(at.certified, at.samples)), "right": list(clopper_pearson(at.right, at.samples))}
