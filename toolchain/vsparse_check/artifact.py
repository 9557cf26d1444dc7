"""An artifact against its manifest, its models against the certificates, and every certified claim against its own derivation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse_check.bounds import Bounds
from vsparse_check.certificate import METHODS, Certificate, Claim, read_certificate, read_file, read_inputs, read_json
from vsparse_check.model import Refused, content_sha256, read
from vsparse_check.proofs import Proof, improved, read_proofs
from vsparse_check.region import Regions

MANIFEST, INPUTS, PROOFS = "manifest.json", "inputs.npz", "proofs.npz"
# Where certificates lie, and the model that each must be about; all but the first are there only where they were asked for.
CERTIFICATES = {
    "certificate": "model/model.fp32.onnx",
    "certificate/dense": "model/dense.fp32.onnx",
    "certificate/fp16": "model/model.fp16.onnx",
    "certificate/int8": "model/model.int8.onnx",
    "certificate/sequential": "model/model.fp32.onnx",
}
NEAR = 1e-3
BATCH_BYTES = 2**28
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckResult:
    """What was found. `status` is 0 when everything is confirmed, 1 when something is not, 2 when there is nothing that can be checked.

    `certified` counts the claims, `confirmed` those that were derived again; `problem` is the first thing that is not confirmed.
    `not_derived` counts claims about the dense parent whose inputs the artifact does not hold: nothing is said about them.
    """

    status: int
    certified: int
    confirmed: int
    problem: str
    not_derived: int = 0

    @property
    def passed(self) -> bool:
        """Whether every hash, the certificate and every certified claim are confirmed."""
        return self.status == 0

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if not self.passed:
            return f"not confirmed ({self.confirmed} of {self.certified} certified claims are): {self.problem}"
        dense = f"; not derived: {self.not_derived} claims about the dense parent" if self.not_derived else ""
        return f"confirmed: {self.confirmed} of {self.certified} certified claims, derived again from model and inputs; every hash{dense}"


def check(directory: Path | str, progress: Progress | None = None) -> CheckResult:
    """Checks an artifact directory and never raises: what cannot be read is never confirmed.

    Checked: the manifest lists exactly the files that are there, with their SHA-256; each certificate has its own hash and agrees with
    itself; each model has the content hash that its certificate names; each certified claim follows from model, input, region, contract
    and, where it was searched for, its proof.
    """
    root = Path(directory)
    try:
        if not (root / MANIFEST).is_file():
            return CheckResult(2, 0, 0, f"{root} holds no {MANIFEST}; give the directory that `vsparse build` wrote")
        with np.errstate(all="ignore"):  # what is not finite proves nothing
            found = _check(root, progress)
        problem = next((text for _, _, text, _ in found if text), "")
        counts = [sum(column) for column in zip(*((claims, done, skipped) for claims, done, _, skipped in found), strict=True)]
        return CheckResult(1 if problem else 0, counts[0], counts[1], _printable(problem), counts[2])
    except Refused as error:
        return CheckResult(1, 0, 0, _printable(str(error)))
    except Exception as error:  # nothing an artifact holds may end in a traceback, and nothing unexpected may confirm it
        return CheckResult(1, 0, 0, f"the artifact cannot be checked: {_printable(repr(error)[:200])}")


def _printable(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _check(root: Path, progress: Progress | None) -> list[tuple[int, int, str, int]]:
    """Returns for each certificate: its claims, how many are confirmed, why the first of the others is not, and how many are left out."""
    check_manifest(root)
    found = []
    for folder, file in CERTIFICATES.items():
        if folder != "certificate" and not (root / folder).exists():
            continue
        certificate, model = read_certificate(root / folder / "certificate.json"), onnx.ModelProto()
        try:
            model.ParseFromString(read_file(root / file))
        except Exception as error:  # protobuf raises different types from release to release
            raise Refused(f"{file} is no ONNX file ({error!r:.80})") from error
        if certificate.model != (file, content_sha256(model)):
            raise Refused(f"{file} is not the model that {folder}/certificate.json is about: its name or content hash differs")
        stamp = [entry.value for entry in model.metadata_props if entry.key == "vsparse.certificate"]
        if stamp not in ([], [certificate.sha256]) and folder != "certificate/sequential":  # that model is stamped by the first
            raise Refused(f"{file} carries the hash of another certificate")
        bounds, count = Bounds(read(model), certificate.contract), len(certificate.claims)
        if folder == "certificate/dense" and not (root / folder / INPUTS).exists():
            found.append((0, 0, "", count))
            continue
        inputs = read_inputs(root / folder / INPUTS, prod(bounds.network.shape)) if count else {}
        proofs = {}
        if certificate.proofs_sha256:
            if hashlib.sha256(read_file(root / folder / PROOFS)).hexdigest() != certificate.proofs_sha256:
                raise Refused(f"{folder}/{PROOFS} is not the file that the certificate is about")
            proofs = read_proofs(root / folder / PROOFS, bounds.units)
        done, problem = _derive(bounds, certificate, inputs, proofs, progress)
        found.append((count, done, f"{folder}: {problem}" if problem else "", 0))
    return found


def check_manifest(root: Path) -> None:
    """Refuses a manifest that does not list exactly the files that are there, each with its SHA-256."""
    files = read_json(root / MANIFEST).get("files")
    if not isinstance(files, dict) or not files:
        raise Refused(f"{MANIFEST} lists no files")
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name or "\0" in name or name == MANIFEST:
            raise Refused(f'{MANIFEST} lists "{name:.60}", which is no path inside the artifact')
    present = set()
    for entry in sorted(root.rglob("*")):
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            raise Refused(f"{entry.relative_to(root)} is a link or no plain file")
        if entry.is_file():
            present.add(entry.relative_to(root).as_posix())
    odd = sorted((present - {MANIFEST}) ^ set(files))
    if odd:
        raise Refused(f"{odd[0]} is {'missing' if odd[0] in files else 'not listed in the manifest'}")
    for name, stated in sorted(files.items()):
        with (root / name).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != stated:
                raise Refused(f"{name} was changed: its sha256 is not the manifest's")


def _derive(
    bounds: Bounds, certificate: Certificate, inputs: dict[int, NDArray[np.float32]], proofs: dict[int, Proof], progress: Progress | None
) -> tuple[int, str]:
    """Returns how many claims are confirmed, and why the first of the others is not.

    A claim is confirmed when the bound by its method is positive and at least its margin, without tolerance. Where a method misses the
    margin by little, two roundings may differ: a stronger method decides.
    """
    reasons = {claim.id: _unusable(claim, certificate, inputs, proofs, bounds.classes) for claim in certificate.claims}
    again: list[Claim] = []
    done, step = 0, max(1, BATCH_BYTES // (64 * bounds.total))
    for method in METHODS:
        now = [claim for claim in certificate.claims if claim.method == method and not reasons[claim.id]] + again
        again = []
        for start in range(0, len(now), step):
            batch = now[start : start + step]
            regions = Regions(certificate.region, np.stack([inputs[claim.id] for claim in batch]).astype(np.float64))
            samples = bounds.samples(bounds.boxes(regions, refine=method not in METHODS[:2]), regions)
            for claim, of in zip(batch, samples, strict=True):
                rows = bounds.margins(of, claim.label, fold_only=method == METHODS[0])
                if method in METHODS[3:] and claim.id in proofs:
                    rows = improved(rows, bounds, proofs[claim.id], of, claim.label, claim.margin_lower)
                lower = float(rows.min())
                if lower > 0 and claim.margin_lower <= lower:
                    done, reasons[claim.id] = done + 1, ""
                    continue
                reasons[claim.id] = f"its margin is at least {lower:.6g} by {method}, and {claim.margin_lower:.6g} is claimed"
                again += [claim] if claim.margin_lower - lower < NEAR and method in METHODS[:2] else []
            if progress is not None:
                progress(done, len(certificate.claims))
    problem = next((f"sample {claim.id}: {reasons[claim.id]}" for claim in certificate.claims if reasons[claim.id]), "")
    return done, problem if problem or done == len(certificate.claims) else "a claim was left out"


def _unusable(
    claim: Claim, certificate: Certificate, inputs: dict[int, NDArray[np.float32]], proofs: dict[int, Proof], classes: int
) -> str:
    """Returns why a claim cannot be derived at all, or an empty string."""
    x, (low, high) = inputs.get(claim.id), certificate.region.clip
    if x is None:
        return f"{INPUTS} does not hold its input"
    if hashlib.sha256(np.ascontiguousarray(x, dtype="<f4").tobytes()).hexdigest() != claim.input_sha256:
        return f"its input in {INPUTS} is not the one that the claim is about"
    if not ((x >= low) & (x <= high)).all():
        return "its input is not a number, or outside the data range"
    if claim.method in METHODS[3:] and claim.id not in proofs:
        return f"there is no proof for it in {PROOFS}"
    return "" if classes > 1 and claim.label < classes else f"its label {claim.label} is no class of the model"
