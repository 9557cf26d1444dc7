"""A whole artifact: its manifest, its certificates, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vsparse_check.absence import WAY_OUT, check_absence
from vsparse_check.certificate import read_certificate
from vsparse_check.certifying import check_certifying
from vsparse_check.claims import check_certificate, content_sha256
from vsparse_check.device import check_device, check_probes
from vsparse_check.device_results import device_of
from vsparse_check.documents import check_documents
from vsparse_check.features import check_features
from vsparse_check.files import read_file, read_json
from vsparse_check.layout import CERTIFICATES, check_layout, check_manifest
from vsparse_check.limits import ResourceBudget
from vsparse_check.live import ReplayedVerdicts, check_live
from vsparse_check.records import (
    ABSENT,
    CONFIRMED,
    REFUTED,
    UNCHECKED,
    CertificateFiles,
    CertificateRecord,
    ProgressCallback,
)
from vsparse_check.refusal import NotConfirmed, Unchecked, known, need, plain, reading
from vsparse_check.samples import SampleData
from vsparse_check.target_check import runtime_of
from vsparse_check.wording import CERTIFYING, left_to_the_reader, on_device, sentence

__all__ = ["CertificateRecord", "CheckResult", "Toolchain", "check", "content_sha256"]
# Files whose text follows from others.
WRITTEN = (
    "model/model.c",
    "model/model.h",
    "model/model_weights.h",
    "model/model_weights.S",
    "model/model_weights.bin",
    "model/model.int8.c",
    "model/model.int8.h",
    "model/model.int8_weights.h",
    "model/model.int8_weights.S",
    "model/model.int8_weights.bin",
    "model/model_columns.h",
    *CERTIFYING,
    "device/agent.py",
    "device/run_on_device.py",
    "device/certify_on_device.py",
    "gates.json",
    "choice.json",
    "report.json",
    "report.html",
)


class Toolchain(NamedTuple):
    """What writes files that follow from others: its version, and their contents by path."""

    version: str
    write: Callable[[Path], Mapping[str, str | bytes]]


class OverallVerdict(NamedTuple):
    """The verdict over something, and the first thing in it that is not confirmed."""

    verdict: str
    text: str = ""


class CheckResult(NamedTuple):
    """What was found.

    `status` is 0 when everything is confirmed, 1 when something is not, 2 when there is nothing
    that can be checked. `certified` counts the claims, `confirmed` those that were derived again;
    `problem` is the first thing that is not confirmed. `verdict` is "confirmed", "refuted" or
    "cannot be checked", over all certificates, or "no certificate" of an artifact that has none;
    `certificates` has a record of each; `left` names
    what nobody but the reader can judge. `not_derived` counts claims about the dense parent whose
    inputs the artifact does not hold. `live` counts the recorded live verdicts that were replayed.
    `device` says whose results the artifact holds, and `not_certified_on_this_device` what was seen
    there that no certificate allows.
    """

    status: int
    certified: int
    confirmed: int
    problem: str
    not_derived: int = 0
    verdict: str = UNCHECKED
    certificates: tuple[CertificateRecord, ...] = ()
    left: str = ""
    live: ReplayedVerdicts = ReplayedVerdicts()
    device: str = ""
    not_certified_on_this_device: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """A result is true where all is confirmed."""
        return self.passed

    def _repr_html_(self) -> str:
        colour = "#0c6b3f" if self.passed else "#a11b1b"
        lines = "<br>".join(escape(line) for line in self.sentence.splitlines())
        return f'<p style="color:{colour}">{lines}</p>'

    @property
    def passed(self) -> bool:
        """Whether every hash, certificate and certified claim, and what follows, is confirmed."""
        return self.status == 0

    @property
    def sentence(self) -> str:
        """The result in a line for all, one for each certificate, one for what is left."""
        if self.status == 2:
            return plain(self.problem)
        return sentence(
            self.verdict,
            self.problem,
            self.certified,
            self.confirmed,
            self.certificates,
            self.left,
            self.live,
            on_device(self.device, self.not_certified_on_this_device),
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values; text of files is spelled out in ASCII."""
        records = [
            {
                **one._asdict(),
                "clean": list(one.clean),
                "certified_accuracy": one.certified_accuracy,
            }
            for one in self.certificates
        ]
        content = {"schema_version": 1, "passed": self.passed, **self._asdict()}
        content["certificates"] = records
        content["live"] = self.live._asdict()
        told = [plain(one) for one in self.not_certified_on_this_device]
        content["not_certified_on_this_device"] = told
        return {
            key: plain(value) if isinstance(value, str) else value for key, value in content.items()
        }


