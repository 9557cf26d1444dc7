"""The key figures of an artifact, by deployed form, for the command line and for programs."""

from __future__ import annotations

from typing import Any

from vsparse.artifact.forms import FURTHER
from vsparse.stages.report.facts import Facts


def key_figures(facts: Facts) -> dict[str, Any]:
    """Returns the figures by the name of the form; a figure the artifact does not hold is left out."""
    forms: dict[str, dict[str, Any]] = {"sparse": {}, "dense": {}}
    if facts.compression is not None:
        totals = facts.compression.totals
        for variant, suffix in (("sparse", "after"), ("dense", "before")):
            forms[variant].update(
                {name: value for name in ("weights", "macs", "bytes") if (value := getattr(totals, f"{name}_{suffix}")) is not None}
            )
    for variant, outcome in (("sparse", facts.sparse), ("dense", facts.dense)):
        if outcome is not None:
            names = ("clean_share", "majority_share", "attacked_share", "certified_share")
            forms[variant].update({name: getattr(outcome, name) for name in names})
    for comparison in facts.latency:
        for variant, latency in (("sparse", comparison.sparse), ("dense", comparison.dense)):
            if latency is not None:
                forms[variant].update({name: getattr(latency, name) for name in ("latency_ms_p50", "latency_ms_p90", "latency_ms_p99")})
    rows = {row.name: row for row in facts.certificates}
    for form in FURTHER:
        if (row := rows.get(form.name)) is not None:
            forms[row.name] = {name: getattr(row, name) for name in ("clean_share", "attacked_share", "certified_share")}
            counts = {name: getattr(row, name) for name in ("audit_executions", "audit_violations", "latency_ms_p50")}
            forms[row.name].update({name: value for name, value in counts.items() if value is not None})
            forms[row.name]["contract"] = row.contract
    for variant, history in (("sparse", facts.history_sparse), ("dense", facts.history_dense)):
        if variant == "sparse" and facts.validation is not None and not forms[variant].get("majority_share"):
            forms[variant]["majority_share"] = facts.validation.majority_share
        if history and "clean_share" not in forms[variant]:
            last = history[-1]
            robust = "attacked_share" if last.measure == "attack" else "certified_share"
            shares = {"clean_share": last.clean_share, robust: last.certified_share}
            forms[variant].update({name: value for name, value in shares.items() if value is not None})
    figures: dict[str, Any] = {name: found for name, found in forms.items() if found}
    title = facts.name
    if facts.sparse is not None:
        title += f": epsilon {facts.sparse.epsilon}, contract {facts.sparse.contract.name}, {facts.sparse.samples} test samples"
        figures["samples"] = facts.sparse.samples
        figures["epsilon"] = facts.sparse.epsilon
        figures["contract"] = facts.sparse.contract.name
    if facts.measured_elsewhere and facts.latency:
        figures["latency"] = facts.measured_elsewhere
    figures["title"] = title
    return figures
