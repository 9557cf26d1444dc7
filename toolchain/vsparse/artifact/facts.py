"""Everything that an artifact directory holds, as typed models; what is absent is None or empty, what is damaged is an InputError."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsparse.artifact.certified_forms import CertificateRow, certificate_rows, other_models, read_certificates
from vsparse.artifact.checks import AUDIT, CROSS_CHECK, AuditRecord, CrossCheckRecord, Gate, read_gates
from vsparse.artifact.choice import CHOICE, FormChoice
from vsparse.artifact.counterexamples import Counterexamples, read_counterexamples
from vsparse.artifact.curve import Curve
from vsparse.artifact.device import DEVICE_RESULTS, EMULATED, DeviceResults
from vsparse.artifact.document import Part, read_if_there
from vsparse.artifact.elsewhere import ADVICE, HARNESS, build_machine, measured_elsewhere, not_yet, on_target
from vsparse.artifact.forms import DENSE, SPARSE
from vsparse.artifact.history import History
from vsparse.artifact.latency import LatencyFile
from vsparse.artifact.layers import LayerTable
from vsparse.artifact.layout import DATA, GATES, LAYERS, MANIFEST, RECIPE, REPORT, REPORT_JSON, TARGET, StageRecord, read_manifest
from vsparse.artifact.live import LIVE, LiveRecord
from vsparse.artifact.models import C_INT8_SOURCE, C_SOURCE, CERTIFYING_OF, CertifyingRecord, CertifyingRefusal, CSourceRecord
from vsparse.artifact.outcome import NetworkOutcome, certified_ids, misclassified, outcome_of
from vsparse.artifact.requirements import JudgedRequirement, judge_requirements, requirements_of
from vsparse.artifact.samples import DataRecord
from vsparse.errors import InputError
from vsparse.files import sha256_file
from vsparse.majority import AgainstMajority
from vsparse.recipe_requirements import Requirement
from vsparse.schema import parse_toml


class Provenance(Part):
    """Where the artifact comes from: versions, seed, stages, hashes, and the files whose hash is no longer the manifest's."""

    vsparse_version: str
    created_utc: str
    seed: int
    tools: dict[str, str]
    stages: tuple[StageRecord, ...]
    files: dict[str, str]
    changed_files: tuple[str, ...]
    commit: str = ""
    commit_changed: bool | None = None


