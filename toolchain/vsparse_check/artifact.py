"""An artifact against its manifest, its models against the certificates, and every certified claim against its own derivation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse_check import photometric
from vsparse_check.bounds import Bounds
from vsparse_check.certificate import METHODS, read_certificate, read_file, read_inputs, read_json
from vsparse_check.model import Network, Refused, need, reading
from vsparse_check.proofs import Proof, improve, read_proofs
from vsparse_check.region import Region
from vsparse_check.rounding import CONTRACTS, Rounding

# Where certificates lie, and the model that each must be about; all but the first are there only where they were asked for.
CERTIFICATES = {
    "certificate": "model/model.fp32.onnx",
    "certificate/dense": "model/dense.fp32.onnx",
    "certificate/fp16": "model/model.fp16.onnx",
    "certificate/int8": "model/model.int8.onnx",
    "certificate/sequential": "model/model.fp32.onnx",
}
NEAR, AT_ONCE = 1e-3, 256  # how little a margin may be missed by; claims of the cheapest method that are derived together
Progress = Callable[[int, int], None]


class CheckResult(NamedTuple):
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
        """Whether every hash, the certificates and every certified claim are confirmed."""
        return self.status == 0

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if self.status == 2:
            return self.problem
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
    root, found = Path(directory), list[CheckResult]()
    if not (root / "manifest.json").is_file():
        return CheckResult(2, 0, 0, f"{root} holds no manifest.json; give the directory that `vsparse build` wrote")
    try:
        with reading("the artifact"):
            check_manifest(root)
    except Refused as error:
        return CheckResult(1, 0, 0, _plain(error))
    for folder, model in CERTIFICATES.items():
        if folder == "certificate" or (root / folder).exists():
            claims = list[dict[str, Any]]()  # of this certificate, as soon as they are read
            try:
                with reading(folder), np.errstate(all="ignore"):  # what is not finite proves nothing
                    found.append(_one(root / folder, root / model, folder, model, claims, progress or (lambda done, total: None)))
            except Refused as error:
                found.append(CheckResult(1, len(claims), 0, f"{folder}: {error}"))
    problem = _plain(next((one.problem for one in found if one.problem), ""))
    certified, confirmed, left_out = (sum(column) for column in zip(*((c, d, n) for _, c, d, _, n in found), strict=True))
    return CheckResult(0 if not problem and certified == confirmed else 1, certified, confirmed, problem, left_out)


def _plain(text: object) -> str:
    return str(text).encode("ascii", "backslashreplace").decode()


def check_manifest(root: Path) -> None:
    """Refuses a manifest that does not list exactly the files that are there, each with its SHA-256."""
    files, present = read_json(root / "manifest.json")["files"], set()
    for name in files:
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and str(path) == name and not {"\\", "\0"} & set(name)
        need(inside, f'manifest.json lists "{name:.60}", which is no path inside the artifact')
    for entry in root.rglob("*"):
        need(not entry.is_symlink() and (entry.is_dir() or entry.is_file()), f"{entry.relative_to(root)} is a link or no plain file")
        present |= {entry.relative_to(root).as_posix()} if entry.is_file() else set()
    for name in sorted((present - {"manifest.json"}) ^ files.keys()):
        need(False, f"{name} is {'missing' if name in files else 'not listed in the manifest'}")
    for name, stated in sorted(files.items()):
        with (root / name).open("rb") as stream:
            need(hashlib.file_digest(stream, "sha256").hexdigest() == stated, f"{name} was changed: its sha256 is not the manifest's")


def content_sha256(model: onnx.ModelProto) -> str:
    """Returns the hash a certificate names a model by: of its deterministic serialisation with `metadata_props` cleared."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ClearField("metadata_props")
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()


