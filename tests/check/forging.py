"""What every forgery does besides: whatever is stated elsewhere about what was changed is made to agree."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from vsparse_check.artifact import content_sha256
from vsparse_check.certificate import digest

CERTIFICATES = ("certificate", "certificate/dense", "certificate/sequential")
MODELS = {"certificate": "model.fp32.onnx", "certificate/dense": "dense.fp32.onnx"}


def load(path: Path) -> Any:
    """Returns what a JSON file holds."""
    return json.loads(path.read_text())


def sign(folder: Path) -> None:
    """Writes the hashes of what is there into the manifest."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / "manifest.json"]
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    content = load(folder / "manifest.json") if (folder / "manifest.json").exists() else {}
    (folder / "manifest.json").write_text(json.dumps({**content, "files": hashes}))


def summary_of(claims: list[dict], classes: list[str]) -> dict:
    """Returns what claims add up to."""
    rows = []
    for label, name in enumerate(classes):
        own = [claim for claim in claims if claim["label"] == label]
        right = [claim for claim in own if claim["predicted"] == label]
        attacked, certified = (sum(test(claim["verdict"]) for claim in right) for test in ("falsified".__ne__, "certified".__eq__))
        rows.append({"name": name, "samples": len(own), "correct": len(right), "attacked": attacked, "certified": certified})
    total = {key: sum(row[key] for row in rows) for key in ("samples", "correct", "attacked", "certified")}
    verdicts = {one: sum(claim["verdict"] == one for claim in claims) for one in ("certified", "falsified", "unknown")}
    names = {"clean_accuracy": "correct", "attacked_accuracy": "attacked", "certified_accuracy": "certified"}
    shares = {name: total[key] / len(claims) for name, key in names.items()}
    return {"samples": len(claims), "correct": total["correct"], **verdicts, **shares, "classes": rows}


def save(folder: Path, name: str, content: dict) -> None:
    """Writes a certificate whose summary and hash fit, stamps the model that carries the hash, and signs the device folder anew."""
    content["summary"] = summary_of(content["claims"], content["data"]["classes"])
    content["certificate_sha256"] = digest(content)
    (folder / name / "certificate.json").write_text(json.dumps(content))
    if name in MODELS and (folder / "model" / MODELS[name]).exists():
        for place in [place for place in ("model", "device") if (folder / place / MODELS[name]).exists()]:
            model = onnx.load(folder / place / MODELS[name])
            kept = {entry.key: entry.value for entry in model.metadata_props} | {"vsparse.certificate": content["certificate_sha256"]}
            onnx.helper.set_model_props(model, kept)
            (folder / place / MODELS[name]).write_bytes(model.SerializeToString(deterministic=True))
    sign_device(folder, content["certificate_sha256"] if name == "certificate" else None)


def sign_device(folder: Path, certificate: str | None = None) -> None:
    """Lets the manifest of the device folder fit what lies there."""
    path = folder / "device" / "manifest.json"
    if path.exists():
        content = load(path)
        content["certificate_sha256"] = certificate or content["certificate_sha256"]
        for entry in content["models"]:
            file = folder / "device" / entry["file"]
            entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
            entry["content_sha256"] = content_sha256(onnx.load(file))
        for source in content.get("c_sources", []):
            files = {one: hashlib.sha256((folder / "device" / one).read_bytes()).hexdigest() for one in source["files"]}
            source.update(files=files, sha256=files[source["file"]], content_sha256=content["models"][0]["content_sha256"])
            claims = folder / "certificate" / source["role"] / "certificate.json"
            source["certificate_sha256"] = load(claims)["certificate_sha256"] if claims.exists() else source["certificate_sha256"]
        path.write_text(json.dumps(content))


def each(folder: Path, change: Callable[[dict], None]) -> None:
    """Changes every certificate there is, and saves it."""
    for name in [name for name in CERTIFICATES if (folder / name / "certificate.json").exists()]:
        content = load(folder / name / "certificate.json")
        change(content)
        save(folder, name, content)


def rewritten(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    """Changes a JSON document."""
    content = load(folder / name)
    change(content)
    (folder / name).write_text(json.dumps(content))


def store(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    path.write_bytes(stream.getvalue())


def strip(folder: Path, *more: str) -> None:
    """Takes away the documents that would say otherwise than changed claims."""
    for name in (
        "report.json",
        "report.html",
        "gates.json",
        "choice.json",
        "certificate/curve.json",
        "certificate/dense/curve.json",
        *more,
    ):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
