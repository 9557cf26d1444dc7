"""Damaged datasets."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
from damaged_cases import case


def idx(folder: Path, images: bytes | None = None, labels: bytes | None = None) -> list[str]:
    """A folder of two IDX splits of 40 images of 8x8, with the training images or labels replaced."""
    pixels = np.arange(40 * 64, dtype=np.int64).astype(np.uint8).tobytes()
    good_images = struct.pack(">IIII", 2051, 40, 8, 8) + pixels
    good_labels = struct.pack(">II", 2049, 40) + bytes(i % 10 for i in range(40))
    for split in ("train", "t10k"):
        mine = split == "train"
        (folder / f"{split}-images-idx3-ubyte").write_bytes(images if mine and images is not None else good_images)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels if mine and labels is not None else good_labels)
    (folder / "my.toml").write_text('[data]\nname = "mine"\nformat = "idx"\n[train]\nepochs = 1\n')
    return ["build", str(folder / "my.toml"), "--data", str(folder), "--out", str(folder / "out")]


@case(2, "--data")
def data_not_given(folder: Path, artifact: Path) -> list[str]:
    return ["build", "mnist"]


@case(2, "mnist")
def data_folder_empty(folder: Path, artifact: Path) -> list[str]:
    return ["build", "mnist", "--data", str(folder)]


@case(2, "train-images")
def data_truncated(folder: Path, artifact: Path) -> list[str]:
    return idx(folder, images=struct.pack(">IIII", 2051, 40, 8, 8) + bytes(100))


@case(2, "train-images")
def data_of_the_wrong_magic(folder: Path, artifact: Path) -> list[str]:
    return idx(folder, images=struct.pack(">IIII", 9999, 40, 8, 8) + bytes(40 * 64))


@case(2, "train-images")
def data_whose_header_claims_too_much(folder: Path, artifact: Path) -> list[str]:
    return idx(folder, images=struct.pack(">IIII", 2051, 2**31 - 1, 2**15, 2**15) + bytes(100))


@case(2, "label")
def data_with_fewer_labels_than_images(folder: Path, artifact: Path) -> list[str]:
    return idx(folder, labels=struct.pack(">II", 2049, 39) + bytes(i % 10 for i in range(39)))


@case(2, "train")
def data_whose_gzip_is_cut(folder: Path, artifact: Path) -> list[str]:
    arguments = idx(folder)
    path = folder / "train-images-idx3-ubyte"
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()
    return arguments


def npz(folder: Path, **arrays: np.ndarray) -> list[str]:
    np.savez(folder / "mine.npz", **arrays)
    (folder / "my.toml").write_text('[data]\nname = "mine"\nformat = "npz"\n[train]\nepochs = 1\n')
    return ["build", str(folder / "my.toml"), "--data", str(folder), "--out", str(folder / "out")]


@case(2, "y")
def data_without_labels(folder: Path, artifact: Path) -> list[str]:
    return npz(folder, x=np.zeros((20, 8, 8, 1), np.uint8))


@case(2, "mine.npz")
def data_with_python_objects(folder: Path, artifact: Path) -> list[str]:
    return npz(folder, x=np.array([{"a": 1}] * 20, dtype=object), y=np.arange(20) % 2)


@case(2, "mine.npz")
def data_with_nan_pixels(folder: Path, artifact: Path) -> list[str]:
    return npz(folder, x=np.full((20, 1, 8, 8), np.nan, np.float32), y=np.arange(20) % 2)


@case(2, "label")
def data_with_negative_labels(folder: Path, artifact: Path) -> list[str]:
    return npz(folder, x=np.zeros((20, 8, 8, 1), np.uint8), y=np.arange(20) % 2 - 1)


@case(2, "mine.npz")
def data_that_is_a_bomb(folder: Path, artifact: Path) -> list[str]:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000, 3), }"
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    with zipfile.ZipFile(folder / "mine.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(2**20))
        buffer = io.BytesIO()
        np.save(buffer, np.arange(20) % 2)
        archive.writestr("y.npy", buffer.getvalue())
    (folder / "my.toml").write_text('[data]\nname = "mine"\nformat = "npz"\n')
    return ["build", str(folder / "my.toml"), "--data", str(folder)]


@case(2, "png")
def data_with_a_broken_image(folder: Path, artifact: Path) -> list[str]:
    for name in ("a", "b"):
        (folder / "mine" / name).mkdir(parents=True)
        for i in range(4):
            (folder / "mine" / name / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (folder / "my.toml").write_text('[data]\nname = "mine"\nformat = "folder"\n')
    return ["build", str(folder / "my.toml"), "--data", str(folder)]
