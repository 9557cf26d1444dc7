"""gates.json against the claims, and against the limits of the recipe."""

from __future__ import annotations

import re
from typing import Any

from vsparse_check.comparison import (
    VARIANTS,
    Certificates,
    Content,
    exactly,
    summary_accuracy,
)
from vsparse_check.layout import PRECISIONS
from vsparse_check.refusal import need

GATES = {
    "certified accuracy": "certificate",
    "certified accuracy of the dense parent": "certificate/dense",
    **{f"certified accuracy of {name}": f"certificate/{name}" for name in PRECISIONS},
}
LOST = "certified accuracy lost to sparsity"
BY_DEVICE = "live certified accuracy"
# The recipe's key for each of these gates, and how a gate words what is wanted.
ASKED = {
    "certified accuracy": ("certified_accuracy", "at least {:g} %"),
    "certified accuracy of the dense parent": ("dense_certified_accuracy", "at least {:g} %"),
    **{
        f"certified accuracy of {name}": (f"{name}_certified_accuracy", "at least {:g} %")
        for name in PRECISIONS
    },
    LOST: ("certified_loss", "at most {:g} points"),
    BY_DEVICE: ("live_certified_accuracy", "at least {:g} %"),
    "weights removed physically": ("weights_removed", "at least {:g} %"),
}
CROSS_CHECK = "cross-check with auto_LiRPA"
# How its reason begins where it was not run, and how a note and a gate say that it has no answer.
NOT_RUN, NO_OPINION = "not run: ", "no second opinion: "
TOLERANCE = 1e-4
AT_LEAST = re.compile(r"at least ([0-9.e+-]+) %")
AT_MOST = re.compile(r"at most ([0-9.e+-]+) points")


def check_gates(
    gates: Any, certificates: Certificates, recipe: Content, live: Content | None
) -> None:
    """Refuses gates that say other than the claims, or have other limits than the recipe.

    `recipe` is the section of the recipe on gates, `live` what live.json holds of the form in C
    that is deployed.
    """
    need(isinstance(gates, list), "gates.json is no list")
    _check_limits(gates, recipe)
    for gate in gates:
        folder = GATES.get(gate["name"], "")
        if folder in certificates:
            found = summary_accuracy(certificates[folder], "certified_accuracy")
            _check_accuracy_gate(gate, found)
        if gate["name"] == BY_DEVICE and live is not None:
            counted = live["at_epsilon"]
            _check_accuracy_gate(gate, counted["right"] / counted["samples"])
        if gate["name"] == LOST and set(VARIANTS.values()) <= certificates.keys():
            _check_loss_gate(gate, certificates)
        if gate["name"] == "certificates":
            need(
                gate["got"] == f"all {len(certificates)} stand",
                "gates.json counts other certificates than there are",
            )


def check_cross_check(
    gates: Any, found: Content | None, content: Content | None, recipe: Content
) -> None:
    """Refuses a cross-check that its record contradicts, or that is left out.

    `found` is what cross_check.json holds, and `content` the certificate of the deployed network,
    whose note says why there was none. One that was not run is open, and never passed.
    """
    judged = [gate for gate in gates if gate["name"] == CROSS_CHECK]
    asked = recipe.get("verify", {}).get("cross_check")
    whole = content is not None and any(gate["name"] == "certificates" for gate in gates)
    of_classes = content is not None and "delta" not in content["property"]
    if whole and content is not None and asked and of_classes and _is_box(content["property"]):
        need(judged, f"gates.json leaves out the {CROSS_CHECK}, which recipe.toml asks for")
    need(len(judged) <= 1, f"gates.json has the {CROSS_CHECK} twice")
    note = "" if content is None else content.get("note", "")
    if found is None:
        none = all(gate["passed"] is False for gate in judged)
        need(none, f"gates.json: there is no record of the {CROSS_CHECK}")
        return
    reason, passed = found["reason"], found["passed"]
    need(passed is None or type(passed) is bool, "cross_check.json has no verdict")
    if content is not None:
        told = f"{NO_OPINION}{reason}" in note if passed is None else NO_OPINION not in note
        need(told, _contradicted("the note of the certificate"))
        need(passed is not False or content["void"], _contradicted("the certificate"))
        if passed:
            _check_comparison(found, content, asked)
    if passed is None:
        need(reason, "cross_check.json does not say why there is no second opinion")
        passed = None if reason.startswith(NOT_RUN) else True
        got = reason.rstrip(".")
        got = got if passed is None else f"{NO_OPINION}{got}"
        need(all(gate["got"] == got for gate in judged), _contradicted("gates.json"))
    need(all(gate["passed"] is passed for gate in judged), _contradicted("gates.json"))


