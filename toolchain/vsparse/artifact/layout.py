"""The artifact: the directory that a build produces, its manifest, and whether it still is what was built."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from pydantic import Field

from vsparse.artifact.document import Document, Part, read_document, write_document
from vsparse.artifact.forms import DENSE, SPARSE
from vsparse.errors import GateError, InputError
from vsparse.files import sha256_file
from vsparse.source_commit import SourceCommit, source_commit

MANIFEST = "manifest.json"
RECIPE = "recipe.toml"
TARGET = "target.toml"
MODEL = SPARSE.model
DENSE_MODEL = DENSE.model
CERTIFICATE = SPARSE.certificate
DENSE_CERTIFICATE = DENSE.certificate
LAYERS = "compress/layers.json"
GATES = "gates.json"
DATA = "train/data.json"
REPORT = "report.html"
REPORT_JSON = "report.json"

TOOLS = ("vsparse", "torch", "numpy", "scipy", "onnx", "onnxruntime", "auto_LiRPA", "scikit-learn", "safetensors", "pydantic", "pillow")
MAX_FILES = 10_000


class StageRecord(Part):
    """One stage of the lineage: the hash of all that went in, how long it took when it ran, and where its files lie.

    Of a training that started from a trained network (train.start), the SHA-256 of that file.
    """

    stage: str
    key: str
    seconds: float
    reused: bool
    folder: str
    start_sha256: str = Field("", exclude_if=("").__eq__)


class CodeRecord(SourceCommit, Part):
    """The commit of the code that built an artifact; empty where it is not known, as of a wheel from an index."""


class Manifest(Document):
    """What an artifact consists of and where it comes from."""

    vsparse_version: str
    created_utc: str
    seed: int
    until: str = Field(description="the last stage that was asked for")
    road_key: str = Field(description="hash of everything that went into this artifact")
    tools: dict[str, str]
    lineage: tuple[StageRecord, ...]
    files: dict[str, str] = Field(max_length=MAX_FILES)
    code: CodeRecord | None = Field(None, exclude_if=lambda value: value is None)


def tool_versions() -> dict[str, str]:
    """Returns the versions of the packages that made an artifact, Python's and the machine's architecture included."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def files_of(directory: Path) -> dict[str, str]:
    """Returns the sha256 of every file under a directory but the manifest, by relative path with forward slashes."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {name: sha256_file(path) for path in paths if (name := path.relative_to(directory).as_posix()) != MANIFEST}


def write_manifest(
    directory: Path, *, seed: int, until: str, road_key: str, lineage: list[StageRecord], built_by: Manifest | None = None
) -> Manifest:
    """Hashes every file of a finished artifact and writes manifest.json; `built_by` is that of the build, where this is no build."""
    tools = tool_versions()
    manifest = Manifest(
        vsparse_version=tools["vsparse"],
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        until=until,
        road_key=road_key,
        tools=tools if built_by is None else built_by.tools,
        lineage=tuple(lineage),
        files=files_of(directory),
        code=CodeRecord.model_validate(source_commit().model_dump()) if built_by is None else built_by.code,
    )
    write_document(directory / MANIFEST, manifest)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Reads manifest.json; raises InputError when the directory is no artifact or its manifest is damaged."""
    if not directory.is_dir():
        raise InputError(f"artifact {directory} is not a directory; give the directory that `vsparse build` wrote")
    path = directory / MANIFEST
    if not path.is_file():
        raise InputError(f"{directory} holds no {MANIFEST}, so it is no artifact; give the directory that `vsparse build` wrote")
    manifest = read_document(Manifest, path)
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or not parts or "\\" in name or "\0" in name:
            raise InputError(f"manifest {path} names {name!r}, a path outside the artifact; build the artifact again")
    return manifest


def require_intact(directory: Path) -> Manifest:
    """Returns the manifest of an artifact whose files all have their recorded hashes.

    Raises InputError when it is no artifact, GateError that names the first file that is missing or was changed.
    """
    manifest = read_manifest(directory)
    for name, digest in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise GateError(f"artifact {directory} lacks {name}, which its manifest lists; build it again")
        if path.is_symlink() or sha256_file(path) != digest:
            raise GateError(f"artifact {directory}: {name} was changed after the build (sha256 differs); build it again")
    return manifest
