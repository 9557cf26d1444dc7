"""Documents that follow from claims: report.json, gates.json, curves, audits and the recipe.

Each is compared with what the claims add up to. `certificates` holds the content of each
certificate by its folder.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from vsparse_check.certificate import NUMBER, exact
from vsparse_check.files import read_any_json, read_file, read_json
from vsparse_check.refusal import need, reading

# The variants of the network that report and curves speak of, and their certificates.
VARIANTS = {"sparse": "certificate", "dense": "certificate/dense"}
GATES = {
    "certified accuracy": "certificate",
    "certified accuracy of the dense parent": "certificate/dense",
    "certified accuracy of fp16": "certificate/fp16",
    "certified accuracy of int8": "certificate/int8",
}
LOST = "certified accuracy lost to sparsity"
# The recipe's key for each of these gates, and how a gate words what is wanted.
ASKED = {
    "certified accuracy": ("certified_accuracy", "at least {:g} %"),
    "certified accuracy of the dense parent": ("dense_certified_accuracy", "at least {:g} %"),
    "certified accuracy of fp16": ("fp16_certified_accuracy", "at least {:g} %"),
    "certified accuracy of int8": ("int8_certified_accuracy", "at least {:g} %"),
    LOST: ("certified_loss", "at most {:g} points"),
    "weights removed physically": ("weights_removed", "at least {:g} %"),
}
AT_LEAST = re.compile(r"at least ([0-9.e+-]+) %")
AT_MOST = re.compile(r"at most ([0-9.e+-]+) points")
ACCURACIES = ("clean", "attacked", "certified")
MAX_RECIPE = 2**20
Content = dict[str, Any]
Certificates = Mapping[str, Content]


def check_documents(root: Path, files: set[str], certificates: Certificates) -> None:
    """Refuses documents that say other than the claims."""
    with reading("an artifact's documents"):
        recipe = None
        if "recipe.toml" in files:
            recipe = tomllib.loads(read_file(root / "recipe.toml", MAX_RECIPE).decode())
            check_recipe(recipe, certificates)
        for folder, content in certificates.items():
            for name, check in (("curve.json", check_curve), ("audit.json", check_audit)):
                if f"{folder}/{name}" in files:
                    check(f"{folder}/{name}", read_json(root / folder / name), content)
        gates = read_any_json(root / "gates.json") if "gates.json" in files else None
        if gates is not None:
            need(
                recipe is not None,
                "gates.json is there without recipe.toml, which says what is wanted",
            )
            check_gates(gates, certificates, (recipe or {}).get("gates", {}))
        if "report.json" in files:
            report = read_json(root / "report.json")
            ReportCheck(root, files, report, certificates).run(gates)


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
    if "norm" in wanted and wanted["norm"] != about["norm"]:
        return False
    sizes = [key for key in ("epsilon", "brightness", "contrast") if key in wanted]
    return all(exactly(str(wanted[key])) == exactly(about.get(key, "0")) for key in sizes)


# Curves.


class CurvePoint(NamedTuple):
    """Accuracies at one radius."""

    epsilon: Fraction
    clean: float
    attacked: float
    certified: float

    @property
    def accuracies(self) -> tuple[float, float, float]:
        """Returns the three accuracies."""
        return self.clean, self.attacked, self.certified


def check_curve(name: str, curve: Content, content: Content) -> None:
    """Refuses a curve that contradicts itself, or the claims at their radius.

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
    if samples == len(content["claims"]):
        for point in found:
            need(
                _agrees(point, radius, content),
                f"{name} contradicts the claims at radius {point.epsilon!s:.20}",
            )


def _curve_point(point: Content) -> CurvePoint:
    return CurvePoint(
        exactly(point["epsilon"]), *(point[f"{kind}_accuracy"] for kind in ACCURACIES)
    )


def _is_fraction(accuracy: float, samples: int) -> bool:
    return abs(accuracy * samples - round(accuracy * samples)) < 1e-6


def _agrees(point: CurvePoint, radius: Fraction, content: Content) -> bool:
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


# Gates.


def check_gates(gates: Any, certificates: Certificates, recipe: Content) -> None:
    """Refuses gates that say other than the claims, or have other limits than the recipe.

    `recipe` is the section of the recipe on gates.
    """
    need(isinstance(gates, list), "gates.json is no list")
    _check_limits(gates, recipe)
    for gate in gates:
        folder = GATES.get(gate["name"], "")
        if folder in certificates:
            _check_accuracy_gate(gate, certificates[folder])
        if gate["name"] == LOST and set(VARIANTS.values()) <= certificates.keys():
            _check_loss_gate(gate, certificates)
        if gate["name"] == "certificates":
            need(
                gate["got"] == f"all {len(certificates)} stand",
                "gates.json counts other certificates than there are",
            )


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


def _check_accuracy_gate(gate: Content, content: Content) -> None:
    """Refuses a certified accuracy, or a verdict on it, that the claims do not add up to."""
    name = f"gates.json: {gate['name']!s:.60}"
    accuracy = 100 * summary_accuracy(content, "certified_accuracy")
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


# The report.


