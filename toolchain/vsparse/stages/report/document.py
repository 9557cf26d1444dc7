"""report.json: the same facts as the page, for programs."""

from __future__ import annotations

from typing import Any

from vsparse.artifact.checks import AuditRecord, CrossCheckRecord
from vsparse.artifact.curve import Curve
from vsparse.artifact.document import Part
from vsparse.artifact.facts import Facts
from vsparse.artifact.history import Epoch, History
from vsparse.artifact.latency import Latency, LatencyFile
from vsparse.artifact.models import CERTIFYING_OF
from vsparse.stages.report import devices, intervals, on_target, steadiness
from vsparse.stages.report.details import conditions, details
from vsparse.stages.report.gallery import Gallery

SCHEMA_VERSION = 1
# Taken over as they are, in the order of report.json.
FIRST = (
    "name",
    "description",
    "dataset",
    "target",
    "target_description",
    "training_objective",
    "objective_report",
    "loss_is_cross_entropy",
    "sample_limit",
    "other_models",
)


def as_json(facts: Facts, gallery: Gallery | None) -> dict[str, Any]:
    """Returns the facts as JSON values: fractions from 0 to 1, sizes in bytes; raw samples and images stay in their own files."""
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": facts.verdict,
        "void_reasons": list(facts.void_reasons),
        "not_measured": list(facts.not_measured),
        **{name: _plain(getattr(facts, name)) for name in FIRST},
        "recipe_toml": facts.recipe_toml,
        "target_toml": facts.target_toml,
        "sparse": _plain(facts.sparse),
        "dense": _plain(facts.dense),
        "curve_sparse": _points(facts.curve_sparse),
        "curve_dense": _points(facts.curve_dense),
        "curve_samples": facts.curve_sparse.samples if facts.curve_sparse else None,
        "compression": _compression(facts),
        "latency": [_latency(name, item) for name, item in facts.latency_files.items()],
        "history_sparse": _epochs(facts.history_sparse),
        "history_dense": _epochs(facts.history_dense),
        "gallery": _gallery(gallery),
        "cross_check": _check(facts.cross_check),
        "audit": _check(facts.audit),
        "gates": [_plain(gate) for gate in facts.gates],
        "provenance": _plain(facts.provenance),
        "certificates": [_plain(row) for row in facts.certificates],
        "choice": _without_version(facts.choice),
        "c_source": _without_version(facts.c_source),
        **({} if facts.c_int8 is None else {"c_int8": _without_version(facts.c_int8)}),
        **({} if facts.live is None else {"live": _without_version(facts.live)}),
        **_certifying(facts),
        "data": facts.data.summary() if facts.data else None,
        "validation": _plain(facts.validation),
        "measured_on_target": facts.measured_on_target,
        "build_machine": facts.build_machine,
        **devices.as_json(facts),
        "noise": steadiness.as_json(facts),
        "intervals": intervals.as_json(facts),
        **on_target.as_json(facts),
        "inputs_sha256": facts.inputs_sha256,
        "certified_ids": list(facts.certified_ids),
        "requirements": [_plain(one) for one in facts.requirements],
    }


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump is not None else list(value) if isinstance(value, tuple) else value


def _without_version(value: Part | None) -> dict[str, Any] | None:
    return None if value is None else value.model_dump(mode="json", exclude={"schema_version"})


def _certifying(facts: Facts) -> dict[str, Any]:
    """Returns what is told of the ONNX files that certify their own input, by form; nothing where there are none."""
    told = {
        form: {
            "file": CERTIFYING_OF[form].file,
            "contract": record.contract,
            "nodes": record.nodes,
            "samples": record.samples,
            "radii": [_plain(row) for row in record.radii],
            "latency_ms_p50": facts.certifying_latency[form].packed.p50 if form in facts.certifying_latency else None,
        }
        for form, record in facts.certifying.items()
    }
    refused = {form: {"contract": one.contract, "refused": one.reason} for form, one in facts.not_certifying.items()}
    return {"certifying": told | refused} if told or refused else {}


def _compression(facts: Facts) -> dict[str, Any] | None:
    found = _without_version(facts.compression)
    return found if facts.compression is None or found is None else {**found, "unequal": list(facts.compression.equality.contradictions)}


def _points(curve: Curve | None) -> list[dict[str, Any]]:
    return [
        {
            "epsilon": point.epsilon,
            "epsilon_value": point.epsilon_value,
            "clean_share": point.clean_accuracy,
            "attacked_share": point.robust_accuracy,
            "certified_share": point.certified_accuracy,
        }
        for point in (curve.points if curve else ())
    ]


def _epochs(history: History | None) -> list[dict[str, Any]]:
    return [_epoch(epoch) for epoch in (history.epochs if history else ())]


def _epoch(epoch: Epoch) -> dict[str, Any]:
    names = ("density", "epsilon", "seconds", "measure", "phase")
    return {
        "epoch": epoch.epoch,
        "loss": epoch.loss,
        "clean_share": epoch.clean_accuracy,
        "certified_share": epoch.robust_accuracy,
        **{name: getattr(epoch, name) for name in names},
    }


def _latency(name: str, item: LatencyFile) -> dict[str, Any]:
    return {
        "file": name,
        "dense": None if item.dense is None else _percentiles(item.dense),
        "sparse": _percentiles(item.packed),
        "ratio_p50": item.ratio,
        "conditions": dict(conditions(item)),
    }


def _percentiles(latency: Latency) -> dict[str, Any]:
    found = {"latency_ms_p50": latency.p50, "latency_ms_p90": latency.p90, "latency_ms_p99": latency.p99}
    return {**found, "runs": len(latency.samples_ms)}


def _gallery(gallery: Gallery | None) -> dict[str, Any] | None:
    if gallery is None:
        return None
    names = ("id", "label", "predicted", "largest_change")
    pictures = [{name: getattr(picture, name) for name in names} for picture in gallery.pictures]
    return {"total": gallery.total, "magnification": gallery.magnification, "pictures": pictures}


def _check(record: AuditRecord | CrossCheckRecord | None) -> dict[str, Any] | None:
    return None if record is None else {"passed": record.stands, "reason": record.why, "details": dict(details(record))}
