"""Documents that follow from claims: the recipe, curves, audits, gates and the report."""

from __future__ import annotations

import tomllib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from vsparse_check.choice_check import check_choice
from vsparse_check.comparison import (
    ACCURACIES,
    VARIANTS,
    Certificates,
    Content,
    exactly,
    same_value,
    summary_accuracy,
)
from vsparse_check.device_results import read_results
from vsparse_check.files import read_any_json, read_file, read_json
from vsparse_check.gate_check import check_cross_check, check_gates
from vsparse_check.live import LIVE
from vsparse_check.measured import check_device_gates, check_measured
from vsparse_check.refusal import need, reading
from vsparse_check.report_check import ReportCheck, check_device_part, check_requirements
from vsparse_check.results_check import check_results
from vsparse_check.target_check import check_named_target, check_target, read_target

MAX_RECIPE = 2**20
CROSS_CHECKED = "certificate/cross_check.json"


def check_documents(root: Path, files: set[str], certificates: Certificates) -> None:
    """Refuses documents that say other than the claims."""
    with reading("an artifact's documents"):
        recipe, target = None, Content()
        if "recipe.toml" in files:
            recipe = tomllib.loads(read_file(root / "recipe.toml", MAX_RECIPE).decode())
            check_recipe(recipe, certificates)
        if "target.toml" in files:
            target = read_target(root)
            check_target(target, certificates, recipe or {})
            check_named_target(root, files, target)
        for folder, content in certificates.items():
            name = f"{folder}/curve.json"
            if name in files:
                whole = _is_whole(root, files, recipe or {}, len(content["claims"]))
                check_curve(name, read_json(root / name), content, whole)
            name = f"{folder}/audit.json"
            if name in files:
                check_audit(name, read_json(root / name), content)
        gates = read_any_json(root / "gates.json") if "gates.json" in files else None
        if gates is not None:
            need(
                recipe is not None,
                "gates.json is there without recipe.toml, which says what is wanted",
            )
            check_gates(gates, certificates, (recipe or {}).get("gates", {}), _live(root, files))
        crossed = read_json(root / CROSS_CHECKED) if CROSS_CHECKED in files else None
        check_cross_check(gates or [], crossed, certificates.get("certificate"), recipe or {})
        check_results(root, files, target)
        check_device_gates(root, files, gates, target, recipe)
        if "choice.json" in files:
            choice = read_json(root / "choice.json")
            check_choice(choice, certificates, gates, recipe)
            check_measured(root, files, choice, target, recipe or {})
        if "report.json" in files:
            report = read_json(root / "report.json")
            ReportCheck(root, files, report, certificates).run(gates)
            check_requirements(report.get("requirements"), gates, recipe or {})
            check_device_part(report.get("device"), read_results(root, files), recipe or {})


def _live(root: Path, files: set[str]) -> Content | None:
    """Returns what the form in C that is deployed certifies by itself; None where none is told.

    That is model.int8.c where choice.json chooses it, and else model.c.
    """
    if LIVE not in files:
        return None
    live: Content = read_json(root / LIVE)
    chosen = read_json(root / "choice.json")["chosen"] if "choice.json" in files else ""
    return live.get("int8", live) if chosen == "int8-c" else live


# The recipe.


def check_recipe(recipe: Content, certificates: Certificates) -> None:
    """Refuses certificates about another property or contract than the recipe asks for.

    Those of the network and of its dense parent.
    """
    wanted = recipe.get("property", {})
    contract = recipe.get("verify", {}).get("contract")
    for folder in VARIANTS.values():
        if folder not in certificates:
            continue
        content = certificates[folder]
        need(
            _same_region(wanted, content["property"]),
            f"{folder} is about another norm or size of the change than recipe.toml asks for",
        )
        need(
            contract in (None, "", content["contract"]["name"]),
            f"{folder} is about another contract than recipe.toml asks for",
        )
        count = len(content["claims"])
        most = wanted.get("samples", 0) or count
        need(count <= most, f"{folder} has more claims than recipe.toml asks for")


def _same_region(wanted: Content, about: Content) -> bool:
    """Returns whether a property has the norm and the exact sizes that the recipe asks for."""
    if "norm" in wanted and wanted["norm"] != about["norm"]:
        return False
    stated = [[exactly(str(one)) for one in of.get("scales", ())] for of in (wanted, about)]
    if stated[0] != stated[1]:
        return False
    names = ("epsilon", "brightness", "contrast")
    sizes: list[str] = [key for key in names if key in wanted]
    # A delta that is left out is none: it says which kind of property is asked for.
    deltas = [exactly(str(one.get("delta", "0"))) for one in (wanted, about)]
    sizes += ["delta"] if deltas[0] != deltas[1] else []
    return all(exactly(str(wanted.get(key, "0"))) == exactly(about.get(key, "0")) for key in sizes)


