"""Documents that follow from claims: report.json, gates.json, the curve and the recipe, compared with what the claims add up to."""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from vsparse_check.certificate import NUMBER, read_any_json, read_file, read_json
from vsparse_check.refusal import need, reading

ROLES = {"sparse": "certificate", "dense": "certificate/dense"}
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
Certificates = Mapping[str, dict[str, Any]]


def check_documents(root: Path, files: set[str], certificates: Certificates) -> None:
    """Refuses documents that say other than the claims; `certificates` holds the content of each by its folder."""
    with reading("an artifact's documents"):
        recipe = tomllib.loads(read_file(root / "recipe.toml", 2**20).decode()) if "recipe.toml" in files else None
        if recipe is not None:
            _recipe(recipe, certificates)
        for folder, content in certificates.items():
            if f"{folder}/curve.json" in files:
                _curve(f"{folder}/curve.json", read_json(root / folder / "curve.json"), content)
            if f"{folder}/audit.json" in files:
                _audit(f"{folder}/audit.json", read_json(root / folder / "audit.json"), content)
        gates = read_any_json(root / "gates.json") if "gates.json" in files else None
        if gates is not None:
            need(recipe is not None, "gates.json is there without recipe.toml, which says what is wanted")
            _gates(gates, certificates, (recipe or {}).get("gates", {}))
        if "report.json" in files:
            _report(root, files, read_json(root / "report.json"), certificates, gates)


