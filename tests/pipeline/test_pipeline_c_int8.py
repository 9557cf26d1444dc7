"""A whole build in 8-bit integers for a microcontroller: its files, its certificates, and what the checker says of changed ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_build import TINY
from vsparse.pipeline.build import build
from vsparse.recheck import recheck
from vsparse.stages.export.c_source import find_compiler
from vsparse_check import check

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    find_compiler()
    folder = tmp_path_factory.mktemp("int8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VSPARSE_CACHE", str(folder / "cache"))
        settings = [*TINY, 'export.precisions=["int8"]', "export.c_prefix=mine"]
        result = build("digits", target="cortex-m4f", settings=settings, out=folder / "artifact")
    assert not [gate for gate in result.gates if gate.passed is False]
    return result.directory


def test_it_has_both_networks_in_c_and_a_certificate_of_each(artifact: Path) -> None:
    assert "int mine_int8_classify(" in (artifact / "model" / "model.int8.h").read_text()
    claims = {name: json.loads((artifact / "certificate" / name / "certificate.json").read_text()) for name in ("int8", "int8/c")}
    assert claims["int8/c"]["summary"]["certified"] == claims["int8"]["summary"]["certified"] > 0
    assert claims["int8/c"]["model"] == claims["int8"]["model"]
    assert claims["int8/c"]["replay"]["runtime"] == "model.int8.c"
    assert json.loads((artifact / "certificate" / "int8" / "c" / "audit.json").read_text())["passed"]
    told = json.loads((artifact / "report.json").read_text())
    assert told["c_int8"]["written"]
    assert "int8-c" in [row["name"] for row in told["certificates"]]
    assert recheck(artifact).verdict == check(artifact).verdict == "confirmed"


def test_weights_in_bytes_are_checked_too(artifact: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VSPARSE_CACHE", str(artifact.parent / "cache"))
        settings = [*TINY, 'export.precisions=["int8"]', "export.c_prefix=mine", "export.c_weights=binary"]
        result = build("digits", target="cortex-m4f", settings=settings, out=tmp_path / "artifact")
    assert not [gate for gate in result.gates if gate.passed is False]
    folder = result.directory
    assert recheck(folder).verdict == "confirmed"
    told = json.loads((folder / "model" / "c_source.int8.json").read_text())
    assert told["files"][-2:] == ["model.int8_weights.S", "model.int8_weights.bin"]
    assert told["footprint"]["constant_bytes"] >= told["constant_bytes"]
    for name in told["files"][-2:]:
        changed = tmp_path / name
        shutil.copytree(folder, changed)
        data = bytearray((changed / "model" / name).read_bytes())
        data[len(data) // 2] ^= 1
        (changed / "model" / name).write_bytes(bytes(data))
        _signed(changed)
        assert f"{name} is not what the artifact is written as" in recheck(changed).problem


def _signed(folder: Path) -> None:
    """Makes the manifest that of the files that are there."""
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    manifest["files"] = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _fewer_weights(folder: Path) -> None:
    path = folder / "model" / "model.int8_weights.h"
    path.write_text(path.read_text().replace("VS_WORDS = {\n", "VS_WORDS = {\n0,", 1))


def test_the_bytes_of_the_choice_are_those_of_the_text_that_the_target_compiles(artifact: Path) -> None:
    rows = {row["name"]: row for row in json.loads((artifact / "choice.json").read_text())["rows"]}
    for name, record in (("sequential", "c_source.json"), ("int8-c", "c_source.int8.json")):
        told = json.loads((artifact / "model" / record).read_text())
        assert rows[name]["bytes"] == told.get("scalar_constant_bytes", told["constant_bytes"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "certificate" / "int8" / "c"), "nothing is claimed about it"),
        (lambda folder: (folder / "model" / "model.int8.c").unlink(), "says that model.int8.c was written"),
        (lambda folder: (folder / "model" / "model.int9.c").write_text(""), "no part of an artifact"),
        (_fewer_weights, "is not what the artifact is written as"),
    ],
)
def test_changed_files_are_refuted(artifact: Path, tmp_path: Path, change: Callable[[Path], object], words: str) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(artifact, folder)
    change(folder)
    _signed(folder)
    found = recheck(folder)
    assert found.verdict == "refuted"
    assert words in found.problem
