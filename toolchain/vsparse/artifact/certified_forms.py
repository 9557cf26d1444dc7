"""The deployed forms that an artifact holds a certificate of: a row for each, with its audit and its latency."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pydantic import Field

from vsparse.artifact.certificate import NOT_AUDITED, Certificate, read_certificate
from vsparse.artifact.checks import AuditRecord
from vsparse.artifact.document import Count, Fraction01, Part, read_if_there
from vsparse.artifact.forms import BY_NAME, FORMS, DeployedForm
from vsparse.artifact.hashes import content_sha256
from vsparse.artifact.latency import Latency, LatencyFile
from vsparse.artifact.models import C_INT8_SOURCE, C_SOURCE, CSourceRecord
from vsparse.artifact.outcome import NetworkOutcome
from vsparse.majority import AgainstMajority


class CertificateRow(Part):
    """What one certificate comes to: about which file, under which contract, and whether its audit found a violation.

    Accuracies are fractions of all samples. Numbers of the audit are None where there is none (the dense parent is not deployed and has
    none).
    """

    name: str
    model_file: str
    contract: str
    samples: Count
    clean_accuracy: Fraction01 = Field(alias="clean_share")
    robust_accuracy: Fraction01 = Field(alias="attacked_share")
    certified_accuracy: Fraction01 = Field(alias="certified_share")
    certified_by: dict[str, int]
    proof_bytes_each: float | None
    audit_passed: bool | None
    audit_reason: str
    audit_executions: Count | None
    audit_violations: Count | None
    void_reason: str
    latency_ms_p50: float | None
    certificate_file: str
    certified_file: str
    certified_sha256: str
    against_majority: AgainstMajority

    @property
    def form(self) -> DeployedForm:
        """The form that the certificate is about."""
        return BY_NAME[self.name]

    @property
    def goes_unaudited(self) -> bool:
        """Whether there is no audit, for a reason that excuses it: C source where there is no C compiler."""
        return self.audit_passed is None and not self.form.is_onnx and self.audit_reason.startswith(NOT_AUDITED)


def read_certificates(directory: Path) -> dict[str, Certificate]:
    """Reads the certificate of each form that an artifact has one of, by the form's name; one that was changed is read as void."""
    paths = {form.name: directory / form.certificate for form in FORMS}
    return {name: read_certificate(path, changed="void") for name, path in paths.items() if path.exists()}


def certificate_rows(
    directory: Path, certificates: Mapping[str, Certificate], outcomes: Mapping[str, NetworkOutcome]
) -> tuple[CertificateRow, ...]:
    """Returns a row for each certificate of an artifact and what its claims add up to, in the order of the table of forms."""
    return tuple(_row(directory, form, certificates[form.name].note, outcomes[form.name]) for form in FORMS if form.name in certificates)


def missing_certificates(directory: Path, precisions: tuple[str, ...], rows: tuple[CertificateRow, ...]) -> tuple[str, ...]:
    """Returns the forms whose certificate should be there and is not: those of `precisions`, and a C source that was written."""
    there = {row.name for row in rows}
    wanted = [form for form in FORMS if _asked(form, directory, precisions)]
    return tuple(form.name for form in wanted if form.name not in there)


def other_models(directory: Path, rows: tuple[CertificateRow, ...]) -> tuple[str, ...]:
    """Returns the model files that are in an artifact with another content than their certificate names."""
    return tuple(dict.fromkeys(row.certified_file for row in rows if _is_other(directory, row)))


def form_latency(directory: Path, form: DeployedForm) -> Latency | None:
    """Returns the latency of a form as the build measured it, on the machine of the build; None where it was not timed."""
    timed = read_if_there(LatencyFile, directory / form.latency) if form.latency else None
    return None if timed is None else timed.dense if form.latency_key == "dense" else timed.packed


def _asked(form: DeployedForm, directory: Path, precisions: tuple[str, ...]) -> bool:
    if form.asked in ("c_source", "c_int8"):
        source = read_if_there(CSourceRecord, directory / (C_SOURCE if form.asked == "c_source" else C_INT8_SOURCE))
        return (source is not None and source.written) or (directory / form.file).exists()
    return form.asked == "always" or (form.asked == "precisions" and form.name in precisions)


def _row(directory: Path, form: DeployedForm, note: str, outcome: NetworkOutcome) -> CertificateRow:
    audit = read_if_there(AuditRecord, directory / form.audit) if form.audited else None
    return CertificateRow(
        name=form.name,
        model_file=outcome.model_file if form.is_onnx else form.file,
        contract=outcome.contract["name"],
        samples=outcome.samples,
        clean_accuracy=outcome.clean_accuracy,
        robust_accuracy=outcome.robust_accuracy,
        certified_accuracy=outcome.certified_accuracy,
        certified_by={method.name: method.certified for method in outcome.methods if method.certified},
        proof_bytes_each=outcome.proof_bytes_each,
        audit_passed=None if audit is None else audit.stands,
        audit_reason=_why_not_audited(note) if audit is None else audit.why,
        audit_executions=None if audit is None else audit.executions,
        audit_violations=None if audit is None else audit.violations,
        void_reason=outcome.void_reason,
        latency_ms_p50=None if (timed := form_latency(directory, form)) is None else timed.p50,
        certificate_file=form.certificate,
        certified_file=outcome.model_file,
        certified_sha256=outcome.model_sha256,
        against_majority=outcome.against_majority,
    )


def _why_not_audited(note: str) -> str:
    return NOT_AUDITED + note.partition(NOT_AUDITED)[2] if NOT_AUDITED in note else ""


def _is_other(directory: Path, row: CertificateRow) -> bool:
    """Whether the model that a certificate names is there with another content; False where it is not there at all."""
    inside = PurePosixPath(row.certified_file)
    if inside.is_absolute() or ".." in inside.parts or "\0" in row.certified_file or not (directory / inside).is_file():
        return False
    return content_sha256(directory / inside) != row.certified_sha256
