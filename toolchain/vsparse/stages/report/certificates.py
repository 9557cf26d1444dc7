"""The certificates of an artifact, one row for each contract and model file, with the audit that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vsparse.artifact.forms import DENSE, FORMS, FURTHER, SEQUENTIAL, SPARSE
from vsparse.majority import AgainstMajority
from vsparse.stages.report import measurements
from vsparse.stages.report.checks import Check, read_check, violations
from vsparse.stages.report.measurements import Latency, LatencyComparison
from vsparse.stages.report.outcomes import Outcome, read_outcome
from vsparse.stages.report.reading import Part, load_object

C_RECORD = "model/c_source.json"
# What a certificate's note says where nothing could be executed (vsparse.stages.verify.task).
NOT_AUDITED = "not audited: "


@dataclass(frozen=True)
class CertificateRow:
    """What one certificate comes to: about which file, under which contract, and whether its audit found a violation.

    Shares are of all samples. Numbers of the audit are None where there is none (the dense parent is not deployed and has none).
    """

    name: str
    model_file: str
    contract: str
    samples: int
    clean_share: float
    attacked_share: float
    certified_share: float
    certified_by: tuple[tuple[str, int], ...]
    proof_bytes_each: float | None
    audit_passed: bool | None
    audit_reason: str
    audit_executions: int | None
    audit_violations: int | None
    void_reason: str
    latency_ms_p50: float | None
    certificate_file: str
    certified_file: str
    certified_sha256: str
    against_majority: AgainstMajority


@dataclass(frozen=True)
class CSource:
    """The network as C: whether it was written, why not, and how much memory its constants and its static arrays take."""

    written: bool
    reason: str
    constant_bytes: int | None
    static_bytes: int | None


def read_certificates(directory: Path, sparse: Outcome | None, dense: Outcome | None, names: tuple[str, ...]) -> tuple[CertificateRow, ...]:
    """Returns a row for each certificate that an artifact holds: the deployed file's, the further ones, the dense parent's."""
    rows = []
    timed = _timed(directory / "profile" / "onnxruntime-fp32.json")
    if sparse is not None:
        audit = load_object(directory / "certificate" / "audit.json")
        rows.append(_row(SPARSE.name, SPARSE.certificate, sparse, audit, sparse.model_file, timed.sparse if timed else None, ""))
    for form in FURTHER:
        part = load_object(directory / form.certificate)
        if part is None:
            continue
        outcome = read_outcome(part, names)
        file = outcome.model_file if form.is_onnx else form.file
        alone = _timed(directory / form.latency) if form.latency else None
        audit = load_object(directory / form.audit)
        rows.append(_row(form.name, form.certificate, outcome, audit, file, alone.sparse if alone else None, part.text("note")))
    if dense is not None:
        rows.append(_row(DENSE.name, DENSE.certificate, dense, None, dense.model_file, timed.dense if timed else None, ""))
    return tuple(rows)


def read_c_source(directory: Path) -> CSource | None:
    """Reads model/c_source.json; None where the target asked for no C."""
    part = load_object(directory / C_RECORD)
    if part is None:
        return None
    return CSource(bool(part.flag("written")), part.text("reason"), part.count("constant_bytes"), part.count("static_bytes"))


def missing_certificates(directory: Path, precisions: tuple[str, ...], rows: tuple[CertificateRow, ...]) -> tuple[str, ...]:
    """Returns the certificates that should be there and are not: those of `precisions`, and that of a C source that was written."""
    there = {row.name for row in rows}
    source = read_c_source(directory)
    with_c = (source is not None and source.written) or (directory / SEQUENTIAL.file).exists()
    asked = {"always": True, "baseline": False, "c_source": with_c}
    wanted = [form.name for form in FORMS if asked.get(form.asked, form.name in precisions)]
    return tuple(name for name in wanted if name not in there)


def _timed(path: Path) -> LatencyComparison | None:
    part = load_object(path)
    return None if part is None else measurements.read_comparison(part)


def _row(name: str, place: str, outcome: Outcome, audit: Part | None, file: str, latency: Latency | None, note: str) -> CertificateRow:
    check = read_check(audit)
    return CertificateRow(
        name=name,
        model_file=file,
        contract=outcome.contract.name,
        samples=outcome.samples,
        clean_share=outcome.clean_share,
        attacked_share=outcome.attacked_share,
        certified_share=outcome.certified_share,
        certified_by=tuple((method.name, method.certified) for method in outcome.methods if method.certified),
        proof_bytes_each=outcome.proof_bytes_each,
        audit_passed=check.passed if check else None,
        audit_reason=_audit_reason(check, note),
        audit_executions=audit.count("executions") if audit else None,
        audit_violations=violations(audit) if audit else None,
        void_reason=outcome.void_reason,
        latency_ms_p50=latency.latency_ms_p50 if latency else None,
        certificate_file=place,
        certified_file=outcome.model_file,
        certified_sha256=outcome.model_sha256,
        against_majority=outcome.against_majority,
    )


def _audit_reason(check: Check | None, note: str) -> str:
    """Returns why an audit failed, or, as the certificate's note has it, why there is none."""
    if check is not None:
        return check.reason
    return NOT_AUDITED + note.partition(NOT_AUDITED)[2] if NOT_AUDITED in note else ""
