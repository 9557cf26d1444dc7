"""What each command prints with --json is what docs/schemas says; the schemas of recipe and target are those of the code."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from schema_check import SCHEMAS, problems, schema_of

from tiny_build import TINY
from vsparse import cli
from vsparse.editor_schema import KINDS, DocumentKind, editor_schema
from vsparse.shipped import shipped_directory

pytestmark = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="the documents are not beside the tests")
SETTINGS = [part for one in TINY for part in ("--set", one)]


SWEPT = [*SETTINGS, "--sweep", "train.sparsity=[0.5]", "--jobs", "1"]


def _network(artifact: Path) -> Path:
    return artifact / "model" / "model.fp32.onnx"


def _inputs(folder: Path) -> Path:
    path = folder / "inputs.npz"
    np.savez(path, x=np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32))
    return path


def _images(folder: Path) -> Path:
    random = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = (random.integers(0, 80, (80, 8, 8)) + 150 * y[:, None, None]).astype(np.uint8)
    np.savez(folder / "own.npz", x=x, y=y)
    return folder / "own.npz"


Arguments = Callable[[Path, Path], list[str]]
# Each command's schema, its arguments from an artifact and an empty folder, and its exit codes.
COMMANDS: dict[str, tuple[Arguments, tuple[int, ...]]] = {
    "build": (lambda artifact, folder: ["build", "digits", *SETTINGS, "--out", str(artifact)], (0,)),
    "build-dry-run": (lambda artifact, folder: ["build", "digits", *SETTINGS, "--out", str(folder / "new"), "--dry-run"], (0, 3)),
    "check": (lambda artifact, folder: ["check", str(artifact)], (0,)),
    "verify": (
        lambda artifact, folder: [
            *(
                "verify",
                str(_network(artifact)),
                "--data",
                "digits",
                "--epsilon",
                "0.01",
                "--samples",
                "2",
                "--jobs",
                "1",
            )
        ],
        (0,),
    ),
    "predict": (lambda artifact, folder: ["predict", str(artifact), str(_inputs(folder))], (0,)),
    "profile": (lambda artifact, folder: ["profile", str(artifact), "--runs", "10", "--seconds", "0.01", "--warmup", "0"], (0,)),
    "train": (lambda artifact, folder: ["train", "digits", *SETTINGS, "--out", str(folder / "trained")], (0,)),
    "compress": (lambda artifact, folder: ["compress", str(_network(artifact)), "--out", str(folder / "packed.onnx")], (0,)),
    "export": (lambda artifact, folder: ["export", str(_network(artifact)), "--out", str(folder / "exported")], (0,)),
    "report": (lambda artifact, folder: ["report", str(shutil.copytree(artifact, folder / "copy"))], (0,)),
    "report-compare": (
        lambda artifact, folder: ["report", "--compare", str(artifact), str(artifact), "--out", str(folder / "c.html")],
        (0,),
    ),
    "sweep": (lambda artifact, folder: ["train", "digits", *SWEPT, "--out", str(folder / "sweep")], (0,)),
    "models": (lambda artifact, folder: ["models"], (0,)),
    "models-NAME": (lambda artifact, folder: ["models", "mnist"], (0,)),
    "targets": (lambda artifact, folder: ["targets"], (0,)),
    "doctor": (lambda artifact, folder: ["doctor"], (0, 3)),
    "init": (lambda artifact, folder: ["init", str(_images(folder)), "--out", str(folder / "own.toml")], (0,)),
    "cache-ls": (lambda artifact, folder: ["cache", "ls"], (0,)),
    "cache-prune": (lambda artifact, folder: ["cache", "prune", "--dry-run"], (0,)),
    "error": (lambda artifact, folder: ["models", "nosuch"], (2,)),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_json_of_a_command_is_as_its_schema_says(
    command: str, tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, codes = COMMANDS[command]
    capsys.readouterr()
    assert cli.run([*arguments(tiny_artifact, tmp_path), "--json"]) in codes
    document = json.loads(capsys.readouterr().out)
    assert problems(document, schema_of(command)) == []


def test_every_schema_belongs_to_a_command_or_a_document() -> None:
    assert {path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.json")} == {*COMMANDS, *KINDS}


def test_pruning_is_described_where_it_was_asked_for(tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = str(_network(tiny_artifact)), str(tmp_path / "pruned.onnx")
    capsys.readouterr()
    assert cli.run(["compress", model, "--sparsity", "0.3", "--data", "digits", "--out", out, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "pruning" in document
    assert problems(document, schema_of("compress")) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_schema_describes_each_of_its_keys_and_finds_one_that_is_missing_or_wrong(command: str) -> None:
    schema = schema_of(command)
    row = schema.get("items", schema)
    assert all(one.get("description") for one in row["properties"].values())
    assert row["required"]
    document: Any = {}
    assert problems([document] if "items" in schema else document, schema)
    assert problems("text", schema) == [f"the document is 'text', not {schema['type']}"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_for_editors_are_current_and_describe_every_key(kind: DocumentKind, capsys: pytest.CaptureFixture[str]) -> None:
    written = json.loads((SCHEMAS / f"{kind}.schema.json").read_text(encoding="utf-8"))
    assert written == editor_schema(kind), f"write it anew: vsparse schema {kind} > docs/schemas/{kind}.schema.json"
    for section in (written, *written["$defs"].values()):
        assert all(one.get("description") for one in section["properties"].values())
    assert cli.run(["schema", kind]) == 0
    assert json.loads(capsys.readouterr().out) == written


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_know_every_key_of_the_shipped_files(kind: DocumentKind) -> None:
    schema = editor_schema(kind)

    def walk(content: dict[str, Any], part: dict[str, Any], where: str) -> None:
        for key, value in content.items():
            assert key in part["properties"], f"{where}.{key}"
            inner = part["properties"][key].get("$ref", "").rpartition("/")[2]
            if inner:
                walk(value, schema["$defs"][inner], f"{where}.{key}")

    for path in sorted(shipped_directory("models" if kind == "recipe" else "targets").glob("*.toml")):
        walk(tomllib.loads(path.read_text(encoding="utf-8")), schema, path.name)


def test_a_schema_of_something_else_is_refused_and_a_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["schema", "recip"]) == 2
    assert 'did you mean "recipe"' in capsys.readouterr().err
    assert cli.run(["schema", "recipe", "--out", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["title"] == "vsparse recipe"
    assert cli.run(["schema", "recipe", "--out", str(tmp_path / "a.json")]) == 2
    assert "is there already" in capsys.readouterr().err
