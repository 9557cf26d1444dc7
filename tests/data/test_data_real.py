"""The public datasets as they are distributed, where the environment variable VSPARSE_DATA names a folder that holds them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from vsparse.data import load
from vsparse.data.idx import read_file
from vsparse.data.names import CIFAR10_NAMES
from vsparse.recipe import Data

ROOT = Path(os.environ.get("VSPARSE_DATA") or "VSPARSE_DATA-is-not-set")


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (ROOT / name).exists(), reason=f"needs {name} in the folder that the environment variable VSPARSE_DATA names"
    )


@needs("mnist")
def test_mnist_is_the_official_one() -> None:
    splits = load(Data(name="mnist"), None, 0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (54000, 6000, 10000)
    assert splits.test.pixels.shape == (10000, 1, 28, 28)
    assert splits.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert splits.test.classes[7] == "7"
    header = bytes.fromhex("0000080300002710") + (28).to_bytes(4) * 2
    md5 = hashlib.md5(header + splits.test.pixels.tobytes(), usedforsecurity=False).hexdigest()
    assert md5 == "2646ac647ad5339dbf082846283269ea"  # of the official t10k-images-idx3-ubyte
    labels = read_file(ROOT / "mnist" / "train-labels-idx1-ubyte.gz", 1)
    md5 = hashlib.md5(bytes.fromhex("000008010000ea60") + labels.tobytes(), usedforsecurity=False).hexdigest()
    assert md5 == "a25bea736e30d166cdddb491f175f624"  # of the official train-labels-idx1-ubyte


@needs("gtsrb32")
def test_gtsrb_keeps_tracks_together() -> None:
    splits = load(Data(name="gtsrb"), None, 0)
    assert len(splits.train) + len(splits.validation) == 31379
    assert len(splits.test) == 7830
    assert splits.train.pixels.shape[1:] == (3, 32, 32)
    assert splits.train.classes[14] == "stop"
    assert len(splits.train.classes) == 43
    assert splits.train.groups is not None
    assert splits.validation.groups is not None
    assert splits.test.groups is not None
    train, validation, test = (
        set(part.groups.tolist()) for part in (splits.train, splits.validation, splits.test) if part.groups is not None
    )
    assert len(train) + len(validation) == 1046
    assert len(test) == 261
    assert len(train | validation | test) == 1046 + 261
    assert set(splits.validation.labels.tolist()) == set(range(43))
    assert np.array_equal(splits.train.groups // 1000, splits.train.labels)
    mean = splits.train.inputs(slice(0, None, 16)).mean((0, 2, 3))
    assert np.allclose(mean, (0.358, 0.317, 0.335), atol=0.02)


@pytest.mark.slow
@needs("cifar10-jpeg")
def test_cifar10_as_jpeg_keeps_the_official_order() -> None:
    splits = load(Data(name="cifar10"), None, 0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (45000, 5000, 10000)
    assert splits.test.classes == CIFAR10_NAMES
    assert splits.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # the official test labels
    assert np.bincount(splits.test.labels).tolist() == [1000] * 10
    assert np.allclose(splits.train.inputs(slice(0, None, 16)).mean((0, 2, 3)), (0.4913, 0.4821, 0.4465), atol=0.01)
