"""Reads files without trust: plain files, JSON and arrays; never unpickles, within limits."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse_check.limits import EXPANSION, UNPACKED, UNPACKING, ResourceBudget
from vsparse_check.refusal import known, need, reading

MAX_BYTES, MAX_JSON = 2**30, 2**27
# What a value of a JSON text costs once it is read, by the sign that it has in the text; what each
# byte of the text itself costs; and the most for one document.
JSON_COSTS = {b",": 64, b"[": 64, b"{": 256}
JSON_BYTE, MAX_JSON_COST = 4, 2**28


def read_file(path: Path, most: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a plain file; Refuted for anything else, Unchecked above `most`."""
    plain = path.is_file() and not path.is_symlink()
    need(plain, f"{path.name} is not there, or no plain file")
    fits = path.stat().st_size <= most
    known(fits, f"{path.name} is larger than {most} bytes, which is not read")
    return path.read_bytes()


def read_json(path: Path, budget: ResourceBudget | None = None) -> dict[str, Any]:
    """Returns a JSON object; as `read_any_json`."""
    content = read_any_json(path, budget)
    need(isinstance(content, dict), f"{path.name} is no JSON object")
    return dict(content)


def read_any_json(path: Path, budget: ResourceBudget | None = None) -> Any:
    """Returns what a JSON file holds; what it takes is held in `budget`.

    Raises Refuted for malformed text, repeated keys, NaN and infinity, and Unchecked where the
    budget, or without one MAX_JSON_COST, has no room for it.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Returns an object; Refuted for a key that stands twice."""
        need(len(dict(pairs)) == len(pairs), f"{path.name} gives a key twice")
        return dict(pairs)

    def constant(text: str) -> None:
        """Refuses NaN and infinities, which Python reads and JSON does not have."""
        need(False, f"{path.name} is not JSON: {text} is no number")

    with reading(path.name):
        text = read_file(path, MAX_JSON)
        values = sum(each * text.count(sign) for sign, each in JSON_COSTS.items())
        cost = JSON_BYTE * len(text) + values
        if budget is not None:
            budget.hold(cost)
        else:
            known(
                cost <= MAX_JSON_COST,
                f"{path.name} holds more than is read: about {cost / 2**20:.0f} MiB of values",
            )
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)


def read_arrays(
    path: Path,
    types: dict[str, str],
    limit: int = 2 * MAX_BYTES,
    budget: ResourceBudget | None = None,
) -> dict[str, NDArray[Any]]:
    """Returns exactly the arrays `types` (name to dtype) of an .npz, `limit` bytes at most.

    Never unpickles, and no header makes it allocate more than the file says that it unpacks to.
    What the arrays take is held in `budget`, Unchecked where there is no room for it.
    """
    with reading(path.name), zipfile.ZipFile(io.BytesIO(read_file(path))) as archive:
        members = archive.infolist()
        sizes = {entry.filename: entry.file_size for entry in members}
        total, packed = sum(sizes.values()), path.stat().st_size
        expected = sizes.keys() == {f"{name}.npy" for name in types} and len(members) == len(types)
        need(
            expected and total <= limit,
            f"{path.name} holds other arrays than {', '.join(types)}, or too large ones",
        )
        known(
            total <= UNPACKED + EXPANSION * packed,
            f"{path.name} unpacks to {total} bytes, more than {EXPANSION} times its own, "
            "which is not done",
        )
        if budget is not None:
            budget.spend(UNPACKING * total)
            budget.hold(1.0 * total)
            budget.fit(1.0 * packed)
        found = dict[str, NDArray[Any]]()
        for name, dtype in types.items():
            with archive.open(f"{name}.npy") as member:
                content = member.read(sizes[f"{name}.npy"])
            found[name] = _array(content, name, dtype, path.name)
        return found


def _array(content: bytes, name: str, dtype: str, file: str) -> NDArray[Any]:
    """Returns the array of one .npy, over its very bytes."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    need(version == (1, 0), f"{file} holds an unknown version of .npy")
    shape, fortran, found = np.lib.format.read_array_header_1_0(stream)
    right = found == np.dtype(dtype) and not fortran
    need(right, f"{file} holds {name} as {found}, not {dtype}")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)
