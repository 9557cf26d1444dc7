"""Reads what lies in an artifact without trust: plain files, JSON, arrays, and certificates that agree with themselves."""

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
from vsparse_check.region import Property
from vsparse_check.rounding import CONTRACTS

SHA256 = re.compile(r"[0-9a-f]{64}")
NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,24})?(e-?[0-9]{1,2})?|[0-9]{1,12} ?/ ?[0-9]{1,12}", re.IGNORECASE)
METHODS = ("interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound")
MAX_BYTES = 2**30


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
    model: tuple[str, str]  # file and content hash
    contract: dict[str, str]
    region: Property
    proofs_sha256: str | None
    claims: list[Claim]


def read_file(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a plain file of at most `limit` bytes; Refused for anything else."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > limit:
        raise Refused(f"{path.name} is not there, is no plain file, or has more than {limit} bytes")
    return path.read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object; Refused for malformed text, repeated keys, NaN and infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
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


def read_arrays(path: Path, types: dict[str, str], limit: int = MAX_BYTES) -> dict[str, NDArray[Any]]:
    """Returns exactly the arrays `types` of an .npz, `limit` bytes at most; never unpickles, and no header makes it allocate more."""
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(read_file(path))) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            if sizes.keys() != {f"{name}.npy" for name in types} or len(archive.infolist()) != len(types) or sum(sizes.values()) > limit:
                raise ValueError("other arrays, or too large ones")
            for name, dtype in types.items():
                with archive.open(f"{name}.npy") as member:
                    stream = io.BytesIO(member.read(sizes[f"{name}.npy"]))
                if np.lib.format.read_magic(stream) != (1, 0):
                    raise ValueError("an unknown version of .npy")
                shape, fortran, found = np.lib.format.read_array_header_1_0(stream)
                if found != np.dtype(dtype) or fortran:
                    raise ValueError(f"{name} is {found}")
                arrays[name] = np.frombuffer(stream.read(), dtype).reshape(shape)
    except Exception as error:  # zipfile, zlib and numpy raise many types, a damaged header even SyntaxError
        raise Refused(f"{path.name} is no readable .npz file of the right arrays: {type(error).__name__} {error!s:.80}") from error
    return arrays


def read_inputs(path: Path, size: int) -> dict[int, NDArray[np.float32]]:
    """Returns the flat float32 inputs by sample id."""
    arrays = read_arrays(path, {"ids": "<i8", "inputs": "<f4"}, 2 * MAX_BYTES)
    ids, inputs = arrays["ids"].tolist(), arrays["inputs"]
    if len(set(ids)) != len(ids) or inputs.shape[:1] != (len(ids),) or inputs.size != len(ids) * size:
        raise Refused(f"{path.name} holds inputs of another size than the model's, or a sample twice")
    return dict(zip(ids, inputs.reshape(len(ids), size), strict=True))


