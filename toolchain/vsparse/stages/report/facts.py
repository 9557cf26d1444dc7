"""Gathers everything a report says from an artifact directory; what is absent is left out, what is damaged is an InputError."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vsparse.artifact.hashes import content_sha256
from vsparse.errors import InputError
from vsparse.files import sha256_file
from vsparse.majority import AgainstMajority
from vsparse.schema import parse_toml
from vsparse.stages.report import measurements
from vsparse.stages.report.certificates import EXTRA, CertificateRow, CSource, read_c_source, read_certificates
from vsparse.stages.report.checks import Check, Gate, read_check, read_gates
from vsparse.stages.report.elsewhere import build_machine, measured_elsewhere, on_target
from vsparse.stages.report.gallery import Gallery, read_gallery
from vsparse.stages.report.measurements import Compression, CurvePoint, Epoch, LatencyComparison, Value
from vsparse.stages.report.outcomes import Outcome, class_names, misclassified, read_outcome
from vsparse.stages.report.reading import Part, damaged, load_object

OWN_FILES = ("report.html", "report.json")


@dataclass(frozen=True)
class Stage:
    """One stage of the build."""

    stage: str
    key: str
    seconds: float | None
    reused: bool | None


@dataclass(frozen=True)
class Split:
    """One split of the data: its samples, and where they come from."""

    name: str
    samples: int | None
    origin: str


@dataclass(frozen=True)
class DataFacts:
    """What the samples were: the splits, and what was left out or said by decoders (`notes`)."""

    splits: tuple[Split, ...]
    notes: tuple[str, ...]
    classes: int


@dataclass(frozen=True)
class Provenance:
    """Where the artifact comes from: versions, seed, stages, hashes, and the files whose hash is no longer the manifest's."""

    vsparse_version: str
    created_utc: str
    seed: int | None
    tools: tuple[tuple[str, Value], ...]
    stages: tuple[Stage, ...]
    files: tuple[tuple[str, str], ...]
    changed_files: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """All facts of a report; None or empty where the artifact does not hold them."""

    name: str
    description: str
    dataset: str
    target: str
    target_description: str
    training_objective: str
    sample_limit: int | None
    other_models: tuple[str, ...]
    recipe_toml: str
    target_toml: str
    sparse: Outcome | None
    dense: Outcome | None
    curve_sparse: tuple[CurvePoint, ...]
    curve_dense: tuple[CurvePoint, ...]
    curve_samples: int | None
    compression: Compression | None
    latency: tuple[LatencyComparison, ...]
    history_sparse: tuple[Epoch, ...]
    history_dense: tuple[Epoch, ...]
    gallery: Gallery | None
    cross_check: Check | None
    audit: Check | None
    gates: tuple[Gate, ...]
    provenance: Provenance | None
    certificates: tuple[CertificateRow, ...] = ()
    c_source: CSource | None = None
    data: DataFacts | None = None
    validation: AgainstMajority | None = None
    measured_on_target: bool = True
    build_machine: str = ""

    @property
    def measured_elsewhere(self) -> str:
        """`measured on the build machine (…), not on TARGET`; empty where the build machine is the target."""
        return "" if self.measured_on_target else measured_elsewhere(self.build_machine, self.target)

    @property
    def not_measured(self) -> tuple[str, ...]:
        """What is on record, but not from the target: short names, `latency on jetson-orin-nano`."""
        if self.measured_on_target:
            return ()
        found = [f"latency on {self.target}"] if self.latency else []
        return (*found, f"the contract audit on {self.target}") if self.audit else tuple(found)

    @property
    def classes(self) -> int:
        """How many classes there are; 0 where that is not on record."""
        return len(self.sparse.classes) if self.sparse else self.data.classes if self.data else 0

    @property
    def void_reasons(self) -> tuple[str, ...]:
        """Why the certificate must not be relied on: a violation found, or files changed since the build; empty when nothing is known."""
        reasons = []
        if self.audit and self.audit.passed is False:
            reasons.append(f"The audit of the runtime failed: {self.audit.reason}.")
        if self.cross_check and self.cross_check.passed is False:
            reasons.append(f"The cross-check with a second verifier failed: {self.cross_check.reason}.")
        if self.sparse and self.sparse.void_reason:
            reasons.append(f"The certificate itself says that it is void: {self.sparse.void_reason}.")
        if self.dense and self.dense.void_reason:
            reasons.append(f"The certificate of the dense parent is void: {self.dense.void_reason}.")
        for row in self.certificates:
            if row.name in EXTRA and row.audit_passed is False:
                reasons.append(f"The audit of {row.model_file} under contract {row.contract} failed: {row.audit_reason}.")
            if row.name in EXTRA and row.void_reason:
                reasons.append(f"The certificate of {row.model_file} under contract {row.contract} is void: {row.void_reason}.")
        reasons += [f"{name} is not the file that its certificate is about: its content has another hash." for name in self.other_models]
        if self.provenance and self.provenance.changed_files:
            reasons.append(f"Files differ from the hashes in manifest.json: {', '.join(self.provenance.changed_files[:5])}.")
        return tuple(reasons)

    @property
    def failed_gates(self) -> tuple[Gate, ...]:
        """The gates that were not reached."""
        return tuple(gate for gate in self.gates if gate.passed is False)

    @property
    def open_gates(self) -> tuple[Gate, ...]:
        """The gates that could not be measured here: neither reached nor missed."""
        return tuple(gate for gate in self.gates if gate.passed is None)

    @property
    def verdict(self) -> str:
        """`void`, `failed`, `unproved` (no certificate), `incomplete` (no gates on record), `open` (a gate could not be measured here) or
        `passed`."""
        if self.void_reasons:
            return "void"
        if self.failed_gates:
            return "failed"
        if self.sparse is None:
            return "unproved"
        if self.open_gates:
            return "open"
        return "passed" if self.gates else "incomplete"


