"""What a device measured, side by side with the build machine: a row for each form in each runtime, and whose numbers these are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vsparse.artifact.device import DeviceModel, DeviceResults, DeviceRuntime, judged, one_line
from vsparse.artifact.facts import Facts
from vsparse.artifact.forms import FORMS, DeployedForm
from vsparse.artifact.models import CERTIFYING_OF

CERTIFYING_ROLES = {places.role: form for form, places in CERTIFYING_OF.items()}
BY_ROLE: Mapping[str, DeployedForm] = {form.device_role: form for form in FORMS}


@dataclass(frozen=True)
class DeviceRow:
    """One form in one runtime: `host` is the median in ms that the build machine measured of it, `times` what the device did of a run.

    A run has `batch` samples. `passed` and `said` are what the gates there come to, or why it did not run; None: nothing was examined.
    """

    label: str
    file: str
    runtime: str
    compared: bool
    host: float | None
    times: Mapping[str, float]
    runs: int
    batch: int
    peak_bytes: int | None
    energy_mj: float | None
    passed: bool | None
    said: str

    @property
    def per_sample(self) -> float | None:
        """The median time of a run, for each of its samples, in ms."""
        return self.times["latency_ms_p50"] / self.batch if self.times else None


def rows(facts: Facts) -> list[DeviceRow]:
    """Returns a row for each form in each runtime of the device; none for an artifact without results of one."""
    return [] if facts.device is None else [_row(facts, facts.device, one) for one in facts.device.measurements]


def _row(facts: Facts, found: DeviceResults, one: DeviceModel) -> DeviceRow:
    own = one.runtime or found.runtime or DeviceRuntime()
    name = one_line(own.name or "", 60)
    latency = one.model_copy(update={"runtime": own}).measured(found.device)
    times: dict[str, float] = {}
    if latency is not None:
        times = {f"latency_ms_{key}": getattr(latency, key) for key in ("p50", "p90", "p99")} | {"latency_ms_max": latency.largest}
    said, reached = judged(one.gates)
    examined = any(gate.passed is not None for gate in one.gates)
    return DeviceRow(
        label=_label(one),
        file=one_line(one.file, 100),
        runtime=name if name == "c" or own.version is None else f"{name} {one_line(own.version, 60)}",
        compared=not one.counts,
        host=_host(facts, one, own),
        times=times,
        runs=0 if latency is None else latency.runs,
        batch=one.batch,
        peak_bytes=one.peak_bytes,
        energy_mj=one.energy_mj,
        passed=reached if examined or one.fault else None,
        said=one_line(one.fault) if one.fault and reached else said,
    )


def _label(one: DeviceModel) -> str:
    if one.role in CERTIFYING_ROLES:
        return CERTIFYING_OF[CERTIFYING_ROLES[one.role]].title
    return BY_ROLE[one.role].label if one.role in BY_ROLE else one_line(one.role, 60)


def _host(facts: Facts, one: DeviceModel, runtime: DeviceRuntime) -> float | None:
    """The median of the build's own runs of the same form: ONNX files by ONNX Runtime, C compiled there."""
    if one.role in CERTIFYING_ROLES:
        found = facts.certifying_latency.get(CERTIFYING_ROLES[one.role])
        return None if found is None else found.packed.p50
    form = BY_ROLE.get(one.role)
    if form is None or (form.is_onnx and runtime.name != "onnxruntime"):
        return None
    return next((row.latency_ms_p50 for row in facts.certificates if row.name == form.name), None)


def as_json(facts: Facts) -> dict[str, Any]:
    """Returns what report.json says of the device: whose numbers, whether they are the target's, and each form in each runtime."""
    found = facts.device
    if found is None:
        return {}
    forms = [_as_json(one, row) for one, row in zip(found.measurements, rows(facts), strict=True)]
    told = {"label": found.label, "emulated": found.emulated, "of_target": facts.of_target is not None}
    told |= {"why_not": facts.not_of_target, "not_certified_on_this_device": list(found.uncertified), "forms": forms}
    return {"device": told}


def _as_json(one: DeviceModel, row: DeviceRow) -> dict[str, Any]:
    content = {
        "file": row.file,
        "role": one_line(one.role, 60),
        "runtime": row.runtime,
        "compared": row.compared,
        "host_latency_ms_p50": row.host,
        "batch": row.batch,
        "runs": row.runs,
        **row.times,
        "per_sample_ms_p50": row.per_sample,
        "peak_bytes": row.peak_bytes,
        "energy_mj": row.energy_mj,
        "passed": row.passed,
        "gates": row.said,
    }
    return {key: value for key, value in content.items() if value is not None}