# Curves.


class StatedAccuracies(NamedTuple):
    """Accuracies at one radius."""

    epsilon: Fraction
    clean: float
    attacked: float
    certified: float

    @property
    def accuracies(self) -> tuple[float, float, float]:
        """Returns the three accuracies."""
        return self.clean, self.attacked, self.certified


def _is_whole(root: Path, files: set[str], recipe: Content, claims: int) -> bool:
    """Returns whether claims are about a whole split, as far as is told.

    Claims are about its first samples, and a curve is drawn on some that are evenly spaced: where
    there are as many of both they are the same ones only if they are all.
    """
    most = recipe.get("property", {}).get("samples", 0)
    if claims != most or "train/data.json" not in files:
        return True
    return bool(read_json(root / "train/data.json")["splits"]["test"]["samples"] == claims)


def check_curve(name: str, curve: Content, content: Content, whole: bool) -> None:
    """Refuses a curve that contradicts itself, or claims about a `whole` split at their radius.

    Accuracies are fractions of `samples`, and fall as the radius grows. A sample certified at a
    radius is so at smaller ones, one falsified so at larger ones; so for radii up to that of the
    claims at least as many are certified, and from it on no more are robust or certified than are
    robust there.
    """
    samples, radius = curve["samples"], exactly(content["property"]["epsilon"])
    need(type(samples) is int and samples > 0, f"{name} is about no number of samples")
    points: list[Content] = next((curve[key] for key in VARIANTS if key in curve), [])
    found = [_curve_point(point) for point in points]
    stated = [point["epsilon_value"] for point in points]
    same = same_value(stated, [float(point.epsilon) for point in found])
    need(same, f"{name} gives a radius in two ways")
    for point in found:
        counted = all(_is_fraction(accuracy, samples) for accuracy in point.accuracies)
        need(
            counted and 0 <= point.certified <= point.attacked <= point.clean <= 1,
            f"{name} has accuracies that are no fractions of {samples} samples",
        )
    for before, after in pairwise(found):
        falls = before.epsilon < after.epsilon and before.clean == after.clean
        falls = falls and before.attacked >= after.attacked
        need(
            falls and before.certified >= after.certified,
            f"{name} rises with the radius, or its clean accuracy changes",
        )
    if whole and samples == len(content["claims"]):
        for point in found:
            need(
                _agrees(point, radius, content),
                f"{name} contradicts the claims at radius {point.epsilon!s:.20}",
            )


def _curve_point(point: Content) -> StatedAccuracies:
    """Returns a point of a curve, its radius exact."""
    return StatedAccuracies(
        exactly(point["epsilon"]), *(point[f"{kind}_accuracy"] for kind in ACCURACIES)
    )


def _is_fraction(accuracy: float, samples: int) -> bool:
    """Returns whether an accuracy is k / samples, k a whole number, up to float64's rounding."""
    return abs(accuracy * samples - round(accuracy * samples)) < 1e-6


def _agrees(point: StatedAccuracies, radius: Fraction, content: Content) -> bool:
    """Returns whether a point of a curve is consistent with the claims at their radius."""
    attacked = summary_accuracy(content, "attacked_accuracy")
    certified = summary_accuracy(content, "certified_accuracy")
    if not same_value(point.clean, summary_accuracy(content, "clean_accuracy")):
        return False
    if point.epsilon <= radius and point.certified < certified - 1e-9:
        return False
    robust = max(point.attacked, point.certified)
    return point.epsilon < radius or robust <= attacked + 1e-9


# Audits.


def check_audit(name: str, audit: Content, content: Content) -> None:
    """Refuses an audit that contradicts itself, or is about another contract or more samples."""
    passed, violations = audit.get("passed"), audit.get("violations")
    consistent = passed is (violations == 0) and (passed or content["void"])
    need(consistent, f"{name} says that it passed {passed} with {violations} violations")
    contract = content["contract"]
    # What runs is never exact, so that an audit of `real` is one of another contract.
    same = contract["storage"] == "real" or audit.get("contract") == contract["name"]
    need(same, f"{name} is about another contract")
    few = 0 < audit.get("samples", 1) <= len(content["claims"])
    need(
        few and audit.get("executions", 1) > 0,
        f"{name} is about other samples than there are",
    )
