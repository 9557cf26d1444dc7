"""The samples that claims are about: those that the artifact holds, and those of a data file."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsparse_check.files import read_arrays
from vsparse_check.limits import ResourceBudget
from vsparse_check.model import ROWS, Model
from vsparse_check.refusal import need, reading

Pixels = NDArray[np.float32]  # one input, flat
Inputs = dict[int, Pixels]  # by sample id
COUNTEREXAMPLES = {
    "ids": "<i8",
    "inputs": "<f4",
    "originals": "<f4",
    "labels": "<i8",
    "predictions": "<i8",
}
EMPTY_ARCHIVE = 22  # bytes of a zip archive without members
AT_ONCE = 256


class SampleData(NamedTuple):
    """Samples that a caller gives; the first of them should be those of a certificate."""

    inputs: NDArray[np.float32]  # [n, …]
    labels: NDArray[np.int64] | NDArray[np.float64]  # [n]; of regression the targets, float64


def read_data(path: Path) -> SampleData:
    """Returns the samples of an .npz file with `inputs` (float32 [n, …]) and `labels` (int64).

    Of regression `targets` (float64) stand in place of `labels`.
    """
    arrays = read_arrays(path, {"inputs": "<f4", **_answers_in(path)})
    inputs, labels = arrays["inputs"], arrays["targets" if "targets" in arrays else "labels"]
    paired = labels.ndim == 1 <= inputs.ndim and len(inputs) == len(labels) > 0
    need(paired, f"{path.name} has other than one label for each input")
    return SampleData(inputs, labels)


def _answers_in(path: Path) -> dict[str, str]:
    """Returns the array of a file that says what is right, with its type: `labels` or `targets`."""
    with reading(path.name), zipfile.ZipFile(path) as archive:
        return {"targets": "<f8"} if "targets.npy" in archive.namelist() else {"labels": "<i8"}


def input_sha256(x: Pixels) -> str:
    """Returns the hash that a claim names its input by."""
    return hashlib.sha256(x.tobytes()).hexdigest()


def samples_sha256(data: SampleData, count: int, shape: tuple[int, ...]) -> str:
    """Returns the hash of the first samples, which certificates state as data.inputs_sha256.

    `shape` is the one in which the network takes an input.
    """
    inputs, labels = data.inputs[:count].reshape(-1, *shape), data.labels[:count]
    digest = hashlib.sha256(f"{inputs.shape} {labels.shape}\n".encode())
    digest.update(np.ascontiguousarray(inputs, dtype="<f4").tobytes())
    kind = "<f8" if labels.dtype.kind == "f" else "<i8"
    digest.update(np.ascontiguousarray(labels, dtype=kind).tobytes())
    return digest.hexdigest()


def read_inputs(path: Path, size: int, budget: ResourceBudget) -> Inputs:
    """Returns the inputs of inputs.npz, each of so many elements."""
    arrays = read_arrays(path, {"ids": "<i8", "inputs": "<f4"}, budget=budget)
    with reading(path.name):
        inputs = arrays["inputs"].reshape(len(arrays["ids"]), size)
        return dict(zip(arrays["ids"].tolist(), inputs, strict=True))


def read_counterexamples(
    path: Path, stated: str, size: int, budget: ResourceBudget
) -> dict[str, Any]:
    """Returns the arrays of counterexamples.npz, inputs flat; {} where it holds none.

    Refuted unless their hash is the one stated.
    """
    digest, arrays = hashlib.sha256(), dict[str, Any]()
    if path.stat().st_size > EMPTY_ARCHIVE:
        arrays = read_arrays(path, COUNTEREXAMPLES, budget=budget)
        for name, value in arrays.items():
            digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
            digest.update(value.tobytes())
    same = digest.hexdigest() == stated
    need(same, f"{path.name} does not hold the arrays that the certificate is about")
    with reading(path.name):
        for name in ("inputs", "originals"):
            if name in arrays:
                arrays[name] = arrays[name].reshape(len(arrays["ids"]), size)
        lengths = {len(value) for value in arrays.values()}
        need(len(lengths) <= 1, f"{path.name}: its arrays do not belong together")
    return arrays


def at_once(model: Model) -> int:
    """Returns how many samples fit side by side: boxes, costs and an execution of each, and rows.

    A few rows for each pair of classes.
    """
    rows = ROWS * model.size_of_output**2
    each = 8 * (model.size_of_execution + 4 * model.largest + rows)
    return int(max(1, min(AT_ONCE, model.budget.memory // (8 * each))))
