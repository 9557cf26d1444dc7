"""An artifact against its manifest, its model against the certificate, and every certified claim against its own derivation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from vsparse_check.bounds import PAIRS_BYTES, Bounds, ball
from vsparse_check.certificate import METHODS, Certificate, Claim, read_certificate, read_file, read_inputs, read_json
from vsparse_check.model import Network, Refused, content_sha256, parse, read

MANIFEST, INPUTS = "manifest.json", "inputs.npz"
# Where certificates lie, and the model that each must be about; the second is there when a dense parent was built for comparison.
CERTIFICATES = {"certificate": "model/model.fp32.onnx", "certificate/dense": "model/dense.fp32.onnx"}
NEAR = 1e-3
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
        if self.passed:
            dense = f"; not derived: {self.not_derived} claims about the dense parent" if self.not_derived else ""
            return (
                f"confirmed: {self.confirmed} of {self.certified} certified claims, derived again from model and inputs; every hash{dense}"
            )
        return f"not confirmed ({self.confirmed} of {self.certified} certified claims are): {self.problem}"


def check(directory: Path | str, progress: Progress | None = None) -> CheckResult:
    """Checks an artifact directory and never raises: what cannot be read is never confirmed.

    Checked: the manifest lists exactly the files that are there, with their SHA-256; certificate.json has its own hash and agrees with
    itself; the model has the content hash that the certificate names; each certified claim follows from model, input, ball and contract.
    """
    root = Path(directory)
    try:
        if not (root / MANIFEST).is_file():
            return CheckResult(2, 0, 0, f"{root} holds no {MANIFEST}; give the directory that `vsparse build` wrote")
        return _check(root, progress)
    except Refused as error:
        return CheckResult(1, 0, 0, _printable(str(error)))
    except Exception as error:  # nothing an artifact holds may end in a traceback, and nothing unexpected may confirm it
        return CheckResult(1, 0, 0, f"the artifact cannot be checked: {_printable(repr(error)[:200])}")


def _printable(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _check(root: Path, progress: Progress | None) -> CheckResult:
    check_manifest(root)
    certified = confirmed = not_derived = 0
    problem = ""
    for folder, model in CERTIFICATES.items():
        if folder != "certificate" and not (root / folder).exists():
            continue
        certificate, network = _bound_together(root, folder, model)
        count = len(certificate.claims)
        if folder != "certificate" and not (root / folder / INPUTS).exists():
            not_derived += count
            continue
        inputs = read_inputs(root / folder / INPUTS, prod(network.shape)) if count else {}
        failed = _first_failure(network, certificate, inputs, progress)
        certified, confirmed = certified + count, confirmed + (failed[0] if failed else count)
        problem = problem or (f"{folder}: {failed[1]}" if failed else "")
    return CheckResult(1 if problem else 0, certified, confirmed, _printable(problem), not_derived)


def _bound_together(root: Path, folder: str, model: str) -> tuple[Certificate, Network]:
    """Returns a certificate and the network it is about; Refused where file, content hash or stamp name another model or certificate."""
    certificate = read_certificate(root / folder / "certificate.json")
    proto = parse(read_file(root / model))
    if certificate.model_file != model or content_sha256(proto) != certificate.model_sha256:
        raise Refused(f"{model} is not the model that {folder}/certificate.json is about: its name or content hash differs")
    if [entry.value for entry in proto.metadata_props if entry.key == "vsparse.certificate"] not in ([], [certificate.sha256]):
        raise Refused(f"{model} carries the hash of another certificate")
    return certificate, read(proto)


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


def _first_failure(
    network: Network, certificate: Certificate, inputs: dict[int, NDArray[np.float32]], progress: Progress | None
) -> tuple[int, str] | None:
    """Returns how many claims are confirmed and why the first of the others is not, or None when all are."""
    bounds = Bounds(network, certificate.contract != "real")
    classes = {op.output: op.shape for op in network.ops}.get(network.output, network.shape)[0]
    total = sum(prod(op.shape) for op in network.ops) + prod(network.shape)
    step = max(1, PAIRS_BYTES // (64 * total))
    open_claims: list[Claim] = []
    reasons: dict[int, str] = {}
    for claim in certificate.claims:
        reason = _unusable(claim, inputs, certificate.clip, classes)
        if reason:
            reasons[claim.id] = reason
        else:
            open_claims.append(claim)
    done, total_claims = 0, len(certificate.claims)
    again: list[Claim] = []
    for method in METHODS:
        now = [claim for claim in open_claims if claim.method == method] + again
        again = []
        for start in range(0, len(now), step):
            batch = now[start : start + step]
            x = np.stack([inputs[claim.id] for claim in batch]).astype(np.float64)
            lower = bounds.margins(ball(x, certificate.radius, certificate.clip), np.array([claim.label for claim in batch]), method)
            for claim, bound in zip(batch, lower.tolist(), strict=True):
                if bound > 0 and claim.margin_lower <= bound:
                    done += 1
                    reasons.pop(claim.id, None)
                    continue
                reasons[claim.id] = f"its margin is at least {bound:.6g} by {method}, and {claim.margin_lower:.6g} is claimed"
                if claim.margin_lower - bound < NEAR:  # where two roundings differ, a stronger method decides
                    again.append(claim)
            if progress is not None:
                progress(done, total_claims)
    failed = next((claim for claim in certificate.claims if claim.id in reasons), None)
    if failed is None and done == total_claims:
        return None
    return done, f"sample {failed.id}: {reasons[failed.id]}" if failed else "a claim was left out"


def _unusable(claim: Claim, inputs: dict[int, NDArray[np.float32]], clip: tuple[float, float], classes: int) -> str:
    """Returns why a claim cannot be derived at all, or an empty string."""
    x = inputs.get(claim.id)
    if x is None:
        return f"{INPUTS} does not hold its input"
    if hashlib.sha256(np.ascontiguousarray(x, dtype="<f4").tobytes()).hexdigest() != claim.input_sha256:
        return f"its input in {INPUTS} is not the one that the claim is about"
    if not ((x >= clip[0]) & (x <= clip[1])).all():
        return "its input is not a number, or outside the data range"
    return "" if claim.label < classes else f"its label {claim.label} is no class of the model"
