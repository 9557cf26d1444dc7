"""CIFAR-100 as its authors distribute it, by its fine classes: binary and python version, unpacked or in their tar.gz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vsparse.data.cifar import CifarBatch, contents_of, located
from vsparse.data.dataset import Loaded, Raw
from vsparse.data.names import CIFAR100_NAMES
from vsparse.data.plain_pickle import read_plain_pickle
from vsparse.errors import InputError

PIXELS = 3 * 32 * 32
# A coarse and a fine label before the pixels.
RECORD = 2 + PIXELS
FOLDERS = ("", "cifar-100-binary", "cifar-100-python")
ARCHIVES = {"cifar-100-binary.tar.gz": ".bin", "cifar-100-python.tar.gz": ""}
LOOKED_FOR = "train.bin and test.bin, train, test and meta, cifar-100-binary.tar.gz or cifar-100-python.tar.gz"
BESIDE = {".bin": ("train", "test"), "": ("train", "test", "meta")}


def find(path: Path) -> tuple[Path, str] | None:
    """Returns the folder or archive and the suffix of its files (`.bin`, or empty for the python version), or None."""
    return located(path, FOLDERS, ARCHIVES, BESIDE)


def binary_part(data: bytes, source: str) -> CifarBatch:
    """Returns pixels uint8 [N, 3, 32, 32] and fine labels of a binary file: records of two label bytes and 3,072 pixels, red first."""
    if not data or len(data) % RECORD:
        raise InputError(f"{source} has {len(data)} bytes, which is no number of records of {RECORD} bytes; copy the file again")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD)
    return records[:, 2:].reshape(-1, 3, 32, 32), records[:, 1].astype(np.int64)


def python_part(data: bytes, source: str) -> CifarBatch:
    """Returns the same of a python file: a dictionary with `data`, uint8 [N, 3072], and `fine_labels`, a list of integers."""
    content = read_plain_pickle(data, source)
    pixels, labels = content.get("data"), content.get("fine_labels")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not isinstance(labels, list):
        raise InputError(f"{source} has no data of {PIXELS} bytes a row with a list of fine_labels; it is not of CIFAR-100")
    if len(labels) != len(pixels) or not labels:
        raise InputError(f"{source} has {len(pixels)} images and {len(labels)} labels; copy the file again")
    for label in labels:
        if type(label) is not int or not 0 <= label < len(CIFAR100_NAMES):
            raise InputError(f"{source}: label {label!r:.40} is out of range, CIFAR-100 has classes 0 to 99; copy the file again")
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def read(path: Path) -> Loaded:
    """Returns the training and test samples, in the order of their files; raises InputError that names a file that is missing."""
    found = find(path)
    if found is None:
        raise InputError(f"{path} is not CIFAR-100: {LOOKED_FOR} is wanted there")
    where, suffix = found
    names = [f"train{suffix}", f"test{suffix}"]
    get = contents_of(where, names, "the CIFAR-100 file")
    parse = binary_part if suffix else python_part
    train, test = (Raw(np.ascontiguousarray(x), 255.0, y, f"{where}/{n}") for n in names for x, y in [parse(get(n), f"{where}/{n}")])
    return Loaded(train, test, CIFAR100_NAMES)
