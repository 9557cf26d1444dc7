"""Damaged artifacts, and places that are not ours to write to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from damaged_cases import case

from vsparse.artifact import MANIFEST
from vsparse.files import sha256_file


def copy(artifact: Path, folder: Path) -> Path:
    return Path(shutil.copytree(artifact, folder / "artifact"))


@case(2, "artifact")
def artifact_that_is_a_file(folder: Path, artifact: Path) -> list[str]:
    (folder / "file").write_text("x")
    return ["report", str(folder / "file")]


@case(2, "manifest")
def artifact_without_a_manifest(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    (copied / MANIFEST).unlink()
    return ["report", str(copied)]


@case(2, "JSON")
def artifact_whose_manifest_is_cut(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    (copied / MANIFEST).write_bytes((copied / MANIFEST).read_bytes()[:100])
    return ["report", str(copied)]


@case(2, "outside")
def artifact_whose_manifest_names_other_places(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    content = json.loads((copied / MANIFEST).read_text())
    content["files"]["../../etc/passwd"] = "0" * 64
    (copied / MANIFEST).write_text(json.dumps(content))
    return ["report", str(copied)]


@case(1, "changed")
def artifact_whose_history_was_edited(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    (copied / "train" / "history.json").write_text("{}")
    return ["report", str(copied)]


def rewritten(artifact: Path, folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """Returns a copy with one JSON file changed, and the manifest with it: whoever can change a file can change its hash."""
    copied = copy(artifact, folder)
    content = json.loads((copied / name).read_text())
    change(content)
    (copied / name).write_text(json.dumps(content))
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["files"][name] = sha256_file(copied / name)
    (copied / MANIFEST).write_text(json.dumps(manifest))
    return copied


@case(2, "certificate.json has no certificate_sha256")
def artifact_whose_certificate_lost_its_hash(folder: Path, artifact: Path) -> list[str]:
    def change(content: dict[str, Any]) -> None:
        content.pop("certificate_sha256")
        for part in (content, *content["claims"]):
            part["property"]["epsilon"] = "0.9"

    return ["report", str(rewritten(artifact, folder, "certificate/certificate.json", change))]


@case(2, "audit.json is damaged: passed: field required")
def artifact_whose_audit_says_sound(folder: Path, artifact: Path) -> list[str]:
    return ["report", str(rewritten(artifact, folder, "certificate/audit.json", lambda c: c.update(sound=c.pop("passed"))))]


@case(2, "history.json is damaged: sparse.0.clean")
def artifact_whose_history_has_an_accuracy_above_one(folder: Path, artifact: Path) -> list[str]:
    return ["report", str(rewritten(artifact, folder, "train/history.json", lambda c: c["sparse"][0].update(clean=1.5)))]


@case(1, "lacks")
def artifact_with_a_file_missing(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    (copied / "model" / "model.fp32.onnx").unlink()
    return ["profile", str(copied)]


@case(1, "certificate")
def artifact_whose_certificate_was_edited(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    path = copied / "certificate" / "certificate.json"
    path.write_text(path.read_text().replace('"unknown"', '"certified"').replace('"falsified"', '"certified"'))
    return ["check", str(copied)]


@case(1, "model")
def artifact_with_another_model(folder: Path, artifact: Path) -> list[str]:
    copied = copy(artifact, folder)
    shutil.copyfile(copied / "model" / "dense.fp32.onnx", copied / "model" / "model.fp32.onnx")
    return ["check", str(copied)]


@case(2, "none")
def artifact_to_check_absent(folder: Path, artifact: Path) -> list[str]:
    return ["check", str(folder / "none")]


@case(2, "no artifact")
def output_that_is_not_ours(folder: Path, artifact: Path) -> list[str]:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter1.txt").write_text("years of work")
    return ["build", "digits", "--out", str(folder / "thesis")]


@case(2, "directory")
def output_that_is_a_file(folder: Path, artifact: Path) -> list[str]:
    (folder / "thesis.txt").write_text("years of work")
    return ["build", "digits", "--out", str(folder / "thesis.txt")]
