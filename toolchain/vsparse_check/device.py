"""The device/ folder: copies of the models, a script, and probes with stated enclosures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from vsparse_check.bounds import Bounds
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.files import read_file, read_json
from vsparse_check.limits import ResourceBudget
from vsparse_check.model import Model
from vsparse_check.refusal import need
from vsparse_check.region import ClaimedRegion, SampleRegions, point_in

MANIFEST, SCRIPT = "device/manifest.json", "device/run_on_device.py"
AGENT, CERTIFYING_SCRIPT = "device/agent.py", "device/certify_on_device.py"
# The certificates that networks in C are under, by their role in the manifest, and their files.
SOURCES = {
    "sequential": ("certificate/sequential", "model/model.fp32.onnx", "model.c"),
    "int8-c": ("certificate/int8/c", "model/model.int8.onnx", "model.int8.c"),
}
OF_SOURCES = (".c", ".h", ".S", "_weights.bin")
TYPED = "fp16-tensorrt"  # whose files keep their ends in float32
MAX_PROBES, MAX_PROBE_BYTES = 64, 2**28


def check_device(root: Path, files: set[str], certificate_sha256: str) -> None:
    """Refuses models that are not those of model/, and a manifest about other files."""
    folder = sorted(name for name in files if name.startswith("device/"))
    if not folder:
        return
    for name in folder:
        if name.endswith((".onnx", *OF_SOURCES)):
            original = "model/" + name.removeprefix("device/")
            same = original in files
            same = same and (root / original).read_bytes() == (root / name).read_bytes()
            need(same, f"{name} is not {original}, which the certificate is about")
    need(MANIFEST in files, "device/ has no manifest.json")
    manifest = read_json(root / MANIFEST)
    hashes = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in folder}
    stated = manifest.get("certificate_sha256", "")
    need(stated in ("", certificate_sha256), f"{MANIFEST} names another certificate")
    same = manifest.get("script_sha256") == hashes.get(SCRIPT)
    need(same, f"{SCRIPT} is not the script of its manifest")
    same = manifest.get("agent_sha256", None) == hashes.get(AGENT)
    need(same, f"{AGENT} is not the agent of its manifest")
    for certifying in certifying_of(manifest) or [{}]:
        same = certifying.get("script_sha256") == hashes.get(CERTIFYING_SCRIPT)
        need(same, f"{CERTIFYING_SCRIPT} is not the script of {MANIFEST}")
    _check_further(manifest)
    listed = _listed(manifest)
    binaries = {name for name in folder if name.endswith((".onnx", ".bin"))}
    for name in sorted(listed.keys() | binaries):
        same = name in listed and listed[name] == hashes.get(name)
        need(same, f"{name} is not the file that {MANIFEST} lists")


def _check_further(manifest: dict[str, Any]) -> None:
    """Refuses files that certify their own input and are not of a model in fp16 or int8 there."""
    models = {one.get("content_sha256"): one for one in manifest.get("models", [])}
    for one in manifest.get("further_certifying", []):
        model = models.get(one.get("network_sha256"), {})
        same = all(
            one.get(key, default) == model.get(key, default)
            for key, default in (("precision", "fp32"), ("contract", ""), ("unrounded", []))
        )
        need(
            same
            and one.get("precision") in ("fp16", "int8")
            and one.get("role") == f"certifying-{one['precision']}",
            f"{MANIFEST} says otherwise of {one.get('file')!s:.60} than of the model it is made of",
        )


def certifying_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what a manifest says of the files that certify their own input."""
    first = manifest.get("certifying")
    return [*([first] if first else []), *manifest.get("further_certifying", [])]


def _listed(manifest: dict[str, Any]) -> dict[str, str]:
    """Returns the hashes of the models and probes that a manifest lists, by file."""
    entries = [
        *manifest.get("models", []),
        *manifest.get("c_sources", []),
        *certifying_of(manifest),
    ]
    probes = [probe for entry in entries for probe in entry.get("probes", [])]
    listed = {f"device/{one['file']}": one["sha256"] for one in [*entries, *probes]}
    for source in manifest.get("c_sources", []):
        need(
            source["files"].get(source["file"]) == source["sha256"],
            f"{MANIFEST} gives two hashes of {source['file']:.60}",
        )
        listed |= {f"device/{name}": digest for name, digest in source["files"].items()}
    return listed


