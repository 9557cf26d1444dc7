"""Counterexamples: inputs inside the region that the artifact misclassifies, kept so that anyone can execute them again."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.data.bounded import Zip
from vsparse.data.npz import read_array
from vsparse.errors import InputError
from vsparse.files import write_bytes

MAX_BYTES = 2**30
ARRAYS = ("ids", "inputs", "originals", "labels", "predictions")


@dataclass(frozen=True)
class Counterexamples:
    """`inputs` and `originals` are float32 [n, *shape]: the point, and the sample whose ball it lies in; the others are int64 [n]."""

    ids: NDArray[np.int64]
    inputs: NDArray[np.float32]
    originals: NDArray[np.float32]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def sha256(self) -> str:
        """Returns one hash of all arrays, names, types and shapes included."""
        digest = hashlib.sha256()
        for name in ARRAYS if len(self) else ():
            array = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Writes an .npz file atomically; without counterexamples it holds no arrays."""
        write_bytes(path, npz_bytes({name: getattr(self, name) for name in ARRAYS} if len(self) else {}))


def read_counterexamples(path: Path) -> Counterexamples:
    """Reads counterexamples.npz; raises InputError for a file that is absent, damaged, or whose arrays do not belong together."""
    if not path.is_file():
        raise InputError(f"{path} is not there; build the artifact again")
    arrays: dict[str, NDArray[Any]] = {}
    with Zip(path) as archive:
        if not archive.members:
            none, no_inputs = np.zeros(0, np.int64), np.zeros((0, 1), np.float32)
            return Counterexamples(none, no_inputs, no_inputs, none, none)
        for name in ARRAYS:
            if f"{name}.npy" not in archive.members:
                raise InputError(f'{path} has no array "{name}"; build the artifact again')
            wanted = np.dtype(np.float32 if name in ("inputs", "originals") else np.int64)
            arrays[name] = read_array(archive, name, MAX_BYTES)
            if arrays[name].dtype != wanted:
                raise InputError(f"{path}: {name} has type {arrays[name].dtype}, not {wanted}; build the artifact again")
    if len({len(array) if array.ndim else -1 for array in arrays.values()}) != 1 or arrays["inputs"].shape != arrays["originals"].shape:
        raise InputError(f"{path}: its arrays do not belong together; build the artifact again")
    return Counterexamples(**arrays)


def npz_bytes(arrays: dict[str, NDArray[Any]]) -> bytes:
    """Returns the bytes of a compressed .npz file, the same ones for the same arrays."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()