def outcome(content: Content) -> Content:
    """Returns what a report says about one certificate, counted from its claims."""
    claims, about = content["claims"], content["property"]
    right = [claim for claim in claims if claim["predicted"] == claim["label"]]
    counts, total = Counter(claim["verdict"] for claim in right), len(claims)
    robust = len(right) - counts["falsified"]
    return {
        "samples": total,
        "correct": len(right),
        "withstood": robust,
        "certified": counts["certified"],
        "falsified": counts["falsified"],
        "unknown": counts["unknown"],
        "clean_share": len(right) / total,
        "attacked_share": robust / total,
        "certified_share": counts["certified"] / total,
        "epsilon": about["epsilon"],
        "norm": about["norm"],
        "clip": about["clip"],
        "brightness": about.get("brightness", "0"),
        "contrast": about.get("contrast", "0"),
        "epsilon_value": float(exactly(about["epsilon"])),
        "contract": content["contract"],
        "model_file": content["model"]["file"],
        "model_sha256": content["model"]["sha256"],
        "void_reason": content["void"],
        "margin_lower_median": _median_margin(right),
    }


def _median_margin(claims: list[Content]) -> float | None:
    margins = sorted(claim["margin_lower"] for claim in claims if claim["verdict"] == "certified")
    if not margins:
        return None
    return float((margins[(len(margins) - 1) // 2] + margins[len(margins) // 2]) / 2)


class ReportCheck:
    """report.json against the claims and the other files."""

    def __init__(
        self, root: Path, files: set[str], report: Content, certificates: Certificates
    ) -> None:
        self.root, self.files = root, files
        self.report, self.certificates = report, certificates

    def run(self, gates: Any) -> None:
        """Refuses a report that says of networks, curves, audits or gates other than the rest."""
        for variant, folder in VARIANTS.items():
            self._check_variant(variant, folder)
            self._check_curve(variant, folder)
        self._check_rows()
        for name in ("audit", "cross_check"):
            self._check_evidence(name)
        if gates is not None and "gates" in self.report:
            self._check_gates(gates)

    def _check_variant(self, variant: str, folder: str) -> None:
        """What it says of the network, or of its dense parent."""
        if variant not in self.report:
            return
        said, content = self.report[variant], self.certificates.get(folder)
        need((said is None) == (content is None), other_than(variant))
        if content is None:
            return
        need(same_value(said, outcome(content)), other_than(variant))
        rows = [
            {
                "samples": row["samples"],
                "correct": row["correct"],
                "withstood": row["attacked"],
                "certified": row["certified"],
            }
            for row in content["summary"]["classes"]
        ]
        need(same_value(said.get("classes", rows), rows), other_than(f"{variant}, classes"))
        counts = Counter((claim["method"], claim["verdict"]) for claim in content["claims"])
        for method in said.get("methods", []):
            for verdict in ("certified", "falsified", "unknown"):
                count = counts[method["name"], verdict]
                same = method.get(verdict, count) == count
                need(same, other_than(f"{variant}, methods"))

    def _check_curve(self, variant: str, folder: str) -> None:
        """What it repeats of a curve."""
        name, key = f"{folder}/curve.json", f"curve_{variant}"
        if key not in self.report or name not in self.files:
            return
        points = [
            {**point, **{f"{kind}_share": point.get(f"{kind}_accuracy") for kind in ACCURACIES}}
            for point in read_json(self.root / name)[variant]
        ]
        need(same_value(self.report[key], points), other_than(key))

    def _check_rows(self) -> None:
        """The row of each certificate."""
        folders = {f"{folder}/certificate.json": folder for folder in self.certificates}
        rows = {row["certificate_file"]: row for row in self.report.get("certificates", [])}
        need(not rows or rows.keys() == folders.keys(), other_than("certificates"))
        for file, row in rows.items():
            content = self.certificates[folders[file]]
            certified = [one for one in content["claims"] if one["verdict"] == "certified"]
            methods = dict(Counter(claim["method"] for claim in certified))
            wanted = outcome(content) | {
                "contract": content["contract"]["name"],
                "certified_file": content["model"]["file"],
                "certified_sha256": content["model"]["sha256"],
                "model_file": row.get("model_file"),
                "certified_by": methods,
            }
            same = same_value(row, wanted) and same_value(row.get("certified_by"), methods)
            need(same, other_than(f"certificates, {file}"))
            self._check_row_audit(file, row)

    def _check_row_audit(self, file: str, row: Content) -> None:
        """What the row of a certificate says of its audit."""
        audit = file.replace("certificate.json", "audit.json")
        if audit not in self.files:
            return
        found = read_json(self.root / audit)
        same = row.get("audit_passed") is found["passed"]
        same = same and row.get("audit_executions") == found.get("executions")
        same = same and row.get("audit_violations") == found.get("violations")
        need(same, other_than(f"the audit of {file}"))

    def _check_evidence(self, name: str) -> None:
        """What it repeats of the audit, and of the cross-check."""
        said = self.report.get(name)
        if f"certificate/{name}.json" not in self.files or said is None:
            return
        found = read_json(self.root / "certificate" / f"{name}.json")
        details = said.get("details", {})
        same = all(same_value(value, found.get(key)) for key, value in details.items())
        need(same and said["passed"] is found["passed"], other_than(name))

    def _check_gates(self, gates: list[Content]) -> None:
        """What it repeats of the gates, and the verdict over all."""
        need(self.report["gates"] == gates, other_than("gates"))
        passed = all(gate["passed"] for gate in gates) and not self.report.get("void_reasons")
        said = self.report.get("verdict") == "passed"
        need("verdict" not in self.report or said is passed, other_than("verdict"))


def other_than(part: str) -> str:
    """Returns what to say of a part of the report that does not follow."""
    return f"report.json: {part} is not what the claims and the other files say"
