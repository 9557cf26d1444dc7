"""IDX files (the format of MNIST): a big-endian header and unsigned bytes, gzip or not."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.data.bounded import expect_end, open_plain_or_gzip, read_exactly
from vsparse.data.dataset import Loaded, Raw, check_shape, integer_labels
from vsparse.errors import InputError

UNSIGNED_BYTE = 0x08
LOOKED_FOR = "train-images-idx3-ubyte[.gz]"


def find(folder: Path, part: str, kind: str, rank: int) -> Path | None:
    """Returns the file of a part (`train`, `t10k`) and a kind (`images`, `labels`), with a hyphen or a dot in its name, gzip or not."""
    for joint in ("-", "."):
        for suffix in ("", ".gz"):
            path = folder / f"{part}-{kind}{joint}idx{rank}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def read_file(path: Path, rank: int) -> NDArray[np.uint8]:
    """Returns the uint8 array of that rank; raises InputError for a wrong magic, absurd sizes, too few bytes and too many."""
    source = str(path)
    with open_plain_or_gzip(path) as (stream, most):
        zero, kind, dimensions = struct.unpack(">HBB", read_exactly(stream, 4, source, "its magic number").tobytes())
        if zero != 0 or dimensions != rank or kind != UNSIGNED_BYTE:
            found = (zero << 16) | (kind << 8) | dimensions
            wanted = (UNSIGNED_BYTE << 8) | rank
            raise InputError(f"{source} starts with {found}, and an IDX file of {rank} axes of bytes starts with {wanted}; check the file")
        shape: tuple[int, ...] = struct.unpack(f">{rank}I", read_exactly(stream, 4 * rank, source, "its header").tobytes())
        count = check_shape(shape, 1, source)
        if count > most:
            raise InputError(f"{source} is truncated: its header promises {count} bytes, more than the file can hold; copy it again")
        data = read_exactly(stream, count, source, "its header's shape")
        expect_end(stream, source)
    return data.reshape(shape)


def _part(folder: Path, part: str) -> Raw | None:
    images = find(folder, part, "images", 3)
    if images is None:
        return None
    labels = find(folder, part, "labels", 1)
    if labels is None:
        raise InputError(f"{images} has no labels beside it; {part}-labels-idx1-ubyte[.gz] is wanted in {folder}")
    pixels: NDArray[Any] = read_file(images, 3)[:, None]
    return Raw(pixels, 255.0, integer_labels(read_file(labels, 1), "labels", str(labels)), str(images))


def read(folder: Path) -> Loaded:
    """Returns `train-*` and, where they are there, `t10k-*` of a folder: uint8 [N, 1, H, W], in the files' order."""
    train = _part(folder, "train")
    if train is None:
        raise InputError(f"{folder} has no {LOOKED_FOR}; give the folder of the IDX files")
    return Loaded(train, _part(folder, "t10k"))