def digest(content: dict[str, Any]) -> str:
    """Returns the certificate's hash: SHA-256 of its canonical JSON without `time_ms` and `certificate_sha256` at any depth."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(item) for key, item in value.items() if key not in ("time_ms", "certificate_sha256")}
        return [kept(item) for item in value] if isinstance(value, list) else value

    try:
        text = json.dumps(kept(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
    except (ValueError, RecursionError) as error:
        raise Refused(f"the certificate has no canonical form: {error}") from error


def _get(content: Any, key: str, kind: type) -> Any:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Refused(f"the certificate has no {key} of type {kind.__name__}")
    return value


def read_certificate(path: Path) -> Certificate:
    """Returns a certificate whose hash, claims and summary agree with each other; Refused names the first thing that does not."""
    content = read_json(path)
    stated, contract = _get(content, "certificate_sha256", str), _get(content, "contract", dict)
    if digest(content) != stated:
        raise Refused("the certificate was changed: its content does not have its hash")
    if content.get("schema_version") != 1 or content.get("void"):
        raise Refused(f"the certificate is of an unknown version, or void: {content.get('void')!s:.200}")
    if contract not in CONTRACTS.values():
        raise Refused(f'contract "{contract.get("name")!s:.40}" is none whose rounding this checker bounds ({", ".join(CONTRACTS)})')
    region, model, proofs = _get(content, "property", dict), _get(content, "model", dict), content.get("proofs_sha256")
    same = {"property": region, "model": model, "contract": contract["name"]}
    claims, ids, counts = [], set(), dict.fromkeys(("certified", "falsified", "unknown"), 0)
    rows = [[0, 0, 0, 0] for _ in _get(_get(content, "data", dict), "classes", list)]
    for entry in _get(content, "claims", list):
        verdict, number, label = _get(entry, "verdict", str), _get(entry, "id", int), _get(entry, "label", int)
        correct = _get(entry, "predicted", int) == label
        if verdict not in counts or number in ids or number < 0 or not 0 <= label < len(rows):
            raise Refused(f"the claim about sample {number} has a verdict or label that is none, or is there twice")
        if any(entry.get(key) != value for key, value in same.items()):
            raise Refused(f"the claim about sample {number} is about another model, property or contract")
        ids.add(number)
        counts[verdict] += 1
        added = (1, correct, correct and verdict != "falsified", correct and verdict == "certified")
        rows[label] = [old + new for old, new in zip(rows[label], added, strict=True)]
        if verdict == "certified":
            margin, method, shown = _get(entry, "margin_lower", float), _get(entry, "method", str), _get(entry, "input_sha256", str)
            if not (isfinite(margin) and margin > 0 and correct and method in METHODS and SHA256.fullmatch(shown)):
                raise Refused(f"sample {number} is called certified with margin {margin} by method {method:.20}")
            claims.append(Claim(number, shown, label, method, margin))
    _check_summary(_get(content, "summary", dict), counts, rows)
    return Certificate(
        stated, (_get(model, "file", str), _get(model, "sha256", str)), contract, _property(region), proofs and str(proofs), claims
    )


def _property(region: dict[str, Any]) -> Property:
    """Returns the property; Refused where a key is unknown, a number not exact, or the data range none."""
    clip, numbers = _get(region, "clip", list), [str(region.get(key, "0")) for key in ("epsilon", "brightness", "contrast")]
    known = region.keys() <= {"norm", "epsilon", "clip", "brightness", "contrast"} and region.get("norm") in ("linf", "l2", "l1")
    if not known or "epsilon" not in region or not all(NUMBER.fullmatch(number) for number in numbers):
        raise Refused("the property is no region of an exact size that this checker knows")
    if [type(end) in (int, float) and isfinite(end) for end in clip] != [True, True] or clip[0] > clip[1]:
        raise Refused(f"the data range {clip!s:.60} is none")
    try:
        epsilon, brightness, contrast = (Fraction(number.replace(" ", "")) for number in numbers)
    except ZeroDivisionError as error:
        raise Refused(f"{numbers} are no numbers") from error
    return Property(region["norm"], epsilon, brightness, contrast, (float(clip[0]), float(clip[1])))


def _check_summary(summary: dict[str, Any], counts: dict[str, int], rows: list[list[int]]) -> None:
    """Refuses a summary that is not what the claims add up to; `rows` counts samples, correct, attacked and certified of each class."""
    samples, correct, attacked, certified = (sum(column) for column in zip(*rows, strict=True)) if rows else (0, 0, 0, 0)
    stated = [[_get(row, key, int) for key in ("samples", "correct", "attacked", "certified")] for row in _get(summary, "classes", list)]
    expected = {**counts, "samples": samples, "correct": correct}
    shares = {"clean_accuracy": correct, "attacked_accuracy": attacked, "certified_accuracy": certified}
    if not samples or stated != rows or any(_get(summary, key, int) != value for key, value in expected.items()):
        raise Refused("the summary is not what the claims add up to")
    if any(_get(summary, key, float) != value / samples for key, value in shares.items()):
        raise Refused("the accuracies of the summary are not what the claims add up to")
