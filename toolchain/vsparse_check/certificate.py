"""Reads what lies in an artifact without trust: plain files, JSON, arrays, and certificates that agree with themselves."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse_check.limits import EXPANSION, UNPACKED, UNPACKING, Budget
from vsparse_check.refusal import known, need, reading
from vsparse_check.region import Property

NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,24})?(e-?[0-9]{1,2})?|[0-9]{1,12} ?/ ?[0-9]{1,12}", re.IGNORECASE)
METHODS = ("interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound", "photometric-split")
MAX_BYTES, MAX_JSON = 2**30, 2**27
# What a value costs once it is read, by the sign that it has in the text, and each byte of the text itself; and for all of one document.
JSON_COSTS, JSON_BYTE, MAX_JSON_COST = {b",": 64, b"[": 64, b"{": 256}, 4, 2**28


def read_file(path: Path, most: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a plain file; Refused for anything else, Unchecked for more than `most`."""
    need(path.is_file() and not path.is_symlink(), f"{path.name} is not there, or no plain file")
    known(path.stat().st_size <= most, f"{path.name} is larger than {most} bytes, which is not read")
    return path.read_bytes()


def read_json(path: Path, budget: Budget | None = None) -> dict[str, Any]:
    """Returns a JSON object; Refused for malformed text, repeated keys, NaN and infinity; what it takes is held in `budget`."""
    content = read_any_json(path, budget)
    need(isinstance(content, dict), f"{path.name} is no JSON object")
    return dict(content)


def read_any_json(path: Path, budget: Budget | None = None) -> Any:
    """Returns what a JSON file holds; Refused as for `read_json`, Unchecked where `budget`, or MAX_JSON_COST, has no room for it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), f"{path.name} gives a key twice")
        return dict(pairs)

    def constant(text: str) -> None:
        need(False, f"{path.name} is not JSON: {text} is no number")

    with reading(path.name):
        text = read_file(path, MAX_JSON)
        cost = JSON_BYTE * len(text) + sum(each * text.count(sign) for sign, each in JSON_COSTS.items())
        known(budget is not None or cost <= MAX_JSON_COST, f"{path.name} holds more than is read: about {cost / 2**20:.0f} MiB of values")
        if budget is not None:
            budget.hold(cost)
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)


def read_arrays(path: Path, types: dict[str, str], limit: int = 2 * MAX_BYTES, budget: Budget | None = None) -> dict[str, NDArray[Any]]:
    """Returns exactly the arrays `types` of an .npz, `limit` bytes at most; never unpickles, and no header makes it allocate more.

    What they take is held in `budget`, and Unchecked where there is no room for it.
    """
    with reading(path.name), zipfile.ZipFile(io.BytesIO(read_file(path))) as archive:
        sizes, arrays = {entry.filename: entry.file_size for entry in archive.infolist()}, {}
        right = sizes.keys() == {f"{name}.npy" for name in types} and len(archive.infolist()) == len(types)
        need(right and sum(sizes.values()) <= limit, f"{path.name} holds other arrays than {', '.join(types)}, or too large ones")
        packed = path.stat().st_size
        small = sum(sizes.values()) <= UNPACKED + EXPANSION * packed
        known(small, f"{path.name} unpacks to {sum(sizes.values())} bytes, more than {EXPANSION} times its own, which is not done")
        if budget is not None:
            budget.spend(UNPACKING * sum(sizes.values()))
            budget.hold(1.0 * sum(sizes.values()))
            budget.fit(1.0 * packed)
        for name, dtype in types.items():
            with archive.open(f"{name}.npy") as member:
                stream = io.BytesIO(data := member.read(sizes[f"{name}.npy"]))
            need(np.lib.format.read_magic(stream) == (1, 0), f"{path.name} holds an unknown version of .npy")
            shape, fortran, found = np.lib.format.read_array_header_1_0(stream)
            need(found == np.dtype(dtype) and not fortran, f"{path.name} holds {name} as {found}, not {dtype}")
            arrays[name] = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
    return arrays


def digest(content: dict[str, Any]) -> str:
    """Returns the certificate's hash: SHA-256 of its canonical JSON without `time_ms` and `certificate_sha256` at any depth."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(item) for key, item in value.items() if key not in ("time_ms", "certificate_sha256")}
        return [kept(item) for item in value] if isinstance(value, list) else value

    with reading("certificate.json"):
        text = json.dumps(kept(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def read_certificate(path: Path, budget: Budget | None = None) -> tuple[dict[str, Any], Property]:
    """Returns a certificate whose hash, claims and summary agree with each other; Refused names the first thing that does not."""
    content = read_json(path, budget)
    with reading(path.name):
        need(digest(content) == content["certificate_sha256"], "the certificate was changed: its content does not have its hash")
        void, contract, rows = content["void"], content["contract"], [[0, 0, 0, 0] for _ in content["data"]["classes"]]
        need(content["schema_version"] == 1 and void == "", f"the certificate is of an unknown version, or void: {void!s:.200}")
        ids, counts = set[int](), dict.fromkeys(("certified", "falsified", "unknown"), 0)
        for claim in content["claims"]:
            verdict, number, label, predicted = (claim[key] for key in ("verdict", "id", "label", "predicted"))
            typed = [type(value) for value in (number, label, predicted)] == [int] * 3 and number not in ids and verdict in counts
            need(typed and number >= 0 and 0 <= label < len(rows), f"the claim about sample {number!s:.20} is there twice, or is none")
            same = all(claim[key] == content[key] for key in ("model", "property")) and claim["contract"] == contract["name"]
            need(same, f"the claim about sample {number} is about another model, property or contract")
            correct, margin, method = predicted == label, claim["margin_lower"], claim["method"]
            sound = verdict != "certified" or (type(margin) is float and 0 < margin < np.inf and correct and method in METHODS)
            need(sound, f"sample {number} is called certified with margin {margin!s:.20} by method {method!s:.20}")
            ids.add(number)
            counts[verdict] += 1
            added = (1, correct, correct and verdict != "falsified", verdict == "certified")
            rows[label] = [old + new for old, new in zip(rows[label], added, strict=True)]
        samples, correct, attacked, certified = (sum(column) for column in zip(*rows, strict=True))
        shares = {"clean_accuracy": correct / samples, "attacked_accuracy": attacked / samples, "certified_accuracy": certified / samples}
        summary, keys = content["summary"], ("samples", "correct", "attacked", "certified")
        expected = {**counts, "samples": samples, "correct": correct, **shares}
        classes = [[row[key] for key in keys] for row in summary["classes"]]
        wrong = [key for key, value in expected.items() if summary[key] != value]
        need(classes == rows and not wrong, f"the accuracies and counts of the summary are not what the claims add up to: {wrong}")
        return content, _property(**content["property"])


def _property(norm: str, epsilon: str, clip: list[float], brightness: str = "0", contrast: str = "0") -> Property:
    """Returns the property; Refused where a number is not exact, or the data range none."""
    numbers = (epsilon, brightness, contrast)
    need(norm in ("linf", "l2", "l1") and all(map(NUMBER.fullmatch, numbers)), "the property is no region of an exact size that is known")
    (low, high), (radius, b, c) = clip, (Fraction(number.replace(" ", "")) for number in numbers)
    need({type(low), type(high)} <= {int, float} and -np.inf < low <= high < np.inf, f"the data range {clip!s:.60} is none")
    return Property(norm, radius, b, c, (float(low), float(high)))
