"""What may lie in an artifact, what its manifest says of it, and which files need certificates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from vsparse_check.files import read_json
from vsparse_check.refusal import known, need

# Further forms of the network, each in a model file of its own, with a gate of its own.
PRECISIONS = ("fp16", "bf16", "int8")
# Where certificates lie, and the model that each must be about; all but the first are there only
# where they were asked for.
CERTIFICATES = {
    "certificate": "model/model.fp32.onnx",
    "certificate/dense": "model/dense.fp32.onnx",
    **{f"certificate/{name}": f"model/model.{name}.onnx" for name in PRECISIONS},
    "certificate/sequential": "model/model.fp32.onnx",
    "certificate/int8/c": "model/model.int8.onnx",
}
# The files of an artifact that is deployed in further forms, and the certificate each needs.
FORMS = {
    "model/model.c": "certificate/sequential",
    "model/model.h": "certificate/sequential",
    "model/model_weights.h": "certificate/sequential",
    "model/model_weights.S": "certificate/sequential",
    "model/model_weights.bin": "certificate/sequential",
    "model/model.int8.c": "certificate/int8/c",
    "model/model.int8.h": "certificate/int8/c",
    "model/model.int8_weights.h": "certificate/int8/c",
    "model/model.int8_weights.S": "certificate/int8/c",
    "model/model.int8_weights.bin": "certificate/int8/c",
    **{f"model/model.{name}.onnx": f"certificate/{name}" for name in PRECISIONS},
    "model/dense.fp32.onnx": "certificate/dense",
    "model/model.certify.onnx": "certificate",
    "model/model.fp16.certify.onnx": "certificate/fp16",
    "model/model.int8.certify.onnx": "certificate/int8",
}
# Evidence in JSON may be added; whatever could be deployed, or taken for a certificate, is listed.
OF_A_CERTIFICATE = (
    "certificate.json",
    "inputs.npz",
    "proofs.npz",
    "counterexamples.npz",
    "*.json",
)
EVIDENCE = ("train/", "compress/", "profile/")  # folders that may hold folders
PATTERNS = (
    "recipe.toml",
    "target.toml",
    "gates.json",
    "choice.json",
    "report.html",
    "report.json",
    *(f"{folder}*" for folder in EVIDENCE),
    "model/*.json",
    "model/*.engine",
    "model/model.fp32.onnx",
    *FORMS,
    "model/model_columns.h",
    *(f"{folder}/{name}" for folder in CERTIFICATES for name in OF_A_CERTIFICATE),
    "device/README",
    "device/manifest.json",
    "device/agent.py",
    "device/run_on_device.py",
    "device/certify_on_device.py",
    "device/probe-*.bin",
    "device/model.[ch]",
    "device/model_columns.h",
    "device/model_weights.h",
    "device/model_weights.S",
    "device/model_weights.bin",
    "device/model.int8.[ch]",
    "device/model.int8_weights.h",
    "device/model.int8_weights.S",
    "device/model.int8_weights.bin",
    "device/*.fp32.onnx",
    "device/model.certify.onnx",
    "device/model.fp16.certify.onnx",
    "device/model.int8.certify.onnx",
    *(f"device/model.{name}.onnx" for name in PRECISIONS),
)
MAX_FILES, MAX_HASHED = 20_000, 2**34


def check_manifest(root: Path) -> set[str]:
    """Returns the files of an artifact.

    Refuted unless its manifest lists exactly those that are there, each with its SHA-256.
    """
    listed = read_json(root / "manifest.json")["files"]
    for name in listed:
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and str(path) == name
        need(
            inside and not {"\\", "\0"} & set(name),
            f'manifest.json lists "{name:.60}", which is no path inside the artifact',
        )
    present = set(_plain_files(root)) - {"manifest.json"}
    for name in sorted(present ^ listed.keys()):
        how = "missing" if name in listed else "not listed in the manifest"
        need(False, f"{name} is {how}")
    for name, stated in sorted(listed.items()):
        with (root / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        need(found == stated, f"{name} was changed: its sha256 is not the manifest's")
    return present


def _plain_files(root: Path) -> Iterator[str]:
    """Returns the names of all files; Refuted for links, Unchecked for too many, or too large."""
    count = size = 0
    for entry in root.rglob("*"):
        plain = not entry.is_symlink() and (entry.is_dir() or entry.is_file())
        need(plain, f"{entry.relative_to(root)} is a link or no plain file")
        if entry.is_file():
            count, size = count + 1, size + entry.stat().st_size
            yield entry.relative_to(root).as_posix()
        known(
            count <= MAX_FILES and size <= MAX_HASHED,
            "the artifact has more files, or larger ones, than are read",
        )


def check_layout(files: set[str]) -> None:
    """Refuses files that are no part of an artifact, and forms that no certificate is about."""
    for name in sorted(files):
        need(_is_known(name), f"{name} is no part of an artifact: no certificate is about it")
    if "certificate/certificate.json" not in files:
        return
    for name, folder in FORMS.items():
        need(
            name not in files or f"{folder}/certificate.json" in files,
            f"{name} is there without {folder}/certificate.json: nothing is claimed about it",
        )


def _is_known(name: str) -> bool:
    """Returns whether a file may be part of an artifact: "*" stands for no further folder."""
    matching = [pattern for pattern in PATTERNS if fnmatch(name, pattern)]
    same_depth = any(pattern.count("/") == name.count("/") for pattern in matching)
    return same_depth or (bool(matching) and name.startswith(EVIDENCE))