def _same(got: Any, wanted: Any) -> bool:
    """Returns whether two values are the same, numbers within what division may round."""
    if isinstance(wanted, float) and isinstance(got, int | float) and not isinstance(got, bool):
        return math.isclose(got, wanted, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(wanted, dict) and isinstance(got, dict):
        return all(_same(got[key], value) for key, value in wanted.items() if key in got)
    if isinstance(wanted, list) and isinstance(got, list):
        return len(got) == len(wanted) and all(_same(one, other) for one, other in zip(got, wanted, strict=True))
    return bool(got == wanted)


def _exact(text: str) -> Fraction:
    need(isinstance(text, str) and NUMBER.fullmatch(text), f"{text!s:.40} is no exact number")
    return Fraction(text.replace(" ", ""))


def _share(content: dict[str, Any], name: str) -> float:
    return float(content["summary"][name])


def _recipe(recipe: dict[str, Any], certificates: Certificates) -> None:
    """The recipe's property and contract are those of the certificates of the network and of its parent."""
    wanted, rules = recipe.get("property", {}), recipe.get("verify", {}).get("contract")
    for folder in ROLES.values():
        if folder in certificates:
            about, content = certificates[folder]["property"], certificates[folder]
            same = "norm" not in wanted or wanted["norm"] == about["norm"]
            for key in ("epsilon", "brightness", "contrast"):
                same = same and (key not in wanted or _exact(str(wanted[key])) == _exact(about.get(key, "0")))
            need(same, f"{folder} is about another norm or size of the change than recipe.toml asks for")
            need(rules in (None, "", content["contract"]["name"]), f"{folder} is about another contract than recipe.toml asks for")
            count = wanted.get("samples", 0) or len(content["claims"])
            need(len(content["claims"]) <= count, f"{folder} has more claims than recipe.toml asks for")


def _curve(name: str, curve: dict[str, Any], content: dict[str, Any]) -> None:
    """Shares are of `samples`, fall as the radius grows, and agree with the claims at the claims' radius where the samples are the same.

    A sample certified at a radius is so at smaller ones, one falsified so at larger ones; so for radii up to that of the claims at least
    as many are certified, and from it on no more withstand or are certified than withstand there.
    """
    samples, radius = curve["samples"], _exact(content["property"]["epsilon"])
    need(type(samples) is int and samples > 0, f"{name} is about no number of samples")
    points: list[dict[str, Any]] = next((curve[role] for role in ROLES if role in curve), [])
    of = [(_exact(point["epsilon"]), *(point[f"{kind}_accuracy"] for kind in ("clean", "attacked", "certified"))) for point in points]
    need(_same([point["epsilon_value"] for point in points], [float(epsilon) for epsilon, *_ in of]), f"{name} gives a radius in two ways")
    for _, clean, attacked, certified in of:
        whole = all(abs(share * samples - round(share * samples)) < 1e-6 for share in (clean, attacked, certified))
        need(whole and 0 <= certified <= attacked <= clean <= 1, f"{name} has accuracies that are no shares of {samples} samples")
    for before, after in pairwise(of):
        falls = before[0] < after[0] and before[1] == after[1] and before[2] >= after[2] and before[3] >= after[3]
        need(falls, f"{name} rises with the radius, or its clean accuracy changes")
    if samples != len(content["claims"]):
        return
    attacked, certified = _share(content, "attacked_accuracy"), _share(content, "certified_accuracy")
    for epsilon, clean, withstood, proved in of:
        fits = _same(clean, _share(content, "clean_accuracy"))
        fits = fits and (epsilon > radius or proved >= certified - 1e-9) and (epsilon < radius or max(withstood, proved) <= attacked + 1e-9)
        need(fits, f"{name} contradicts the claims at radius {epsilon!s:.20}")


def _audit(name: str, audit: dict[str, Any], content: dict[str, Any]) -> None:
    """An audit that passed counts no violation and is about the certificate's contract, and about no more samples than there are."""
    passed, violations = audit.get("passed"), audit.get("violations")
    need(passed is (violations == 0) and (passed or content["void"]), f"{name} says that it passed {passed} with {violations} violations")
    same = content["contract"]["storage"] == "real" or audit.get("contract") == content["contract"]["name"]
    need(same, f"{name} is about another contract")  # what runs is never exact, so that an audit of `real` is one of another contract
    few = 0 < audit.get("samples", 1) <= len(content["claims"]) and audit.get("executions", 1) > 0
    need(few, f"{name} is about other samples than there are")


def _gates(gates: Any, certificates: Certificates, recipe: dict[str, Any]) -> None:
    """Gates on certified accuracy say what the claims add up to, and pass where it is at least what was wanted: what the recipe wants."""
    need(isinstance(gates, list), "gates.json is no list")
    judged = {gate["name"]: gate["wanted"] for gate in gates}
    for name, (key, wording) in ASKED.items():
        asked = wording.format(100 * recipe[key]) if recipe.get(key) else None
        need(judged.get(name, asked) == asked or key not in recipe, f"gates.json: {name} is judged by another limit than recipe.toml has")
        need(asked is None or name in judged, f"gates.json leaves out a gate of recipe.toml: {name}")
    for gate in gates:
        folder = GATES.get(gate["name"], "")
        if folder in certificates:
            share, least = _share(certificates[folder], "certified_accuracy"), re.fullmatch(r"at least ([0-9.e+-]+) %", gate["wanted"])
            need(least and gate["got"] == f"{100 * share:.2f} %", f"gates.json: {gate['name']!s:.60} is not what the claims add up to")
            assert least
            need(gate["passed"] is (100 * share >= float(least[1]) - 1e-9), f"gates.json: {gate['name']!s:.60} is said to pass, or fail")
        if gate["name"] == LOST and set(ROLES.values()) <= certificates.keys():
            dense, sparse = (_share(certificates[folder], "certified_accuracy") for folder in ("certificate/dense", "certificate"))
            most = re.fullmatch(r"at most ([0-9.e+-]+) points", gate["wanted"])
            need(most and gate["got"] == f"{100 * (dense - sparse):.2f} points", f"gates.json: {LOST} is not what the claims add up to")
            assert most
            need(gate["passed"] is (100 * (dense - sparse) <= float(most[1]) + 1e-9), f"gates.json: {LOST} is said to pass, or fail")
        if gate["name"] == "certificates":
            need(gate["got"] == f"all {len(certificates)} stand", "gates.json counts other certificates than there are")


def outcome(content: dict[str, Any]) -> dict[str, Any]:
    """Returns what a report says about one certificate, counted from its claims."""
    claims, about = content["claims"], content["property"]
    right = [claim for claim in claims if claim["predicted"] == claim["label"]]
    counts, total = Counter(claim["verdict"] for claim in right), len(claims)
    margins = sorted(claim["margin_lower"] for claim in right if claim["verdict"] == "certified")
    middle = (margins[(len(margins) - 1) // 2] + margins[len(margins) // 2]) / 2 if margins else None
    return {
        "samples": total,
        "correct": len(right),
        "withstood": len(right) - counts["falsified"],
        **{verdict: counts[verdict] for verdict in ("certified", "falsified", "unknown")},
        "clean_share": len(right) / total,
        "attacked_share": (len(right) - counts["falsified"]) / total,
        "certified_share": counts["certified"] / total,
        **{key: about[key] for key in ("epsilon", "norm", "clip")},
        **{key: about.get(key, "0") for key in ("brightness", "contrast")},
        "epsilon_value": float(_exact(about["epsilon"])),
        "contract": content["contract"],
        "model_file": content["model"]["file"],
        "model_sha256": content["model"]["sha256"],
        "void_reason": content["void"],
        "margin_lower_median": middle,
    }


def _report(root: Path, files: set[str], report: dict[str, Any], certificates: Certificates, gates: Any) -> None:
    """report.json says of networks, certificates, curves, audits and gates what the other files say."""
    for role, folder in ROLES.items():
        if role in report:
            there = (report[role] is not None) == (folder in certificates)
            need(there and (report[role] is None or _same(report[role], outcome(certificates[folder]))), _other(role))
            _classes(role, report[role], certificates.get(folder))
        curve = f"{folder}/curve.json"
        if f"curve_{role}" in report and curve in files:
            points = [
                {**point, **{f"{kind}_share": point.get(f"{kind}_accuracy") for kind in ("clean", "attacked", "certified")}}
                for point in read_json(root / curve)[role]
            ]
            need(_same(report[f"curve_{role}"], points), _other(f"curve_{role}"))
    folders = {f"{folder}/certificate.json": folder for folder in certificates}
    rows = {row["certificate_file"]: row for row in report.get("certificates", [])}
    need(not rows or rows.keys() == folders.keys(), _other("certificates"))
    for file, row in rows.items():
        content = certificates[folders[file]]
        said = outcome(content) | {"contract": content["contract"]["name"], "certified_file": content["model"]["file"]}
        said |= {"certified_sha256": content["model"]["sha256"], "model_file": row.get("model_file")}
        said["certified_by"] = dict(Counter(claim["method"] for claim in content["claims"] if claim["verdict"] == "certified"))
        need(_same(row, said) and _same(row.get("certified_by"), said["certified_by"]), _other(f"certificates, {file}"))
        audit = file.replace("certificate.json", "audit.json")
        if audit in files:
            found = read_json(root / audit)
            same = row.get("audit_passed") is found["passed"] and row.get("audit_executions") == found.get("executions")
            need(same and row.get("audit_violations") == found.get("violations"), _other(f"the audit of {file}"))
    for name in ("audit", "cross_check"):
        if f"certificate/{name}.json" in files and report.get(name) is not None:
            found, said = read_json(root / "certificate" / f"{name}.json"), report[name]
            same = said["passed"] is found["passed"] and all(_same(value, found.get(key)) for key, value in said.get("details", {}).items())
            need(same, _other(name))
    if gates is not None and "gates" in report:
        need(report["gates"] == gates, _other("gates"))
        good = all(gate["passed"] for gate in gates) and not report.get("void_reasons")
        need("verdict" not in report or (report["verdict"] == "passed") is good, _other("verdict"))


def _classes(role: str, said: Any, content: dict[str, Any] | None) -> None:
    """The rows of single classes, and those of methods, add up to the claims too."""
    if said is None or content is None:
        return
    rows = [
        {"samples": row["samples"], "correct": row["correct"], "withstood": row["attacked"], "certified": row["certified"]}
        for row in content["summary"]["classes"]
    ]
    need(_same(said.get("classes", rows), rows), _other(f"{role}, classes"))
    for method in said.get("methods", []):
        for verdict in ("certified", "falsified", "unknown"):
            count = sum(claim["method"] == method["name"] and claim["verdict"] == verdict for claim in content["claims"])
            need(method.get(verdict, count) == count, _other(f"{role}, methods"))


def _other(part: str) -> str:
    return f"report.json: {part} is not what the claims and the other files say"
