"""The key figures of an artifact, by deployed form, for the command line and for programs."""

from __future__ import annotations

from typing import Any

from vsparse.artifact.facts import Facts
from vsparse.artifact.history import History
from vsparse.artifact.noise import told_once
from vsparse.proportion import clopper_pearson

# What robust accuracy was measured by during training, for a person.
MEASURES = {
    "interval": "interval bounds",
    "crown": "CROWN bounds",
    "attack": "an attack",
    "explained": "interval bounds, as explained variance",
}


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
            names: tuple[str, ...] = ("clean_accuracy", "majority_accuracy", "robust_accuracy", "certified_accuracy")
            if outcome.regression is not None:
                names = ("certified_accuracy",)
                errors = outcome.regression.model_dump(include={"mean_absolute_error", "rmse", "constant_mean_absolute_error"})
                forms[variant].update(errors)
            forms[variant].update({name: getattr(outcome, name) for name in names})
            exact = (("clean", outcome.correct), ("robust", outcome.robust), ("certified", outcome.certified))
            intervals = {f"{name}_accuracy_interval": list(clopper_pearson(count, outcome.samples)) for name, count in exact}
            forms[variant].update(intervals)
    for measured in facts.latency.values():
        for variant, latency in (("sparse", measured.packed), ("dense", measured.dense)):
            if latency is not None:
                forms[variant].update({f"latency_ms_{name}": getattr(latency, name) for name in ("p50", "p90", "p99")})
    regression = None if facts.sparse is None else facts.sparse.regression
    for row in facts.certificates:
        if row.form.is_further:
            accuracies = ("clean_accuracy", "robust_accuracy", "certified_accuracy")[2 if regression else 0 :]
            forms[row.name] = {name: getattr(row, name) for name in accuracies}
            counts = {name: getattr(row, name) for name in ("audit_executions", "audit_violations", "latency_ms_p50")}
            forms[row.name].update({name: value for name, value in counts.items() if value is not None})
            forms[row.name]["contract"] = row.contract
    for variant, history in (("sparse", facts.history_sparse), ("dense", facts.history_dense)):
        if variant == "sparse" and facts.classes != 1 and facts.validation is not None and not forms[variant].get("majority_accuracy"):
            forms[variant]["majority_accuracy"] = facts.validation.majority_accuracy
        if history is not None and history.epochs and "certified_accuracy" not in forms[variant]:
            forms[variant].update(_of_training(history))
    figures: dict[str, Any] = {name: found for name, found in forms.items() if found}
    title = facts.name
    if facts.sparse is not None:
        title += f": epsilon {facts.sparse.epsilon}, contract {facts.sparse.contract['name']}, {facts.sparse.samples} test samples"
        if regression is not None:
            title = title.replace(", contract", f", delta {regression.delta}, contract", 1)
            figures["delta"] = regression.delta
        figures["samples"] = facts.sparse.samples
        figures["epsilon"] = facts.sparse.epsilon
        figures["contract"] = facts.sparse.contract["name"]
    if facts.measured_elsewhere and facts.latency:
        figures["latency"] = facts.measured_elsewhere
    noise = told_once((file, item.packed.noise) for file, item in facts.latency_files.items())
    if noise:
        figures["latency_noise"] = noise
    if facts.c_source is not None and facts.c_source.footprint is not None:
        figures["microcontroller"] = facts.c_source.footprint.model_dump(mode="json")
    for key, record in (("c_analysis", facts.c_source), ("c_analysis_int8", facts.c_int8)):
        if record is not None and record.analysis is not None:
            figures[key] = record.analysis.model_dump(mode="json")
    if facts.c_int8 is not None and facts.c_int8.footprint is not None:
        figures["microcontroller_int8"] = facts.c_int8.footprint.model_dump(mode="json")
    if facts.live is not None:
        at = facts.live.at_epsilon
        epsilon = at.epsilon if facts.sparse is None else facts.sparse.epsilon  # as the recipe writes it
        figures["live"] = {"epsilon": epsilon, "samples": at.samples, "certified": at.certified, "right": at.right}
        if facts.live.budget:
            figures["live"] |= {"budget": facts.live.budget, "by_intervals": at.by_intervals}
        if facts.live.int8 is not None:
            of = facts.live.int8.at_epsilon
            figures["live_int8"] = {"epsilon": epsilon, "samples": of.samples, "certified": of.certified, "right": of.right}
    figures["title"] = title
    return figures


def _of_training(history: History) -> dict[str, Any]:
    """Returns what training measured of the epoch that was kept: by plain bounds or an attack, on the validation split, no certificate."""
    epoch = history.kept or history.epochs[-1]
    if epoch.measure == "explained":
        return {
            "explained": epoch.clean_accuracy,
            "explained_worst": epoch.robust_accuracy,
            "split": "validation",
            "samples": history.validation.samples,
            "epoch": epoch.epoch,
        }
    robust = "certified_accuracy" if epoch.certified else "robust_accuracy"
    return {
        "clean_accuracy": epoch.clean_accuracy,
        robust: epoch.robust_accuracy,
        "split": "validation",
        "samples": history.validation.samples,
        "robust_samples": history.robust_samples or history.validation.samples,
        "measured_by": MEASURES[epoch.measure],
        "epoch": epoch.epoch,
    }