def check(
    directory: Path | str,
    progress: ProgressCallback | None = None,
    *,
    data: SampleData | None = None,
    memory: int | None = None,
    work: int | None = None,
    toolchain: Toolchain | None = None,
) -> CheckResult:
    """Checks an artifact directory and never raises: what cannot be read is never confirmed.

    Checked: the manifest lists exactly the files that are there, with their SHA-256; each
    certificate has its own hash and agrees with itself; each model has the content hash that its
    certificate names; each certified claim follows from model, input, region, contract and, where
    it was searched for, its proof; samples are classified as stated; and documents, the device
    folder and, with `toolchain`, the C source follow from the rest. `data` are the samples that
    certificates should be about; `memory` in bytes and `work` in units of limits.py bound what a
    check may take.
    """
    root = Path(directory)
    if not _has_manifest(root):
        hint = "give the directory that `vsparse build` wrote"
        return CheckResult(2, 0, 0, f"{root!s:.200} holds no manifest.json; {hint}")
    try:
        with reading("the artifact"):
            files = check_manifest(root)
            check_layout(files)
            absent = not any(name.startswith("certificate/") for name in files)
            if absent:
                check_absence(root, files)
            runtime = runtime_of(root, files)
    except NotConfirmed as error:
        return CheckResult(1, 0, 0, plain(error), verdict=_verdict_of(error))
    if absent:
        return CheckResult(1, 0, 0, WAY_OUT, verdict=ABSENT)
    budget = ResourceBudget(memory, work, _size_to_check(root, files))
    records = _check_certificates(root, files, runtime, budget, data, progress)
    problem = worst(records)
    # Nothing is written again of what was not understood, or was too large.
    if problem.verdict != CONFIRMED:
        toolchain = None
    live = ReplayedVerdicts()
    if problem.verdict != REFUTED:
        rest, live = _check_the_rest(root, files, records, toolchain, budget)
        problem = _worse(problem, rest)
    confirmed = sum(one.confirmed for one in records)
    device, seen = device_of(root, files)
    if problem.verdict == CONFIRMED and not confirmed:
        problem = OverallVerdict(UNCHECKED, "nothing is claimed: no sample is certified")
    return CheckResult(
        status=0 if problem.verdict == CONFIRMED else 1,
        certified=sum(one.certified for one in records),
        confirmed=confirmed,
        problem=plain(problem.text),
        not_derived=_not_derived(root, records),
        verdict=problem.verdict,
        certificates=tuple(_harmless(record) for record in records),
        left=left_to_the_reader(files, records, toolchain is not None),
        live=live,
        device=plain(device),
        not_certified_on_this_device=seen,
    )


def _has_manifest(root: Path) -> bool:
    """Returns whether a folder holds a manifest.json; False where the system cannot tell."""
    try:
        return (root / "manifest.json").is_file()
    except OSError:  # a name that is too long, a folder that may not be read
        return False


def _size_to_check(root: Path, files: set[str]) -> int:
    """Returns the bytes of models and certificates, which the limits go by."""
    counted = [name for name in files if name.startswith(("certificate/", "model/"))]
    return sum((root / name).stat().st_size for name in counted)


def _check_certificates(
    root: Path,
    files: set[str],
    runtime: str,
    budget: ResourceBudget,
    data: SampleData | None,
    progress: ProgressCallback | None,
) -> list[CertificateRecord]:
    """Checks the first certificate, and the further ones whose folders hold something."""
    records = []
    for folder, model in CERTIFICATES.items():
        there = any(name.startswith(f"{folder}/") for name in files)
        if folder == "certificate" or there:
            budget.release()
            where = CertificateFiles(root / folder, root / model, folder, model, runtime)
            shown = progress or (lambda done, total: None)
            records.append(check_certificate(where, budget, data, shown))
    budget.release()
    return records