def _check_comparison(found: Content, content: Content, asked: int | None) -> None:
    """Refuses a comparison that passed on other numbers than one that passes has."""
    samples, rows = found["samples"], found["bounds_compared"]
    margins = len(content["summary"]["classes"]) - 1
    counted = type(samples) is int and samples >= 1 and rows == samples * margins
    counted = counted and (asked is None or samples <= asked)
    need(counted, "cross_check.json passed without a comparison")
    need(found["tolerance"] == TOLERANCE, "cross_check.json has another tolerance")
    excess = (found["largest_excess"], found["largest_excess_with_rounding"])
    small = all(type(one) in (int, float) and one <= TOLERANCE for one in excess)
    need(small, "cross_check.json passed with bounds that contradict the second verifier's")


def _is_box(about: Content) -> bool:
    """Returns whether a property is a plain l∞ ball, the only one that is cross-checked."""
    changed = any(exactly(about.get(key, "0")) for key in ("brightness", "contrast"))
    return about["norm"] == "linf" and not changed


def _contradicted(by: str) -> str:
    return f"cross_check.json is contradicted by {by}"


def _check_limits(gates: list[Content], recipe: Content) -> None:
    """Refuses other limits than the recipe has, and gates of the recipe that are left out."""
    judged = {gate["name"]: gate["wanted"] for gate in gates}
    for name, (key, wording) in ASKED.items():
        asked = wording.format(100 * recipe[key]) if recipe.get(key) else None
        need(
            judged.get(name, asked) == asked or key not in recipe,
            f"gates.json: {name} is judged by another limit than recipe.toml has",
        )
        need(
            asked is None or name in judged,
            f"gates.json leaves out a gate of recipe.toml: {name}",
        )


def _check_accuracy_gate(gate: Content, found: float) -> None:
    """Refuses a certified accuracy, or a verdict on it, that the claims do not add up to."""
    name = f"gates.json: {gate['name']!s:.60}"
    accuracy = 100 * found
    least = _limit(AT_LEAST, gate, f"{accuracy:.2f} %", name)
    passes = accuracy >= least - 1e-9
    need(gate["passed"] is passes, f"{name} is said to pass, or fail")


def _check_loss_gate(gate: Content, certificates: Certificates) -> None:
    """Refuses a loss to sparsity, or a verdict on it, that the claims do not add up to."""
    name = f"gates.json: {LOST}"
    dense, sparse = (
        summary_accuracy(certificates[VARIANTS[variant]], "certified_accuracy")
        for variant in ("dense", "sparse")
    )
    lost = 100 * (dense - sparse)
    most = _limit(AT_MOST, gate, f"{lost:.2f} points", name)
    passes = lost <= most + 1e-9
    need(gate["passed"] is passes, f"{name} is said to pass, or fail")


def _limit(wording: re.Pattern[str], gate: Content, got: str, name: str) -> float:
    """Returns the limit of a gate; Refuted where it is worded otherwise, or got is another."""
    found = wording.fullmatch(gate["wanted"])
    need(found and gate["got"] == got, f"{name} is not what the claims add up to")
    assert found
    return float(found[1])
