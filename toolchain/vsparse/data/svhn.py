"""SVHN's cropped digits as their authors distribute them: train_32x32.mat and test_32x32.mat (Netzer et al., 2011)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vsparse.data.dataset import Loaded, Raw
from vsparse.data.mat import read_variables
from vsparse.errors import InputError

TRAIN, TEST = "train_32x32.mat", "test_32x32.mat"
LOOKED_FOR = f"{TRAIN} and {TEST}"
# The digit 0 has the label 10.
CLASSES = 10


def find(path: Path) -> bool:
    """Returns whether SVHN's training file is in a folder."""
    return (path / TRAIN).is_file()


def read_file(path: Path) -> Raw:
    """Returns the samples of one file: X, uint8 [32, 32, 3, N] with rows first, and y, N labels from 1 to 10."""
    content = read_variables(path, ("X", "y"))
    pixels, labels = content["X"], content["y"]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3):
        raise InputError(
            f"{path}: X is {pixels.dtype} of shape {list(pixels.shape)}, and SVHN's is uint8 [32, 32, 3, N]; copy the file again"
        )
    numbers = labels.reshape(-1)
    if len(numbers) != pixels.shape[3] or not len(numbers):
        raise InputError(f"{path} has {pixels.shape[3]} images and {len(numbers)} labels; copy the file again")
    wrong = ~np.isin(numbers, np.arange(1, CLASSES + 1))
    if wrong.any():
        raise InputError(f"{path}: label {numbers[wrong][0]} is out of range, SVHN has 1 to 10 (the digit 0); copy the file again")
    return Raw(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), 255.0, numbers.astype(np.int64) % CLASSES, str(path))


def read(folder: Path) -> Loaded:
    """Returns the training and test samples, in the order of their files; extra_32x32.mat is not read."""
    if not find(folder):
        raise InputError(f"{folder} is not SVHN: {LOOKED_FOR} are wanted there")
    if not (folder / TEST).is_file():
        raise InputError(f"{folder / TEST} is not there; copy it beside {TRAIN}")
    return Loaded(read_file(folder / TRAIN), read_file(folder / TEST))