def _verdict_of(error: NotConfirmed) -> str:
    """Returns REFUTED, or UNCHECKED for what is outside of what is known."""
    return UNCHECKED if isinstance(error, Unchecked) else REFUTED


def worst(records: list[CertificateRecord]) -> OverallVerdict:
    """Returns the first problem of all certificates, refutations first."""
    for verdict in (REFUTED, UNCHECKED):
        for record in records:
            if record.verdict == verdict:
                return OverallVerdict(verdict, record.problem)
    return OverallVerdict(CONFIRMED)


def _worse(first: OverallVerdict, second: OverallVerdict) -> OverallVerdict:
    """Returns the second problem where it is a refutation, or where the first is none."""
    if second.verdict == REFUTED:
        return second
    return second if second.text and not first.text else first


def _not_derived(root: Path, records: list[CertificateRecord]) -> int:
    """Returns how many claims about the dense parent have no inputs in the artifact."""
    dense = [one for one in records if one.name == "certificate/dense"]
    return sum(one.certified for one in dense if not (root / one.name / "inputs.npz").exists())


def _harmless(record: CertificateRecord) -> CertificateRecord:
    """Returns a record whose text, which comes from files, is spelled out."""
    text: dict[str, Any] = {
        key: plain(value) for key, value in record._asdict().items() if isinstance(value, str)
    }
    return record._replace(**text)


def _check_the_rest(
    root: Path,
    files: set[str],
    records: list[CertificateRecord],
    toolchain: Toolchain | None,
    budget: ResourceBudget,
) -> tuple[OverallVerdict, ReplayedVerdicts]:
    """Checks what follows from the claims, and returns what was replayed of live verdicts.

    The device folder, documents, and files that the toolchain can write again.
    """
    live = ReplayedVerdicts()
    try:
        with reading("the artifact"), np.errstate(all="ignore"):
            certificates = {
                one.name: read_certificate(root / one.name / "certificate.json", budget)[0]
                for one in records
                if one.model
            }
            main = certificates.get("certificate")
            if main is not None:
                check_device(root, files, main["certificate_sha256"])
                check_probes(root, files, certificates, budget)
                live = check_live(root, files, certificates, budget)
                check_documents(root, files, certificates)
                _check_c_source(root, files)
                check_features(root, files, main)
                check_certifying(root, files, certificates, budget)
                if toolchain is not None and "model/model.fp32.onnx" in files:
                    _check_written(root, files, toolchain)
    except NotConfirmed as error:
        return OverallVerdict(_verdict_of(error), str(error)), live
    return OverallVerdict(CONFIRMED), live


def _check_c_source(root: Path, files: set[str]) -> None:
    """Refuses a statement that C source was written where there is none, and the other way."""
    for record, name in (("c_source.json", "model.c"), ("c_source.int8.json", "model.int8.c")):
        if f"model/{record}" not in files:
            continue
        told = read_json(root / "model" / record).get("written")
        there = f"model/{name}" in files
        need(
            told is there,
            f"model/{record} says that {name} was {'' if told else 'not '}written, "
            f"and it is {'' if there else 'not '}there",
        )


def _check_written(root: Path, files: set[str], toolchain: Toolchain) -> None:
    """Refuses files that are not what the toolchain writes from the others."""
    texts, version = toolchain.write(root), toolchain.version
    by = str(read_json(root / "manifest.json").get("vsparse_version", ""))
    for name in WRITTEN:
        if name not in files:
            continue
        text = texts.get(name, "")
        content = text.encode() if isinstance(text, str) else text
        same = name in texts and read_file(root / name) == content
        known(
            same or by == version,
            f"{name} was written by vsparse {by:.20}, and this is {version}: "
            "compare it with that version",
        )
        need(
            same,
            f"{name} is not what the artifact is written as: "
            "its text does not follow from the other files",
        )
