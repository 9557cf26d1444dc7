"""CIFAR-10 as its authors distribute it: the binary version and the python version, unpacked or in their tar.gz."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsparse.data.dataset import Loaded, Raw
from vsparse.data.names import CIFAR10_NAMES
from vsparse.data.plain_pickle import read_plain_pickle
from vsparse.data.tar import read_members
from vsparse.errors import InputError
from vsparse.files import read_bytes

RECORD = 1 + 3 * 32 * 32
MAX_BATCH_BYTES = 256 * 2**20
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
ARCHIVES = {"cifar-10-binary.tar.gz": ".bin", "cifar-10-python.tar.gz": ""}
LOOKED_FOR = "data_batch_1.bin, data_batch_1, cifar-10-binary.tar.gz or cifar-10-python.tar.gz"

CifarBatch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def located(
    path: Path, folders: Sequence[str], archives: Mapping[str, str], beside: Mapping[str, Sequence[str]]
) -> tuple[Path, str] | None:
    """Returns the folder or archive at `path` and the suffix of its files, or None.

    `archives` are the usual names with their suffix, `beside` the files that a folder has, without their suffix, by that.
    """
    if path.is_file():
        suffix = archives.get(path.name)
        return None if suffix is None else (path, suffix)
    for name in folders:
        for suffix, files in beside.items():
            if all((path / name / f"{file}{suffix}").is_file() for file in files):
                return path / name, suffix
    for name, suffix in archives.items():
        if (path / name).is_file():
            return path / name, suffix
    return None


def contents_of(where: Path, names: Sequence[str], what: str) -> Callable[[str], bytes]:
    """Returns what reads a file of a folder or an archive by its name; InputError for one that is not there."""
    if not where.is_file():
        return lambda name: read_bytes(where / name, what, MAX_BATCH_BYTES)
    contents = read_members(where, set(names), MAX_BATCH_BYTES)
    for name in names:
        if name not in contents:
            raise InputError(f"{where} has no {name} in it; copy the file again")
    return contents.__getitem__


def find(path: Path) -> tuple[Path, str] | None:
    """Returns the folder or archive and the suffix of its batches (`.bin`, or empty for the python version), or None."""
    return located(path, FOLDERS, ARCHIVES, dict.fromkeys((".bin", ""), BATCHES[:1]))


def binary_batch(data: bytes, source: str) -> CifarBatch:
    """Returns pixels uint8 [N, 3, 32, 32] and labels of a binary batch: records of a label byte and 3,072 pixels, red first."""
    if not data or len(data) % RECORD:
        raise InputError(f"{source} has {len(data)} bytes, which is no number of records of {RECORD} bytes; copy the file again")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def python_batch(data: bytes, source: str) -> CifarBatch:
    """Returns the same of a python batch: a dictionary with `data`, uint8 [N, 3072], and `labels`, a list of integers."""
    content = read_plain_pickle(data, source)
    pixels, labels = content.get("data"), content.get("labels")
    if "fine_labels" in content:
        raise InputError(f'{source} is CIFAR-100 (it has fine_labels), and CIFAR-10 is wanted here; set data.name = "cifar100"')
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != RECORD - 1 or not isinstance(labels, list):
        raise InputError(f"{source} has no data of {RECORD - 1} bytes a row with a list of labels; it is not a batch of CIFAR-10")
    if len(labels) != len(pixels):
        raise InputError(f"{source} has {len(pixels)} images and {len(labels)} labels; copy the file again")
    if not labels:
        raise InputError(f"{source} holds no samples; copy the file again")
    for label in labels:
        if type(label) is not int or not 0 <= label < len(CIFAR10_NAMES):
            raise InputError(f"{source}: label {label!r:.40} is out of range, CIFAR-10 has classes 0 to 9; copy the file again")
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def read(path: Path) -> Loaded:
    """Returns the five training batches, in their order, and the test batch; raises InputError that names a batch that is missing."""
    found = find(path)
    if found is None:
        raise InputError(f"{path} is not CIFAR-10: {LOOKED_FOR} is wanted there")
    where, suffix = found
    names = [f"{name}{suffix}" for name in (*BATCHES, TEST)]
    get = contents_of(where, names, "the CIFAR-10 batch")
    parse = binary_batch if suffix else python_batch
    batches = [parse(get(name), f"{where}/{name}") for name in names]
    train_pixels = np.concatenate([pixels for pixels, _ in batches[:-1]])
    train_labels = np.concatenate([labels for _, labels in batches[:-1]])
    test_pixels, test_labels = batches[-1]
    return Loaded(
        Raw(train_pixels, 255.0, train_labels, f"{where} (training batches)"),
        Raw(np.ascontiguousarray(test_pixels), 255.0, test_labels, f"{where}/{names[-1]}"),
        CIFAR10_NAMES,
    )