def read_provenance(directory: Path, part: Part | None) -> Provenance | None:
    """Reads manifest.json and compares the hashes of the files it names, the report's own excepted."""
    if part is None:
        return None
    files: list[tuple[str, str]] = []
    changed: list[str] = []
    listed = part.part("files")
    for name, value in sorted(listed.content.items()) if listed else ():
        inside = _inside(name)
        if inside is None:
            raise damaged(part.path, f"files names {name!r}, which is outside the artifact")
        wanted = value.get("sha256") if isinstance(value, dict) else value
        if not isinstance(wanted, str):
            raise part.wrong(f"files.{name}", "a sha256")
        if name in OWN_FILES:
            continue
        files.append((name, wanted))
        path = directory / inside
        try:
            if not path.is_file() or sha256_file(path) != wanted.removeprefix("sha256:"):
                changed.append(name)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    tools = part.part("tools", "tool_versions", "versions")
    return Provenance(
        vsparse_version=part.text("vsparse_version", "version"),
        created_utc=part.text("created_utc", "created"),
        seed=part.integer("seed"),
        tools=measurements.flat_facts(tools) if tools else (),
        stages=tuple(
            Stage(item.text("stage", "name"), item.text("key"), item.number("seconds"), item.flag("reused"))
            for item in part.parts("lineage")
        ),
        files=tuple(files),
        changed_files=tuple(changed),
    )


def read_data(part: Part | None) -> DataFacts | None:
    """Reads train/data.json."""
    if part is None:
        return None
    splits = part.part("splits") or Part({}, part.path, "splits")
    found, classes = [], 0
    for name in ("train", "validation", "test"):
        one = splits.part(name)
        if one is not None:
            classes = max(classes, len(one.items("classes")))
            found.append(Split(name, one.count("samples"), one.text("origin")))
    return DataFacts(tuple(found), tuple(str(note) for note in part.items("notes")), classes)


def read_validation(history: Part | None) -> AgainstMajority | None:
    """Reads what the trained network answers on the validation split; None where the history does not say."""
    part = history.part("validation") if history else None
    if part is None:
        return None
    counts = {name: part.count(name) for name in AgainstMajority.__dataclass_fields__}
    if any(value is None for value in counts.values()):
        raise damaged(part.path, "validation lacks one of its counts")
    return AgainstMajority(**{name: value or 0 for name, value in counts.items()})


def _document(path: Path, what: str) -> tuple[dict[str, Any], str]:
    if not path.exists():
        return {}, ""
    content = parse_toml(path, what)
    return content, path.read_text(encoding="utf-8")


