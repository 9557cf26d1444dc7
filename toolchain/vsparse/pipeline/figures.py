"""The key figures of an artifact, sparse and dense side by side, for the command line and for programs."""

from __future__ import annotations

from typing import Any

from vsparse.stages.report.certificates import EXTRA
from vsparse.stages.report.facts import Facts


def key_figures(facts: Facts) -> dict[str, Any]:
    """Returns the figures by role; a figure the artifact does not hold is left out."""
    roles: dict[str, dict[str, float]] = {"sparse": {}, "dense": {}}
    if facts.compression is not None:
        totals = facts.compression.totals
        for role, suffix in (("sparse", "after"), ("dense", "before")):
            roles[role].update(
                {name: value for name in ("weights", "macs", "bytes") if (value := getattr(totals, f"{name}_{suffix}")) is not None}
            )
    for role, outcome in (("sparse", facts.sparse), ("dense", facts.dense)):
        if outcome is not None:
            names = ("clean_share", "majority_share", "attacked_share", "certified_share")
            roles[role].update({name: getattr(outcome, name) for name in names})
    for comparison in facts.latency:
        for role, latency in (("sparse", comparison.sparse), ("dense", comparison.dense)):
            if latency is not None:
                roles[role].update({name: getattr(latency, name) for name in ("latency_ms_p50", "latency_ms_p90", "latency_ms_p99")})
    for row in facts.certificates:
        if row.name in EXTRA:
            roles[row.name] = {name: getattr(row, name) for name in ("clean_share", "attacked_share", "certified_share")}
            counts = {name: getattr(row, name) for name in ("audit_executions", "audit_violations", "latency_ms_p50")}
            roles[row.name].update({name: value for name, value in counts.items() if value is not None})
    for role, history in (("sparse", facts.history_sparse), ("dense", facts.history_dense)):
        if role == "sparse" and facts.validation is not None and not roles[role].get("majority_share"):
            roles[role]["majority_share"] = facts.validation.majority_share
        if history and "clean_share" not in roles[role]:
            last = history[-1]
            robust = "attacked_share" if last.measure == "attack" else "certified_share"
            shares = {"clean_share": last.clean_share, robust: last.certified_share}
            roles[role].update({name: value for name, value in shares.items() if value is not None})
    figures: dict[str, Any] = {role: found for role, found in roles.items() if found}
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