def _one(folder: Path, file: Path, name: str, model_name: str, claims: list[dict[str, Any]], progress: Progress) -> CheckResult:
    """Checks one certificate, the model it is about, and its claims, which it adds to `claims`.

    A claim is confirmed when the bound by its method is positive and at least its margin, without tolerance. Where a method misses the
    margin by little, two roundings may differ: a stronger method decides.
    """
    (certificate, allowed), model = read_certificate(folder / "certificate.json"), onnx.ModelProto()
    claims += [claim for claim in certificate["claims"] if claim["verdict"] == "certified"]
    contract = certificate["contract"]
    known = f"the contract {contract!s:.40} is none whose rounding this checker bounds: {', '.join(CONTRACTS)}"
    need(contract in CONTRACTS.values(), known)
    with reading(model_name):
        model.ParseFromString(read_file(file))
        network = Network(model)
    same = certificate["model"] == {"file": model_name, "sha256": content_sha256(model)}
    need(same, f"{model_name} is not the model that {name}/certificate.json is about: its name or content hash differs")
    stamp = [entry.value for entry in model.metadata_props if entry.key == "vsparse.certificate"]
    ours = (
        stamp in ([], [certificate["certificate_sha256"]]) or name == "certificate/sequential"
    )  # whose model carries the hash of the first
    need(ours, f"{model_name} carries the hash of another certificate")
    count, done, problem = len(claims), 0, ""
    if name == "certificate/dense" and not (folder / "inputs.npz").exists():
        return CheckResult(0, 0, 0, "", count)
    inputs, proofs = read_inputs(folder / "inputs.npz", prod(network.shape)) if count else {}, dict[int, Proof]()
    if certificate.get("proofs_sha256") is not None:
        hashed = hashlib.sha256(read_file(folder / "proofs.npz")).hexdigest()
        need(hashed == certificate["proofs_sha256"], f"{name}/proofs.npz is not the file that the certificate is about")
        proofs = read_proofs(folder / "proofs.npz", sum(prod(op.shape) for op in network.ops if op.kind == "relu"))
    rounding, classes, early = Rounding(network, contract), network.shapes[network.output][0], dict[int, float]()
    cheap = [one for one in claims if one["method"] == METHODS[0] and not _unusable(one, inputs.get(one["id"]), allowed.clip, classes)]
    for some in [cheap[start : start + AT_ONCE] for start in range(0, len(cheap), AT_ONCE)]:
        xs, labels = np.stack([inputs[claim["id"]] for claim in some]).astype(np.float64), np.array([claim["label"] for claim in some])
        low = Bounds(network, rounding, Region(allowed, xs), refine=False).margins(labels, fold_only=True)[1]
        early |= dict(zip([claim["id"] for claim in some], low.reshape(len(some), -1).min(axis=1).tolist(), strict=True))
    for claim in claims:
        number, label, margin = claim["id"], claim["label"], claim["margin_lower"]
        rank, lower, proof, x = METHODS.index(claim["method"]), early.get(number, -np.inf), proofs.get(number), inputs.get(number)
        reason = _unusable(claim, x, allowed.clip, classes) or (
            "proofs.npz holds no proof of it" if 3 <= rank <= 4 and proof is None else ""
        )
        if x is not None and not reason and claim["method"] == photometric.METHOD:
            pieces = photometric.pieces_of(claim, allowed)
            lower = photometric.lowest(network, rounding, allowed, x[None].astype(np.float64), label, pieces, margin)
            reason = "" if lower >= margin else f"its margin is at least {lower:.6g} by {photometric.METHOD}, and {margin:.6g} is claimed"
        while x is not None and not reason and lower < margin:
            bounds = Bounds(network, rounding, Region(allowed, x[None].astype(np.float64)), refine=rank >= 2)
            rows, found = bounds.margins(np.array([label]), fold_only=rank == 0)
            lower = float((improve(bounds, proof, label, margin, rows, found) if proof and rank >= 3 else found).min())
            if lower < margin and (rank >= 2 or margin - lower > NEAR):
                reason = f"its margin is at least {lower:.6g} by {METHODS[rank]}, and {margin:.6g} is claimed"
            rank += 1
        done += not reason and 0 < margin <= lower
        problem = problem or (f"{name}: sample {number}: {reason}" if reason else "")
        progress(done, count)
    return CheckResult(0, count, done, problem)


def _unusable(claim: dict[str, Any], x: NDArray[np.float32] | None, clip: tuple[float, float], classes: int) -> str:
    """Returns why a claim cannot be derived at all, or an empty string."""
    if x is None:
        return "inputs.npz does not hold its input"
    if hashlib.sha256(x.tobytes()).hexdigest() != claim["input_sha256"]:
        return "its input in inputs.npz is not the one that the claim is about"
    if not ((x >= clip[0]) & (x <= clip[1])).all():
        return "its input is not a number, or outside the data range"
    return "" if 0 <= claim["label"] < classes > 1 else f"its label {claim['label']} is no class of the model"