def check_probes(
    root: Path, files: set[str], certificates: dict[str, dict[str, Any]], budget: ResourceBudget
) -> None:
    """Refuses probes whose stated enclosures are not ones of the network's logits.

    Each model is held against the certificate about its file; the first one where several are.
    """
    if MANIFEST not in files:
        return
    about = {one["model"]["file"]: one for one in reversed(list(certificates.values()))}
    manifest = read_json(root / MANIFEST)
    for entry in manifest.get("models", []):
        probes, file = entry.get("probes", []), f"model/{entry['file']}"
        certificate = about.get(file)
        if certificate is not None:
            _check_entry(entry, manifest, certificate)
        # Without probes, too, the device must be told what no kernel may round.
        typed = certificate is not None and certificate["contract"].get("name") == TYPED
        told = typed or bool(entry.get("unrounded"))
        if certificate is None or not (probes or told):
            need(
                not probes,
                f"{MANIFEST} has probes of {file}, which no certificate is about",
            )
            continue
        if certificate["contract"] not in CONTRACTS.values():
            continue
        proto = onnx.ModelProto()
        proto.ParseFromString(read_file(root / file))
        model = Model(proto, budget)
        need(len(probes) <= MAX_PROBES, f"{MANIFEST} has more probes than a device is given")
        errors = ErrorTerms(model, certificate["contract"])
        ends = (proto.graph.input[0].name, proto.graph.output[0].name)
        kept = (model.input in errors.unrounded, model.output in errors.unrounded)
        wanted = [name for name, there in zip(ends, kept, strict=True) if there]
        need(
            entry.get("unrounded", []) == wanted,
            f"{MANIFEST} says of other tensors of {file} that they stay in float32",
        )
        region = point_in(certificate["property"]["clip"])
        for probe in probes:
            _check_probe(root, probe, file, errors, region)
    _check_sources(root, manifest, certificates, budget)


def _check_sources(
    root: Path,
    manifest: dict[str, Any],
    certificates: dict[str, dict[str, Any]],
    budget: ResourceBudget,
) -> None:
    """Refuses probes of a network in C whose enclosures are none under its own certificate."""
    for entry in manifest.get("c_sources", []):
        role, probes = entry.get("role"), entry.get("probes", [])
        need(role in SOURCES, f"{MANIFEST} has C source of an unknown form")
        folder, network, file = SOURCES[role]
        need(entry["file"] == file, f"{MANIFEST} lists another file as {role}")
        certificate = certificates.get(folder)
        if certificate is None:
            need(not probes, f"{MANIFEST} has probes of {file}, which no certificate is about")
            continue
        _check_entry(entry, {"contract": certificate["contract"]}, certificate)
        need(
            entry.get("content_sha256") == certificate["model"].get("sha256"),
            f"{MANIFEST} says that {file} was made of another network than is certified",
        )
        if not probes or certificate["contract"] not in CONTRACTS.values():
            continue
        proto = onnx.ModelProto()
        proto.ParseFromString(read_file(root / network))
        model = Model(proto, budget)
        need(len(probes) <= MAX_PROBES, f"{MANIFEST} has more probes than a device is given")
        errors = ErrorTerms(model, certificate["contract"])
        for probe in probes:
            _check_probe(root, probe, file, errors, point_in(certificate["property"]["clip"]))


def _check_entry(
    entry: dict[str, Any], manifest: dict[str, Any], certificate: dict[str, Any]
) -> None:
    """Refuses a model that is stated to be certified otherwise than it is.

    One that names no contract has that of the folder, by which the script judges kernels.
    """
    whole = manifest.get("contract")
    by = entry.get("contract") or (whole.get("name") if isinstance(whole, dict) else "")
    need(
        by in (None, "", certificate["contract"].get("name")),
        f"{MANIFEST} lets {entry['file']:.60} be judged by another contract than it is certified "
        "under",
    )
    stated = entry.get("contract", ""), entry.get("certificate_sha256", "")
    found = certificate["contract"].get("name"), certificate["certificate_sha256"]
    same = all(one in ("", other) for one, other in zip(stated, found, strict=True))
    need(same, f"{MANIFEST} names another contract or certificate of {entry['file']:.60}")


def _check_probe(
    root: Path, probe: dict[str, Any], file: str, errors: ErrorTerms, region: ClaimedRegion
) -> None:
    """Refuses an enclosure that does not hold the executed logits, or says nothing.

    That is one more than four times as wide as the checker's own interval enclosure at the point.
    """
    model, name = errors.model, f"device/{probe['file']}"
    data = read_file(root / "device" / probe["file"], MAX_PROBE_BYTES)
    x = np.frombuffer(data, "<f4").astype(np.float64)[None]
    fits = x.shape[1] == model.size_of_input and np.isfinite(x).all()
    need(fits, f"{name} is no input of {file}")
    bounds = Bounds(model, errors, SampleRegions(region, x), refine=False)
    own_lower, own_upper = (end[0] for end in bounds.boxes[model.output])
    lower, upper = np.array(probe["lower"], float), np.array(probe["upper"], float)
    same = lower.shape == upper.shape == own_lower.shape
    need(same, f"{name} has enclosures of other logits")
    value = bounds.executed.value(model.output)[0]
    slack = 1e-6 * (1 + np.abs(value))
    holds = (lower <= value + slack) & (upper >= value - slack)
    narrow = upper - lower <= 4 * (own_upper - own_lower) + 1e-6
    need(
        (holds & narrow).all(),
        f"{MANIFEST} states an enclosure of the logits of {probe['file']} that is none, "
        "or says nothing",
    )
