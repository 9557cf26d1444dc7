"""What documents and claims are compared by: numbers, exact numbers, accuracies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from vsparse_check.certificate import NUMBER, exact
from vsparse_check.refusal import need

# The variants of the network that report and curves speak of, and their certificates.
VARIANTS = {"sparse": "certificate", "dense": "certificate/dense"}
ACCURACIES = ("clean", "attacked", "certified")
Content = dict[str, Any]  # of a JSON object
Certificates = Mapping[str, Content]  # the content of each certificate by its folder


def same_value(found: Any, wanted: Any) -> bool:
    """Returns whether two values are the same, numbers within what a division may round.

    Of objects, those keys are compared that both have.
    """
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if isinstance(wanted, float) and number:
        return math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(same_value(found[key], wanted[key]) for key in wanted if key in found)
    if isinstance(wanted, list) and isinstance(found, list):
        pairs = zip(found, wanted, strict=False)
        return len(found) == len(wanted) and all(same_value(*pair) for pair in pairs)
    return bool(found == wanted)


def exactly(text: str) -> Fraction:
    """Returns an exact number; Refuted where a text is none."""
    fits = isinstance(text, str) and NUMBER.fullmatch(text)
    need(fits, f"{text!s:.40} is no exact number")
    return exact(text)


def summary_accuracy(content: Content, name: str) -> float:
    """Returns an accuracy of a certificate's summary."""
    return float(content["summary"][name])
