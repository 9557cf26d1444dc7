"""An artifact without a certificate: it claims nothing, unless some other file says otherwise."""

from __future__ import annotations

from pathlib import Path

import onnx

from vsparse_check.device import MANIFEST
from vsparse_check.files import read_any_json, read_file, read_json
from vsparse_check.gate_check import GATES
from vsparse_check.refusal import need, reading

WAY_OUT = (
    "its files have the hashes of its manifest, and nothing is claimed of them; `vsparse build` "
    "certifies, and so does `vsparse export MODEL.onnx --data DIR` with a network of your own"
)
# What report.json says of certificates alone.
OF_CERTIFICATES = (
    "sparse",
    "dense",
    "certificates",
    "curve_sparse",
    "curve_dense",
    "certified_ids",
)


def check_absence(root: Path, files: set[str]) -> None:
    """Refutes an artifact without a certificate in which a file names one: it was taken out.

    Models and device/manifest.json would name it by its hash, gates.json by what was measured, and
    report.json by what it says of certificates.
    """
    for name in sorted(files):
        if name.startswith(("model/", "device/")) and name.endswith(".onnx"):
            _check_stamp(root, name)
    if MANIFEST in files:
        with reading(MANIFEST):
            manifest = read_json(root / MANIFEST)
            listed = [one for one in manifest.get("models", ()) if isinstance(one, dict)]
            stated = [one.get("certificate_sha256", "") for one in (manifest, *listed)]
            need(not any(stated), f"{MANIFEST} names a certificate, and there is none")
    if "report.json" in files:
        with reading("report.json"):
            report = read_json(root / "report.json")
            told = next((key for key in OF_CERTIFICATES if report.get(key)), "")
            need(not told, f'report.json states "{told}" of a certificate, and there is none')
    if "gates.json" in files:
        with reading("gates.json"):
            for gate in read_any_json(root / "gates.json"):
                silent = gate["name"] not in GATES or gate["passed"] is None
                need(silent, f"gates.json judges {gate['name']!s:.60}, and nothing is claimed")


def _check_stamp(root: Path, name: str) -> None:
    with reading(name):
        proto = onnx.ModelProto()
        proto.ParseFromString(read_file(root / name))
        stamps = {entry.key for entry in proto.metadata_props}
    need(
        "vsparse.certificate" not in stamps,
        f"{name} carries the hash of a certificate, and there is none",
    )