@dataclass(frozen=True)
class Facts:
    """All that an artifact holds. `latency` is by file name in profile/, but for those of files which certify their own input."""

    name: str
    description: str
    dataset: str
    target: str
    target_description: str
    training_objective: str
    sample_limit: int | None
    other_models: tuple[str, ...]
    recipe_toml: str
    target_toml: str
    sparse: NetworkOutcome | None
    dense: NetworkOutcome | None
    curve_sparse: Curve | None
    curve_dense: Curve | None
    compression: LayerTable | None
    latency: Mapping[str, LatencyFile]
    history_sparse: History | None
    history_dense: History | None
    counterexamples: Counterexamples | None
    misclassified: frozenset[int]
    cross_check: CrossCheckRecord | None
    audit: AuditRecord | None
    gates: tuple[Gate, ...]
    provenance: Provenance | None
    certificates: tuple[CertificateRow, ...]
    c_source: CSourceRecord | None
    c_int8: CSourceRecord | None
    data: DataRecord | None
    measured_on_target: bool
    build_machine: str
    choice: FormChoice | None = None
    certifying_latency: Mapping[str, LatencyFile] = field(default_factory=dict)
    certifying: Mapping[str, CertifyingRecord] = field(default_factory=dict)
    not_certifying: Mapping[str, CertifyingRefusal] = field(default_factory=dict)
    device: DeviceResults | None = None
    live: LiveRecord | None = None
    target_kind: str = "host"
    batch: int = 1
    threads: int = 1
    inputs_sha256: str = ""
    certified_ids: tuple[int, ...] = ()
    stated_requirements: tuple[Requirement, ...] = ()

    @property
    def not_of_target(self) -> str:
        """Why the times that a device measured are not those that the artifact is about; empty where they are, and without any."""
        if self.device is None:
            return ""
        return EMULATED if self.device.emulated else self.device.timed_otherwise(self.batch, self.threads)

    @property
    def of_target(self) -> DeviceResults | None:
        """What the target's own device measured, as the recipe asks for it; None where none did."""
        return None if self.not_of_target else self.device

    @property
    def reached(self) -> bool:
        """Whether latencies of the target are on record: its device's, or the build's where its machine is the target."""
        return self.of_target is not None or self.measured_on_target

    @property
    def not_yet(self) -> str:
        """What a gate says that only the target's numbers could judge, where there are none."""
        return not_yet(self.target_kind, self.not_of_target)

    @property
    def advice(self) -> str:
        """The command that measures on the target, where something is on record from elsewhere; empty where nothing is."""
        return "" if not self.not_measured else HARNESS if self.target_kind == "microcontroller" else ADVICE

    @property
    def uncertified(self) -> tuple[str, ...]:
        """What shows that the artifact is not certified on the device that was measured; empty where nothing does."""
        return () if self.device is None else self.device.uncertified

    @property
    def latency_files(self) -> Mapping[str, LatencyFile]:
        """All of profile/ that is a latency, by file name: the network's, and those of files which certify their own input."""
        more = {Path(CERTIFYING_OF[form].latency).name: latency for form, latency in self.certifying_latency.items()}
        return {**self.latency, **more}

    @property
    def validation(self) -> AgainstMajority | None:
        """What the trained network answers on the validation split."""
        return None if self.history_sparse is None else self.history_sparse.validation

    @property
    def objective_report(self) -> str:
        """The sentence of the training objective on itself; empty where none is on record."""
        return "" if self.history_sparse is None else self.history_sparse.objective.report

    @property
    def loss_is_cross_entropy(self) -> bool:
        """Whether the training loss compares with that of a constant answer."""
        return self.history_sparse is not None and self.history_sparse.objective.is_cross_entropy

    @property
    def measured_elsewhere(self) -> str:
        """`measured on the build machine (…), not on TARGET`; empty where the build machine is the target."""
        return "" if self.measured_on_target else measured_elsewhere(self.build_machine, self.target)

    @property
    def not_measured(self) -> tuple[str, ...]:
        """What is on record, but not from the target: short names, `latency on jetson-orin-nano`."""
        if self.reached:
            return ()
        found = [f"latency on {self.target}"] if self.latency else []
        audited = self.device is not None and not self.device.emulated
        return (*found, f"the contract audit on {self.target}") if self.audit and not audited else tuple(found)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, of the certificate of the deployed network."""
        return () if self.sparse is None else tuple(row.name for row in self.sparse.classes)

    @property
    def classes(self) -> int:
        """How many classes there are; 0 where that is not on record."""
        return len(self.class_names) or (self.data.classes if self.data else 0)

    @property
    def void_reasons(self) -> tuple[str, ...]:
        """Why the certificate must not be relied on: a violation found, or files changed since the build; empty when nothing is known."""
        reasons = []
        if self.audit and not self.audit.stands:
            reasons.append(f"The audit of the runtime failed: {self.audit.why}.")
        if self.cross_check and self.cross_check.stands is False:
            reasons.append(f"The cross-check with a second verifier failed: {self.cross_check.why}.")
        if self.sparse and self.sparse.void_reason:
            reasons.append(f"The certificate itself says that it is void: {self.sparse.void_reason}.")
        if self.dense and self.dense.void_reason:
            reasons.append(f"The certificate of the dense parent is void: {self.dense.void_reason}.")
        for row in self.certificates:
            if row.form.is_further and row.audit_passed is False:
                reasons.append(f"The audit of {row.model_file} under contract {row.contract} failed: {row.audit_reason}.")
            if row.form.is_further and row.void_reason:
                reasons.append(f"The certificate of {row.model_file} under contract {row.contract} is void: {row.void_reason}.")
        reasons += [f"{name} is not the file that its certificate is about: its content has another hash." for name in self.other_models]
        if self.provenance and self.provenance.changed_files:
            reasons.append(f"Files differ from the hashes in manifest.json: {', '.join(self.provenance.changed_files[:5])}.")
        return tuple(reasons)

    @property
    def requirements(self) -> tuple[JudgedRequirement, ...]:
        """The requirements of the recipe, each with what its gate found; none is met by what must not be relied on."""
        why = "the certificate is void" if self.void_reasons else "it is not certified on the device" if self.uncertified else ""
        return judge_requirements(self.stated_requirements, self.gates, why)

    @property
    def failed_gates(self) -> tuple[Gate, ...]:
        """The gates that were not reached."""
        return tuple(gate for gate in self.gates if gate.passed is False)

    @property
    def open_gates(self) -> tuple[Gate, ...]:
        """The gates that could not be measured here: neither reached nor missed."""
        return tuple(gate for gate in self.gates if gate.passed is None)

    @property
    def verdict(self) -> str:
        """`void`, `failed`, `unproved` (no certificate), `incomplete` (no gates on record), `open` (a gate could not be measured here) or
        `passed`."""
        if self.void_reasons:
            return "void"
        if self.failed_gates:
            return "failed"
        if self.sparse is None:
            return "unproved"
        if self.open_gates:
            return "open"
        return "passed" if self.gates else "incomplete"


def gather(directory: Path) -> Facts:
    """Reads an artifact directory into Facts.

    Files that are absent leave their part out. Raises InputError for a directory that is not there, and for a file that is damaged: bad
    JSON or TOML, keys that are missing or unknown, values of another type or out of range, claims that contradict themselves.
    """
    if not directory.is_dir():
        raise InputError(f"there is no artifact directory {directory}; give the directory that `vsparse build` wrote")
    recipe, recipe_text = _toml(directory / RECIPE, "recipe")
    target, target_text = _toml(directory / TARGET, "target")
    certificates = read_certificates(directory)
    layers = read_if_there(LayerTable, directory / LAYERS)
    history, history_dense = (read_if_there(History, directory / path) for path in ("train/history.json", "train/dense/history.json"))
    provenance = _provenance(directory)
    if not any((recipe, SPARSE.name in certificates, layers, history, provenance)):
        raise InputError(
            f"{directory} holds no artifact (no {MANIFEST}, {RECIPE} or certificate); give the directory that `vsparse build` wrote"
        )
    latency = {path.name: item for path in sorted((directory / "profile").glob("*.json")) if (item := read_if_there(LatencyFile, path))}
    certifying = {form: found for form, at in CERTIFYING_OF.items() if (found := latency.pop(Path(at.latency).name, None)) is not None}
    records = {form: read_if_there(CertifyingRecord, directory / at.record) for form, at in CERTIFYING_OF.items()}
    refusals = {form: read_if_there(CertifyingRefusal, directory / at.refusal) for form, at in CERTIFYING_OF.items() if at.refusal}
    outcomes = {name: outcome_of(certificate) for name, certificate in certificates.items()}
    rows = certificate_rows(directory, certificates, outcomes)
    own = certificates.get(SPARSE.name)
    folder = directory / SPARSE.folder
    counterexamples = folder / "counterexamples.npz"
    machine = build_machine(latency)
    return Facts(
        name=_text(recipe, "name") or directory.resolve().name,
        description=_text(recipe, "description"),
        dataset=_text(recipe, "data", "name"),
        target=_text(target, "name"),
        target_description=_text(target, "description"),
        training_objective=_text(recipe, "train", "objective"),
        sample_limit=_limit(recipe),
        other_models=other_models(directory, rows),
        recipe_toml=recipe_text,
        target_toml=target_text,
        sparse=outcomes.get(SPARSE.name),
        dense=outcomes.get(DENSE.name),
        curve_sparse=read_if_there(Curve, folder / "curve.json"),
        curve_dense=read_if_there(Curve, directory / DENSE.folder / "curve.json"),
        compression=layers,
        latency=latency,
        certifying_latency=certifying,
        certifying={form: record for form, record in records.items() if record is not None},
        not_certifying={form: refusal for form, refusal in refusals.items() if refusal is not None},
        history_sparse=history,
        history_dense=history_dense,
        counterexamples=read_counterexamples(counterexamples) if counterexamples.exists() else None,
        misclassified=frozenset() if own is None else misclassified(own),
        cross_check=read_if_there(CrossCheckRecord, folder / CROSS_CHECK),
        audit=read_if_there(AuditRecord, folder / AUDIT),
        gates=read_gates(directory / GATES),
        provenance=provenance,
        certificates=rows,
        c_source=read_if_there(CSourceRecord, directory / C_SOURCE),
        c_int8=read_if_there(CSourceRecord, directory / C_INT8_SOURCE),
        data=read_if_there(DataRecord, directory / DATA),
        measured_on_target=on_target(target, machine),
        build_machine=machine if latency else "",
        choice=read_if_there(FormChoice, directory / CHOICE),
        device=read_if_there(DeviceResults, directory / DEVICE_RESULTS),
        live=read_if_there(LiveRecord, directory / LIVE),
        target_kind=_text(target, "device", "kind") or "host",
        batch=_count(recipe, "profile", "batch"),
        threads=_count(recipe, "profile", "threads"),
        inputs_sha256="" if own is None else own.data.inputs_sha256,
        certified_ids=() if own is None else certified_ids(own),
        stated_requirements=requirements_of(recipe),
    )


def _provenance(directory: Path) -> Provenance | None:
    """Reads manifest.json and compares the hashes of the files it names, the report's own excepted."""
    if not (directory / MANIFEST).exists():
        return None
    manifest = read_manifest(directory)
    files = {name: digest for name, digest in sorted(manifest.files.items()) if name not in (REPORT, REPORT_JSON)}
    changed: list[str] = []
    for name, digest in files.items():
        path = directory / name
        try:
            if not path.is_file() or sha256_file(path) != digest:
                changed.append(name)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return Provenance(
        vsparse_version=manifest.vsparse_version,
        created_utc=manifest.created_utc,
        seed=manifest.seed,
        tools=manifest.tools,
        stages=manifest.lineage,
        files=files,
        changed_files=tuple(changed),
        commit="" if manifest.code is None else manifest.code.commit,
        commit_changed=None if manifest.code is None else manifest.code.changed,
    )


def _toml(path: Path, what: str) -> tuple[dict[str, Any], str]:
    if not path.exists():
        return {}, ""
    content = parse_toml(path, what)
    return content, path.read_text(encoding="utf-8")


def _text(content: dict[str, Any], *path: str) -> str:
    value: Any = content
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return str(value) if isinstance(value, str | int | float) else ""


def _count(content: dict[str, Any], *path: str) -> int:
    """Returns a count of a recipe; 1 where it has none."""
    found = _text(content, *path)
    return int(found) if found.isascii() and found.isdigit() and 0 < len(found) <= 6 else 1


def _limit(recipe: dict[str, Any]) -> int | None:
    wanted = recipe.get("property")
    value = wanted.get("samples") if isinstance(wanted, dict) else None
    return value if isinstance(value, int) and value > 0 else None
