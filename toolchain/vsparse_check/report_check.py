"""report.json against the claims, and against the documents that it repeats."""

from __future__ import annotations

from collections import Counter
from math import fsum, sqrt
from pathlib import Path
from typing import Any

from vsparse_check.comparison import (
    ACCURACIES,
    VARIANTS,
    Certificates,
    Content,
    exactly,
    same_value,
)
from vsparse_check.device_results import (
    RANKS,
    counts_for_target,
    is_emulated,
    label_of,
    timed_runs,
    uncertified,
)
from vsparse_check.files import read_json
from vsparse_check.refusal import need

# What is said of some certificates alone, and must not be of others.
OF_SOME = ("scales", "regression")


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
        **({"scales": about["scales"]} if about.get("scales") else {}),
        **_regression(content),
    }


def _regression(content: Content) -> Content:
    """Returns what a report says of the answers of a regression; {} of classes."""
    if "delta" not in content["property"]:
        return {}
    claims, delta = content["claims"], content["property"]["delta"]
    targets = [claim["target"] for claim in claims]
    mean = fsum(targets) / len(targets)
    errors = [one["value"] - one["target"] for one in claims if one.get("value") is not None]
    constant = [mean - target for target in targets]
    said = {
        "delta": delta,
        "delta_value": float(exactly(delta)),
        "mean_absolute_error": _mean_absolute(errors) if errors else None,
        "rmse": _root_mean_square(errors) if errors else None,
        "constant_mean_absolute_error": _mean_absolute(constant),
        "constant_rmse": _root_mean_square(constant),
    }
    return {"regression": said}


def _mean_absolute(errors: list[float]) -> float:
    """Returns the mean of the magnitudes."""
    return fsum(abs(error) for error in errors) / len(errors)


def _root_mean_square(errors: list[float]) -> float:
    """Returns the root of the mean of the squares."""
    return sqrt(fsum(error * error for error in errors) / len(errors))


def _median_margin(claims: list[Content]) -> float | None:
    """Returns the median margin of certified claims, None without any."""
    margins = sorted(claim["margin_lower"] for claim in claims if claim["verdict"] == "certified")
    if not margins:
        return None
    return float((margins[(len(margins) - 1) // 2] + margins[len(margins) // 2]) / 2)


class ReportCheck:
    """report.json against the claims and the other files."""

    def __init__(
        self, root: Path, files: set[str], report: Content, certificates: Certificates
    ) -> None:
        """Takes the artifact's folder and files, its report, and its certificates by folder."""
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
        if self.report.get("choice") is not None:
            need("choice.json" in self.files, other_than("choice"))
            found = read_json(self.root / "choice.json")
            need(self.report["choice"] | {"schema_version": 1} == found, other_than("choice"))
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
        _check_outcome(said, outcome(content), variant)
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
            _check_outcome(row, wanted, f"certificates, {file}")
            same = same_value(row.get("certified_by"), methods)
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


def _check_outcome(said: Content, wanted: Content, part: str) -> None:
    """Refuses what a report says of a certificate's samples where the claims say other."""
    need(same_value(said, wanted), other_than(part))
    need(all(key in wanted for key in OF_SOME if key in said), other_than(part))


def check_requirements(said: Any, gates: Any, recipe: Content) -> None:
    """Refuses a report whose requirements are not the recipe's, or met without a gate that passed.

    Which gate a key of the recipe stands for, only the toolchain compares.
    """
    if said is None or gates is None:
        return
    asked = recipe.get("requirements", [])
    named = isinstance(asked, list) and all(isinstance(one, dict) for one in asked)
    same = [(one["id"], one["text"]) for one in said]
    need(
        not named or same == [(one.get("id"), one.get("text")) for one in asked],
        other_than("requirements"),
    )
    status_of = {gate["name"]: "met" if gate["passed"] else "not met" for gate in gates}
    for one in said:
        status = status_of.get(one["gate"], "not run")
        # What is met is not, where something else voids the whole artifact.
        allowed = (status, "void") if status == "met" else (status,)
        need(one["status"] in allowed, other_than(f"requirement {one['id']!s:.40}"))


def check_device_part(said: Content | None, results: Content | None, recipe: Content) -> None:
    """Refuses what a report says of a device where its results, or recipe.toml, say other."""
    need((said is None) == (results is None), other_than("device"))
    if said is None or results is None:
        return
    need(said["emulated"] is is_emulated(results), other_than("device, emulated"))
    counts = counts_for_target(results, recipe)
    need(said["of_target"] is counts, other_than("device, of_target"))
    need(said["label"] == label_of(results), other_than("device, label"))
    shown = said["not_certified_on_this_device"]
    need(len(shown) == len(uncertified(results)), other_than("device, not certified"))
    measured = [*results["models"], *results.get("further", [])]
    need(len(said["forms"]) == len(measured), other_than("device, forms"))
    for form, one in zip(said["forms"], measured, strict=True):
        need(form["role"] == one["role"], other_than("device, forms"))
        power, memory = one.get("power") or {}, one.get("memory") or {}
        batch = one.get("settings", {}).get("batch", 1)
        wanted: Content = {
            "batch": batch,
            "energy_mj": power.get("energy_mj_per_run_estimate"),
            "peak_bytes": memory.get("process_peak_bytes"),
            **dict.fromkeys((*RANKS, "latency_ms_max", "per_sample_ms_p50")),
        }
        if one.get("latency") is not None:
            runs = timed_runs(one["latency"], "report.json")
            wanted |= {key: runs.percentile(rank) for key, rank in RANKS.items()}
            wanted |= {"latency_ms_max": runs.ends[1], "runs": runs.total}
            wanted["per_sample_ms_p50"] = runs.percentile(50) / batch
        same = all(same_value(form.get(key), value) for key, value in wanted.items())
        judged = [gate["passed"] for gate in one["gates"]]
        examined = bool(one.get("fault")) or any(state is not None for state in judged)
        state = False not in judged if examined else None
        need(same and form.get("passed") is state, other_than("device, forms"))


def other_than(part: str) -> str:
    """Returns what to say of a part of the report that does not follow."""
    return f"report.json: {part} is not what the claims and the other files say"
