"""An artifact against its manifest, its models against the certificates, and every certified claim against its own derivation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from vsparse_check.bounds import Bounds
from vsparse_check.certificate import read_certificate, read_file, read_json
from vsparse_check.claims import CONFIRMED, REFUTED, UNCHECKED, Place, Progress, Record, check_certificate, content_sha256
from vsparse_check.layout import CERTIFICATES, check_device, check_layout, check_manifest
from vsparse_check.limits import Budget
from vsparse_check.model import Network
from vsparse_check.refusal import Refused, Unchecked, known, need, plain, reading
from vsparse_check.region import Property, Region
from vsparse_check.reports import check_documents
from vsparse_check.rounding import CONTRACTS, Rounding
from vsparse_check.samples import Data
from vsparse_check.wording import left_to_the_reader, sentence

__all__ = ["CheckResult", "Record", "Toolchain", "check", "content_sha256"]
# Files whose text follows from others.
WRITTEN = ("model/model.c", "model/model.h", "device/run_on_device.py", "gates.json", "report.json", "report.html")


class Toolchain(NamedTuple):
    """What writes files that follow from others: its version, and the texts by path for an artifact's directory."""

    version: str
    write: Callable[[Path], Mapping[str, str]]


class CheckResult(NamedTuple):
    """What was found. `status` is 0 when everything is confirmed, 1 when something is not, 2 when there is nothing that can be checked.

    `certified` counts the claims, `confirmed` those that were derived again; `problem` is the first thing that is not confirmed.
    `verdict` is "confirmed", "refuted" or "cannot be checked", over all certificates; `certificates` has a record of each; `left` names
    what nobody but the reader can judge. `not_derived` counts claims about the dense parent whose inputs the artifact does not hold.
    """

    status: int
    certified: int
    confirmed: int
    problem: str
    not_derived: int = 0
    verdict: str = UNCHECKED
    certificates: tuple[Record, ...] = ()
    left: str = ""

    @property
    def passed(self) -> bool:
        """Whether every hash, the certificates, what follows from them and every certified claim are confirmed."""
        return self.status == 0

    @property
    def sentence(self) -> str:
        """The result in a line for all, a line for each certificate, and a line about what is left to the reader."""
        if self.status == 2:
            return plain(self.problem)
        return sentence(self.verdict, self.problem, self.certified, self.confirmed, self.certificates, self.left)

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values; text of files is spelled out in ASCII."""
        records = [{**one._asdict(), "clean": list(one.clean), "certified_accuracy": one.certified_accuracy} for one in self.certificates]
        content = {"schema_version": 1, "passed": self.passed, **self._asdict(), "certificates": records}
        return {key: plain(value) if isinstance(value, str) else value for key, value in content.items()}


def check(
    directory: Path | str,
    progress: Progress | None = None,
    *,
    data: Data | None = None,
    memory: int | None = None,
    work: int | None = None,
    toolchain: Toolchain | None = None,
) -> CheckResult:
    """Checks an artifact directory and never raises: what cannot be read is never confirmed.

    Checked: the manifest lists exactly the files that are there, with their SHA-256; each certificate has its own hash and agrees with
    itself; each model has the content hash that its certificate names; each certified claim follows from model, input, region, contract
    and, where it was searched for, its proof; samples are classified as stated; and documents, the device folder and, with `toolchain`, the
    C source follow from the rest. `data` are the samples that certificates should be about; `memory` in bytes and `work` in units of
    limits.py bound what a check may take.
    """
    root = Path(directory)
    try:
        there = (root / "manifest.json").is_file()
    except OSError:  # a name that is too long, a folder that may not be read
        there = False
    if not there:
        return CheckResult(2, 0, 0, f"{root!s:.200} holds no manifest.json; give the directory that `vsparse build` wrote")
    records, problem, verdict = list[Record](), "", CONFIRMED
    files = set[str]()
    try:
        with reading("the artifact"):
            files = check_manifest(root)
            check_layout(files)
    except Refused as error:
        return CheckResult(1, 0, 0, plain(error), verdict=UNCHECKED if isinstance(error, Unchecked) else REFUTED)
    size = sum((root / name).stat().st_size for name in files if name.startswith(("certificate/", "model/")))
    budget = Budget(memory, work, size)
    for folder, model in CERTIFICATES.items():
        if folder == "certificate" or any(name.startswith(f"{folder}/") for name in files):
            budget.release()
            place = Place(root / folder, root / model, folder, model)
            records.append(check_certificate(place, budget, data, progress or (lambda done, total: None)))
    budget.release()
    problem, verdict = _worst(records)
    # Nothing is written again of what was not understood, or was too large.
    toolchain = toolchain if verdict == CONFIRMED else None
    if verdict != REFUTED:
        try:
            with reading("the artifact"), np.errstate(all="ignore"):
                _check_the_rest(root, files, records, toolchain, budget)
        except Refused as error:
            told = UNCHECKED if isinstance(error, Unchecked) else REFUTED
            problem, verdict = (str(error), told) if told == REFUTED or not problem else (problem, verdict)
    certified, confirmed = sum(one.certified for one in records), sum(one.confirmed for one in records)
    if verdict == CONFIRMED and not confirmed:
        problem, verdict = "nothing is claimed: no sample is certified", UNCHECKED
    dense = sum(one.certified for one in records if one.name == "certificate/dense" and not (root / one.name / "inputs.npz").exists())
    left = left_to_the_reader(files, records, toolchain is not None)
    return CheckResult(
        0 if verdict == CONFIRMED else 1, certified, confirmed, plain(problem), dense, verdict, tuple(map(_harmless, records)), left
    )


def _harmless(record: Record) -> Record:
    """Returns a record whose text, which comes from files, is spelled out."""
    text: dict[str, Any] = {key: plain(value) for key, value in record._asdict().items() if isinstance(value, str)}
    return record._replace(**text)


def _worst(records: list[Record]) -> tuple[str, str]:
    """Returns the first problem, refutations first, and the verdict over all certificates."""
    for verdict in (REFUTED, UNCHECKED):
        for record in records:
            if record.verdict == verdict:
                return record.problem, verdict
    return "", CONFIRMED


def _check_the_rest(root: Path, files: set[str], records: list[Record], toolchain: Toolchain | None, budget: Budget) -> None:
    """Refuses what does not follow from the claims: the device folder, documents, and files that can be written again."""
    certificates = {one.name: read_certificate(root / one.name / "certificate.json", budget)[0] for one in records if one.model}
    main = certificates.get("certificate")
    if main is None:
        return
    check_device(root, files, main["certificate_sha256"])
    _check_probes(root, files, main, budget)
    check_documents(root, files, certificates)
    if "model/c_source.json" in files:
        told, there = read_json(root / "model/c_source.json").get("written"), "model/model.c" in files
        need(
            told is there,
            f"model/c_source.json says that model.c was {'' if told else 'not '}written, and it is {'' if there else 'not '}there",
        )
    if toolchain is not None and "model/model.fp32.onnx" in files:
        texts, version = toolchain.write(root), toolchain.version
        by = str(read_json(root / "manifest.json").get("vsparse_version", ""))
        for name in [name for name in WRITTEN if name in files]:
            same = name in texts and read_file(root / name) == texts[name].encode()
            known(same or by == version, f"{name} was written by vsparse {by:.20}, and this is {version}: compare it with that version")
            need(same, f"{name} is not what the artifact is written as: its text does not follow from the other files")


def _check_probes(root: Path, files: set[str], main: dict[str, Any], budget: Budget) -> None:
    """Refuses probes of the device folder whose stated enclosures are not ones of the network's logits: too narrow, elsewhere, or wide."""
    if "device/manifest.json" not in files or main["contract"] not in CONTRACTS.values():
        return
    for entry in read_json(root / "device/manifest.json").get("models", []):
        probes, file = entry.get("probes", []), f"model/{entry['file']}"
        if not probes or file != main["model"]["file"]:
            need(not probes, f"device/manifest.json has probes of {file}, which its certificate is not about")
            continue
        model = onnx.ModelProto()
        model.ParseFromString(read_file(root / file))
        network = Network(model, budget)
        need(len(probes) <= 64, "device/manifest.json has more probes than a device is given")
        rounding = Rounding(network, main["contract"])
        low, high = main["property"]["clip"]
        nothing = Property("linf", Fraction(0), Fraction(0), Fraction(0), (float(low), float(high)))
        for probe in probes:
            x = np.frombuffer(read_file(root / "device" / probe["file"], 2**28), "<f4").astype(np.float64)[None]
            need(x.shape[1] == prod(network.shape) and np.isfinite(x).all(), f"device/{probe['file']} is no input of {file}")
            bounds = Bounds(network, rounding, Region(nothing, x), refine=False)
            own, told = bounds.boxes[network.output], (np.array(probe["lower"], float), np.array(probe["upper"], float))
            need(told[0].shape == told[1].shape == own[0][0].shape, f"device/{probe['file']} has enclosures of other logits")
            value, slack = bounds.executed.values[network.output][0], 4 * (own[1] - own[0])[0] + 1e-6
            holds = (told[0] <= value + 1e-6 * (1 + np.abs(value))) & (told[1] >= value - 1e-6 * (1 + np.abs(value)))
            fits = (holds & (told[1] - told[0] <= slack)).all()
            need(fits, f"device/manifest.json states an enclosure of the logits of {probe['file']} that is none, or says nothing")