def _text(content: dict[str, Any], *path: str) -> str:
    value: Any = content
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return str(value) if isinstance(value, str | int | float) else ""


def _limit(recipe: dict[str, Any]) -> int | None:
    wanted = recipe.get("property")
    value = wanted.get("samples") if isinstance(wanted, dict) else None
    return value if isinstance(value, int) and value > 0 else None


def _first_object(directory: Path, *paths: str) -> Part | None:
    return next((part for path in paths if (part := load_object(directory / path)) is not None), None)


def _is_other_model(directory: Path, row: CertificateRow) -> bool:
    """Whether the model that a certificate names is in the artifact with another content; False where it is not there at all."""
    inside = _inside(row.certified_file)
    if inside is None or not (directory / inside).is_file():
        return False
    return content_sha256(directory / inside) != row.certified_sha256


def _inside(name: str) -> PurePosixPath | None:
    """Returns a relative path that stays in the artifact, or None."""
    path = PurePosixPath(name)
    return None if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts else path


def gather(directory: Path) -> Facts:
    """Reads an artifact directory into Facts.

    Files that are absent leave their part of the report out. Raises InputError for a directory that is not there, and
    for a file that is damaged: bad JSON or TOML, numbers that are not finite or out of range, arrays that are not
    numeric, claims that contradict themselves.
    """
    if not directory.is_dir():
        raise InputError(f"there is no artifact directory {directory}; give the directory that `vsparse build` wrote")
    recipe, recipe_text = _document(directory / "recipe.toml", "recipe")
    target, target_text = _document(directory / "target.toml", "target")
    certificate = load_object(directory / "certificate" / "certificate.json")
    parent = _first_object(directory, "certificate/dense/certificate.json", "certificate/dense.json")
    layers = load_object(directory / "compress" / "layers.json")
    history, history_dense = (load_object(directory / path) for path in ("train/history.json", "train/dense/history.json"))
    curve, curve_dense = (load_object(directory / path) for path in ("certificate/curve.json", "certificate/dense/curve.json"))
    manifest = load_object(directory / "manifest.json")
    if not any((recipe, certificate, layers, history, manifest)):
        raise InputError(
            f"{directory} holds no artifact (no manifest.json, recipe.toml or certificate); give the directory that `vsparse build` wrote"
        )
    names = class_names(certificate) or class_names(history) or class_names(manifest)
    profiles = sorted((directory / "profile").glob("*.json")) if (directory / "profile").is_dir() else []
    latency = tuple(measurements.read_comparison(item) for path in profiles if (item := load_object(path)) is not None)
    sparse, dense = (read_outcome(part, names) if part else None for part in (certificate, parent))
    certificates = read_certificates(directory, sparse, dense, names)
    return Facts(
        name=_text(recipe, "name") or directory.resolve().name,
        description=_text(recipe, "description"),
        dataset=_text(recipe, "data", "name"),
        target=_text(target, "name"),
        target_description=_text(target, "description"),
        training_objective=_text(recipe, "train", "objective"),
        sample_limit=_limit(recipe),
        other_models=tuple(dict.fromkeys(row.certified_file for row in certificates if _is_other_model(directory, row))),
        recipe_toml=recipe_text,
        target_toml=target_text,
        sparse=sparse,
        dense=dense,
        curve_sparse=measurements.read_curve("sparse", curve),
        curve_dense=measurements.read_curve("dense", curve_dense, curve),
        curve_samples=curve.count("samples") if curve else None,
        compression=measurements.read_compression(layers) if layers else None,
        latency=latency,
        history_sparse=measurements.read_history("sparse", history),
        history_dense=measurements.read_history("dense", history_dense, history),
        gallery=read_gallery(
            directory, names, sparse.epsilon_value if sparse else None, misclassified(certificate) if certificate else frozenset()
        ),
        cross_check=read_check(load_object(directory / "certificate" / "cross_check.json")),
        audit=read_check(load_object(directory / "certificate" / "audit.json")),
        gates=read_gates(directory / "gates.json"),
        provenance=read_provenance(directory, manifest),
        certificates=certificates,
        c_source=read_c_source(directory),
        data=read_data(load_object(directory / "train" / "data.json")),
        validation=read_validation(history),
        measured_on_target=on_target(target, build_machine(latency)),
        build_machine=build_machine(latency) if latency else "",
    )
