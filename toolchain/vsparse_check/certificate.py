"""Reads certificate.json and the inputs beside it without trust: what is not exactly of the format is refused."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse_check.model import Refused

SHA256 = re.compile(r"[0-9a-f]{64}")
NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,24})?(e-?[0-9]{1,2})?|[0-9]{1,12} ?/ ?[0-9]{1,12}", re.IGNORECASE)
METHODS = ("interval", "crown-ibp", "crown")
MAX_BYTES = 2**30
FP32 = {"storage": "fp32", "operand": "fp32", "accumulate": "fp32", "order": "any", "convolution": "direct", "subnormals": "flush"}
REAL = {"storage": "real", "operand": "real", "accumulate": "real", "order": "any", "convolution": "direct", "subnormals": "gradual"}
CONTRACTS: dict[str, dict[str, str]] = {"fp32": {"name": "fp32", **FP32}, "real": {"name": "real", **REAL}}


@dataclass(frozen=True)
class Claim:
    """A `certified` claim: sample, hash of its float32 input, label, method and the margin that is said to be proved."""

    id: int
    input_sha256: str
    label: int
    method: str
    margin_lower: float


@dataclass(frozen=True)
class Certificate:
    """What of a certificate is checked here."""

    sha256: str
    model_file: str
    model_sha256: str
    contract: str
    radius: Fraction
    clip: tuple[float, float]
    claims: tuple[Claim, ...]


def read_file(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a plain file of at most `limit` bytes; Refused for anything else."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > limit:
            raise Refused(f"{path.name} is not there, is no plain file, or has more than {limit} bytes")
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"{path.name} cannot be read: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object; Refused for malformed text, repeated keys, NaN and infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key is given twice")
        return dict(pairs)

    def constant(text: str) -> float:
        raise ValueError(f"{text} is no number")

    try:
        content = json.loads(read_file(path), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise Refused(f"{path.name} is no JSON object")
    return content


def digest(content: dict[str, Any]) -> str:
    """Returns the certificate's hash: SHA-256 of its canonical JSON without `time_ms` and `certificate_sha256` at any depth."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(item) for key, item in value.items() if key not in ("time_ms", "certificate_sha256")}
        return [kept(item) for item in value] if isinstance(value, list) else value

    try:
        text = json.dumps(kept(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
    except (ValueError, RecursionError, UnicodeEncodeError) as error:
        raise Refused(f"the certificate has no canonical form: {error}") from error


def _get(content: Any, key: str, kind: type) -> Any:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Refused(f"the certificate has no {key} of type {kind.__name__}")
    return value


def read_certificate(path: Path) -> Certificate:
    """Returns a certificate whose hash, claims and summary agree with each other; Refused names the first thing that does not."""
    content = read_json(path)
    stated = _get(content, "certificate_sha256", str)
    if digest(content) != stated:
        raise Refused("the certificate was changed: its content does not have its hash")
    if content.get("schema_version") != 1 or content.get("void"):
        raise Refused(f"the certificate is of an unknown version, or void: {str(content.get('void'))[:200]}")
    contract = _get(content, "contract", dict)
    name = str(contract.get("name"))
    if CONTRACTS.get(name) != contract:
        raise Refused(f'contract "{name:.40}" is none whose rounding this checker bounds ({", ".join(CONTRACTS)})')
    region, model = _get(content, "property", dict), _get(content, "model", dict)
    epsilon, clip = _get(region, "epsilon", str), _get(region, "clip", list)
    if region.get("norm") != "linf" or not NUMBER.fullmatch(epsilon) or len(clip) != 2:
        raise Refused("the property is no l-infinity ball of an exact radius")
    if not all(isinstance(end, int | float) and not isinstance(end, bool) and isfinite(end) for end in clip) or clip[0] > clip[1]:
        raise Refused(f"the data range {clip!s:.60} is none")
    try:
        radius = Fraction(epsilon.replace(" ", ""))
    except (ValueError, ZeroDivisionError) as error:
        raise Refused(f"the radius {epsilon:.40} is no number") from error
    claims, ids, verdicts = [], set(), dict.fromkeys(("certified", "falsified", "unknown"), 0)
    rows = {label: [0, 0, 0, 0] for label in range(len(_get(_get(content, "data", dict), "classes", list)))}
    for entry in _get(content, "claims", list):
        verdict, number, label = _get(entry, "verdict", str), _get(entry, "id", int), _get(entry, "label", int)
        correct = _get(entry, "predicted", int) == label
        if verdict not in verdicts or number in ids or number < 0 or label < 0:
            raise Refused(f"the claim about sample {number} has a verdict that is none, or is there twice")
        if entry.get("model") != model or entry.get("property") != region or entry.get("contract") != name:
            raise Refused(f"the claim about sample {number} is about another model, property or contract")
        ids.add(number)
        verdicts[verdict] += 1
        added = (1, correct, correct and verdict != "falsified", correct and verdict == "certified")
        rows[label] = [old + new for old, new in zip(rows.get(label, [0, 0, 0, 0]), added, strict=True)]
        if verdict != "certified":
            continue
        margin, method, shown = _get(entry, "margin_lower", float), _get(entry, "method", str), _get(entry, "input_sha256", str)
        if not (isfinite(margin) and margin > 0 and correct and method in METHODS and SHA256.fullmatch(shown)):
            raise Refused(f"sample {number} is called certified with margin {margin} by method {method:.20}")
        claims.append(Claim(number, shown, label, method, margin))
    _check_summary(_get(content, "summary", dict), verdicts, [rows[label] for label in sorted(rows)])
    sha256 = _get(model, "sha256", str)
    return Certificate(stated, _get(model, "file", str), sha256, name, radius, (float(clip[0]), float(clip[1])), tuple(claims))


def _check_summary(summary: dict[str, Any], verdicts: dict[str, int], rows: list[list[int]]) -> None:
    """Refuses a summary that is not what the claims add up to; `rows` counts samples, correct, attacked and certified of each class."""
    samples, correct, attacked, certified = (sum(column) for column in zip(*rows, strict=True)) if rows else (0, 0, 0, 0)
    stated = [[_get(row, key, int) for key in ("samples", "correct", "attacked", "certified")] for row in _get(summary, "classes", list)]
    counts = {**verdicts, "samples": samples, "correct": correct}
    shares = {"clean_accuracy": correct, "attacked_accuracy": attacked, "certified_accuracy": certified}
    if not samples or stated != rows or any(_get(summary, key, int) != value for key, value in counts.items()):
        raise Refused("the summary is not what the claims add up to")
    if any(_get(summary, key, float) != value / samples for key, value in shares.items()):
        raise Refused("the accuracies of the summary are not what the claims add up to")


def read_inputs(path: Path, size: int) -> dict[int, NDArray[np.float32]]:
    """Returns the flat float32 inputs by sample id from an .npz with `ids` int64 [n] and `inputs` float32 [n, ...]; never unpickles."""
    try:
        data = io.BytesIO(read_file(path))
        with zipfile.ZipFile(data) as archive:
            members = {entry.filename: entry.file_size for entry in archive.infolist()}
        if set(members) != {"ids.npy", "inputs.npy"} or sum(members.values()) > 2 * MAX_BYTES:
            raise Refused(f"{path.name} does not hold ids and inputs, or is too large")
        with np.load(data, allow_pickle=False) as arrays:
            ids, inputs = arrays["ids"], arrays["inputs"]
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        NotImplementedError,
        RuntimeError,
        KeyError,
        MemoryError,
    ) as error:
        raise Refused(f"{path.name} is no readable .npz file ({type(error).__name__})") from error
    except SyntaxError as error:  # numpy parses the header of a member as a Python literal
        raise Refused(f"{path.name} has a damaged header") from error
    if ids.dtype != np.int64 or ids.ndim != 1 or inputs.dtype != np.float32 or inputs.ndim < 2 or len(ids) != len(inputs):
        raise Refused(f"{path.name} does not hold int64 ids [n] and float32 inputs [n, ...]")
    if inputs[0:1].size not in (0, size) or len(set(ids.tolist())) != len(ids):
        raise Refused(f"{path.name} holds inputs of another size than the model's, or a sample twice")
    return dict(zip(ids.tolist(), inputs.reshape(len(inputs), size if len(inputs) else 0), strict=True))
