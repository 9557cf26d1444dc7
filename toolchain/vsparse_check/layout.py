"""What may lie in an artifact, what its manifest says of it, and that every deployed file has its certificate."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from vsparse_check.certificate import read_json
from vsparse_check.refusal import known, need

# Where certificates lie, and the model that each must be about; all but the first are there only where they were asked for.
CERTIFICATES = {
    "certificate": "model/model.fp32.onnx",
    "certificate/dense": "model/dense.fp32.onnx",
    "certificate/fp16": "model/model.fp16.onnx",
    "certificate/int8": "model/model.int8.onnx",
    "certificate/sequential": "model/model.fp32.onnx",
}
# The files of an artifact that is deployed in further forms, and the certificate that each of them needs.
FORMS = {
    "model/model.c": "certificate/sequential",
    "model/model.h": "certificate/sequential",
    "model/model.fp16.onnx": "certificate/fp16",
    "model/model.int8.onnx": "certificate/int8",
    "model/dense.fp32.onnx": "certificate/dense",
}
# Evidence in JSON may be added; whatever could be deployed, or taken for a certificate, is listed.
OF_A_CERTIFICATE = ("certificate.json", "inputs.npz", "proofs.npz", "counterexamples.npz", "*.json")
PATTERNS = (
    *("recipe.toml", "target.toml", "gates.json", "report.html", "report.json", "train/*", "compress/*", "profile/*"),
    *("model/*.json", "model/*.engine", "model/model.fp32.onnx", *FORMS),
    *(f"{folder}/{name}" for folder in CERTIFICATES for name in OF_A_CERTIFICATE),
    *("device/README", "device/manifest.json", "device/run_on_device.py", "device/probe-*.bin", "device/model.[ch]", "device/*.fp32.onnx"),
)
MAX_FILES, MAX_HASHED = 20_000, 2**34


def check_manifest(root: Path) -> set[str]:
    """Returns the files of an artifact; Refused unless its manifest lists exactly those that are there, each with its SHA-256."""
    files, present = read_json(root / "manifest.json")["files"], dict[str, int]()
    for name in files:
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and str(path) == name and not {"\\", "\0"} & set(name)
        need(inside, f'manifest.json lists "{name:.60}", which is no path inside the artifact')
    for entry in root.rglob("*"):
        need(not entry.is_symlink() and (entry.is_dir() or entry.is_file()), f"{entry.relative_to(root)} is a link or no plain file")
        present |= {entry.relative_to(root).as_posix(): entry.stat().st_size} if entry.is_file() else {}
        known(
            len(present) <= MAX_FILES and sum(present.values()) <= MAX_HASHED, "the artifact has more files, or larger ones, than are read"
        )
    present.pop("manifest.json", None)
    for name in sorted(present.keys() ^ files.keys()):
        need(False, f"{name} is {'missing' if name in files else 'not listed in the manifest'}")
    for name, stated in sorted(files.items()):
        with (root / name).open("rb") as stream:
            need(hashlib.file_digest(stream, "sha256").hexdigest() == stated, f"{name} was changed: its sha256 is not the manifest's")
    return set(present)


def check_layout(files: set[str]) -> None:
    """Refuses files that are no part of an artifact, and forms of the network that no certificate is about."""
    for name in sorted(files):
        ours = any(fnmatch(name, pattern) and pattern.count("/") <= name.count("/") for pattern in PATTERNS)
        flat = name.startswith(("train/", "compress/", "profile/")) or any(
            fnmatch(name, pattern) and pattern.count("/") == name.count("/") for pattern in PATTERNS
        )
        need(ours and flat, f"{name} is no part of an artifact: no certificate is about it")
    if "certificate/certificate.json" in files:
        for name, folder in FORMS.items():
            there = name not in files or f"{folder}/certificate.json" in files
            need(there, f"{name} is there without {folder}/certificate.json: nothing is claimed about it")


def check_device(root: Path, files: set[str], certificate_sha256: str) -> None:
    """Refuses a device/ folder whose models are not those of model/, or whose manifest is about other ones."""
    folder = sorted(name for name in files if name.startswith("device/"))
    if not folder:
        return
    hashes = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in folder}
    for name in folder:
        if name.endswith((".onnx", ".c", ".h")):
            twin = "model/" + name.removeprefix("device/")
            same = twin in files and (root / twin).read_bytes() == (root / name).read_bytes()
            need(same, f"{name} is not {twin}, which the certificate is about")
    need("device/manifest.json" in files, "device/ has no manifest.json")
    manifest = read_json(root / "device/manifest.json")
    stated = manifest.get("certificate_sha256", "") in ("", certificate_sha256)
    need(stated, "device/manifest.json names another certificate")
    need(
        manifest.get("script_sha256") == hashes.get("device/run_on_device.py"), "device/run_on_device.py is not the script of its manifest"
    )
    entries = manifest.get("models", [])
    listed = {f"device/{entry['file']}": entry["sha256"] for entry in entries}
    listed |= {f"device/{probe['file']}": probe["sha256"] for entry in entries for probe in entry.get("probes", [])}
    for name in sorted(listed.keys() | {name for name in folder if name.endswith((".onnx", ".bin"))}):
        need(name in listed and listed[name] == hashes.get(name), f"{name} is not the file that device/manifest.json lists")
