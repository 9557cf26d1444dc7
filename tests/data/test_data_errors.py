"""Whatever is wrong with data is one sentence that names the file and the reason, and costs no memory."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vsparse.data import load
from vsparse.data.plain_pickle import read_plain_pickle
from vsparse.errors import InputError
from vsparse.recipe import Data

X = np.arange(40 * 12, dtype=np.uint8).reshape(40, 3, 4)
Y = np.arange(40) % 4
OWN = Data(name="own")


def idx(array: np.ndarray, magic: int | None = None, shape: tuple[int, ...] | None = None) -> bytes:
    shape = shape or array.shape
    return (
        struct.pack(">I", 0x800 + len(shape) if magic is None else magic)
        + struct.pack(f">{len(shape)}I", *shape)
        + array.astype(np.uint8).tobytes()
    )


def write_idx(root: Path, images: bytes | None = None, labels: bytes | None = None) -> None:
    (root / "train-images-idx3-ubyte").write_bytes(idx(X) if images is None else images)
    (root / "train-labels-idx1-ubyte").write_bytes(idx(Y) if labels is None else labels)


def write_npz(root: Path, **arrays: Any) -> None:
    np.savez(root / "train.npz", **{"x": X, "y": Y, **arrays})


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, "PNG")
    return stream.getvalue()


def write_folder(root: Path, extra: dict[str, bytes] | None = None, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    files = {f"{name}/{number}.png": png(X[number]) for name in classes for number in range(5)}
    for name, data in {**files, **(extra or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def write_zip(root: Path, members: dict[str, bytes], name: str = "train.zip") -> None:
    with zipfile.ZipFile(root / name, "w") as file:
        for member, data in members.items():
            file.writestr(member, data)


PETS = {f"{name}/{number}.png": png(X[number]) for name in ("cat", "dog") for number in range(5)}
BOMB = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (60000, 100, 100), }".ljust(117) + b"\n"


def forge(root: Path, header: bytes, size: int) -> None:
    """An x.npy whose zip entry claims `size` bytes, deflated to a few hundred."""
    write_npz(root)
    with zipfile.ZipFile(root / "train.npz") as file:
        y = file.read("y.npy")
    with zipfile.ZipFile(root / "train.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("y.npy", y)
        file.writestr("x.npy", header + bytes(1000))
    data = (root / "train.npz").read_bytes()
    old = struct.pack("<I", len(header) + 1000)
    assert data.count(old) == 2
    (root / "train.npz").write_bytes(data.replace(old, struct.pack("<I", size)))


def raw_npz(root: Path, header: bytes) -> None:
    write_npz(root)
    with zipfile.ZipFile(root / "train.npz") as file:
        y = file.read("y.npy")
    write_zip(root, {"x.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header, "y.npy": y}, "train.npz")


def with_test_npz(root: Path, **arrays: Any) -> None:
    write_npz(root, track=np.arange(40))
    np.savez(root / "test.npz", **{"x": X, "y": Y, **arrays})


def cifar(root: Path, damaged: bytes | None, name: str = "data_batch_3.bin") -> None:
    record = b"".join(bytes([label]) + bytes(3072) for label in range(10))
    for batch in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        (root / batch).write_bytes(record)
    if damaged is None:
        (root / name).unlink()
    else:
        (root / name).write_bytes(damaged)


def nan_pixels() -> np.ndarray:
    x = np.zeros((40, 3, 4), np.float32)
    x[3, 1, 1] = np.nan
    return x


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda root: None, "looked for train-images-idx3-ubyte.*--data DIR"),
    "wrong magic": (lambda root: write_idx(root, idx(X, 0x0D03)), "starts with 3331.*starts with 2051"),
    "labels as images": (lambda root: write_idx(root, idx(Y)), "starts with 2049"),
    "truncated images": (lambda root: write_idx(root, idx(X)[:-1]), "truncated"),
    "truncated header": (lambda root: write_idx(root, idx(X)[:9]), "truncated"),
    "empty file": (lambda root: write_idx(root, b""), "truncated"),
    "truncated gzip": (lambda root: write_idx(root, gzip.compress(idx(X))[:-9]), "damaged"),
    "damaged gzip": (lambda root: write_idx(root, gzip.compress(idx(X))[:-6] + bytes(6)), "CRC"),
    "trailing bytes": (lambda root: write_idx(root, idx(X) + b"\0"), "bytes after its last sample"),
    "trailing label": (lambda root: write_idx(root, None, idx(Y) + b"\0"), "bytes after its last sample"),
    "counts differ": (lambda root: write_idx(root, None, idx(Y[:-1])), "40 images and 39 labels"),
    "no samples": (lambda root: write_idx(root, idx(X[:0]), idx(Y[:0])), "holds no samples"),
    "absurd header": (lambda root: write_idx(root, idx(X, shape=(2**31, 2**15, 2**15))), "more than the 4 GiB"),
    "large header": (lambda root: write_idx(root, idx(X, shape=(60000, 200, 300))), "truncated"),
    "large header, gzip": (lambda root: write_idx(root, gzip.compress(idx(X, shape=(60000, 200, 300)))), "truncated"),
    "one class": (lambda root: write_idx(root, None, idx(Y * 0)), "at least 2"),
    "a class without samples": (lambda root: write_idx(root, None, idx(Y * 2)), 'class "1" has no training samples'),
    "images without labels": (lambda root: (root / "train-images-idx3-ubyte").write_bytes(idx(X)), "no labels beside it"),
    "npz without y": (lambda root: np.savez(root / "train.npz", x=X), 'no array "y"'),
    "npz of objects": (lambda root: write_npz(root, y=np.array([None] * 40)), r"type \|O"),
    "npz of records": (lambda root: write_npz(root, y=np.zeros(40, "i4,i4")), "header that cannot be read"),
    "npz of text": (lambda root: write_npz(root, x=np.array(["a"] * 40)), "type <U1"),
    "float labels": (lambda root: write_npz(root, y=Y + 0.5), "must be integers"),
    "negative label": (lambda root: write_npz(root, y=Y - 1), "must not be negative"),
    "huge label": (lambda root: write_npz(root, y=Y + 2**60), "out of range"),
    "label beyond int64": (lambda root: write_npz(root, y=Y.astype(np.uint64) + np.uint64(2**63)), "beyond 64-bit"),
    "labels of rank 2": (lambda root: write_npz(root, y=Y[:, None]), "one number a sample"),
    "label of rank 0": (lambda root: write_npz(root, y=np.int64(3)), "one number a sample"),
    "NaN pixels": (lambda root: write_npz(root, x=nan_pixels()), "nan"),
    "infinite pixels": (lambda root: write_npz(root, x=np.full((40, 3, 4), np.inf)), "from inf to inf"),
    "pixels above 1": (lambda root: write_npz(root, x=X.astype(np.float32)), "between 0 and 1"),
    "pixels just above 1": (lambda root: write_npz(root, x=np.full((40, 3, 4), 1 + 2.0**-50)), "between 0 and 1"),
    "pixels below 0": (lambda root: write_npz(root, x=np.full((40, 3, 4), -0.1)), "between 0 and 1"),
    "pixels of a wrong type": (lambda root: write_npz(root, x=X.astype(np.int32)), "type int32"),
    "rank 2": (lambda root: write_npz(root, x=X[:, 0]), "images are"),
    "rank 5": (lambda root: write_npz(root, x=X[:, :, :, None, None]), "images are"),
    "channels unclear": (lambda root: write_npz(root, x=np.zeros((40, 3, 5, 1), np.uint8)), "cannot be told"),
    "empty npz arrays": (lambda root: write_npz(root, x=X[:0], y=Y[:0]), "holds no samples"),
    "npz that is no zip": (lambda root: (root / "train.npz").write_bytes(b"PK\x03\x04 not really"), "damaged"),
    "npy inside is no npy": (lambda root: write_zip(root, {"x.npy": b"hello world", "y.npy": b""}, "train.npz"), "truncated"),
    "npz bomb": (lambda root: forge(root, BOMB, 128 + 600_000_000), "more than the zip can hold"),
    "npz header of another size": (lambda root: forge(root, BOMB, 1200), "does not have the size"),
    "npz header with code": (lambda root: raw_npz(root, b"{'descr': __import__('os').system('false')}"), "cannot be read"),
    "npz header of numbers": (lambda root: raw_npz(root, b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2), }"), "type .u1"),
    "npz header too long": (lambda root: raw_npz(root, b"{" * 5000), "header of 5000 bytes"),
    "npz absurd shape": (
        lambda root: raw_npz(root, b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 999999), }"),
        "more than the 4 GiB",
    ),
    "track count": (lambda root: write_npz(root, track=np.arange(39)), "39 track numbers"),
    "float tracks": (lambda root: write_npz(root, track=Y + 0.5), "must be integers"),
    "track in train and test": (lambda root: with_test_npz(root, track=np.arange(39, 79)), "track 39 is in both"),
    "one track a class": (lambda root: write_npz(root, track=Y), "none can be held out"),
    "test of another shape": (lambda root: with_test_npz(root, x=X[:, :2]), "images of shape"),
    "test of another type": (lambda root: with_test_npz(root, x=X / 255.0), "differ in type"),
    "test label beyond the training's": (lambda root: with_test_npz(root, y=Y + 1), "label 4 is out of range"),
    "class names that repeat": (lambda root: write_npz(root, classes=np.array(["a"] * 4)), "two classes of one name"),
    "class names too few": (lambda root: write_npz(root, classes=np.array(["a", "b"])), "out of range"),
    "class names of numbers": (lambda root: write_npz(root, classes=np.arange(4)), "list of strings"),
    "class name with a control character": (lambda root: write_npz(root, classes=np.array(["a", "b", "c", "\x1b[2J"])), "not printable"),
    "two formats": (lambda root: (write_npz(root), write_idx(root)), "more than one format"),
    "one class folder": (lambda root: write_folder(root, classes=("cat",)), "at least 2"),
    "empty class folder": (lambda root: (write_folder(root), (root / "bird").mkdir()), "bird has no images"),
    "image outside a class": (lambda root: write_folder(root, {"stray.png": png(X[0])}), "in no class"),
    "mixed sizes": (lambda root: write_folder(root, {"dog/9.png": png(X[0, :2])}), "9.png is 4 × 2 L, and .* is 4 × 3 L"),
    "mixed modes": (lambda root: write_folder(root, {"dog/9.png": png(X[0], "RGB")}), "9.png is 4 × 3 RGB"),
    "transparency": (lambda root: write_folder(root, {"cat/0.png": png(X[0], "RGBA")}), "mode RGBA"),
    "palette": (lambda root: write_folder(root, {"cat/0.png": png(X[0], "P")}), "mode P"),
    "no image inside": (
        lambda root: write_folder(root, {"dog/9.png": b"hello"}),
        "9.png is no PNG, JPEG, BMP, PPM or PGM image by its first bytes",
    ),
    "truncated image": (lambda root: write_folder(root, {"dog/9.png": png(X[0])[:-30]}), "9.png is no readable"),
    "unread kind": (lambda root: write_folder(root, {"dog/9.gif": b"GIF"}), "9.gif is of a kind that is not read"),
    "folder inside a class": (lambda root: write_folder(root, {"dog/more/9.png": png(X[0])}), "folder inside a class"),
    "test with another class": (
        lambda root: (write_folder(root / "train"), write_folder(root / "test", classes=("cat", "eel"))),
        '"eel", which the training images do not have',
    ),
    "a folder named as an image": (lambda root: (write_folder(root), (root / "dog/9.png").mkdir()), "folder inside a class"),
    "zip that climbs": (lambda root: write_zip(root, {**PETS, "../evil/1.png": png(X[0])}), "names must be class/image"),
    "absolute zip member": (lambda root: write_zip(root, {**PETS, "/etc/1.png": png(X[0])}), "names must be class/image"),
    "zip of depth 1": (lambda root: write_zip(root, {**PETS, "1.png": png(X[0])}), "does not lie in one folder a class"),
    "zip without images": (lambda root: write_zip(root, {"readme.txt": b""}), "holds no images"),
    "zip truncated": (lambda root: (write_zip(root, PETS), os.truncate(root / "train.zip", 700)), "damaged"),
    "cifar batch missing": (lambda root: cifar(root, None), "data_batch_3.bin is not there"),
    "cifar batch truncated": (lambda root: cifar(root, bytes(3072)), "no number of records"),
    "cifar batch empty": (lambda root: cifar(root, b""), "no number of records"),
    "cifar label": (lambda root: cifar(root, bytes([10]) + bytes(3072)), "label 10 is out of range"),
    "cifar archive is no tar": (
        lambda root: (root / "cifar-10-python.tar.gz").write_bytes(gzip.compress(b"x" * 600)),
        "tar|size cannot be read",
    ),
    "cifar archive empty": (lambda root: (root / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(bytes(1024))), "no data_batch_1.bin"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_one_sentence_for(tmp_path: Path, case: str) -> None:
    write, reason = CASES[case]
    write(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=reason) as caught:
            load(OWN, tmp_path, 0)
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (Data(name="own", mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0)), "have 3 values, and .* has 1 channels"),
        (Data(name="own", path="nowhere"), "looked for"),
        (Data(name="own", path="train.npz", format="idx"), "is a file, and the IDX format is a folder"),
        (Data(name="own", format="cifar"), "looked for data_batch_1.bin"),
        (Data(name="own", path="a\0b"), "NUL"),
        (Data(name="x" * 300), "no data for|too long"),
        (Data(name="own", path="train.npz", format="folder"), "member|holds no images"),
        (Data(name="mnist"), "images of shape .* give your data another data.name"),
    ],
)
def test_one_sentence_for_a_recipe(tmp_path: Path, spec: Data, reason: str) -> None:
    write_npz(tmp_path)
    with pytest.raises(InputError, match=reason):
        load(spec, tmp_path, 0)


def test_data_under_a_name_that_means_something_else(tmp_path: Path) -> None:
    write_npz(tmp_path, y=np.arange(40) % 10)
    with pytest.raises(InputError, match=r"shape \[1, 3, 4\], and cifar10 has \[3, 32, 32\]; give your data another data.name"):
        load(Data(name="cifar10"), tmp_path, 0)
    write_folder(tmp_path / "images", classes=tuple("abcdefghij"))
    with pytest.raises(InputError, match=r"has 10 classes .* give your data another data.name"):
        load(Data(name="mnist", path="images"), tmp_path, 0)


def test_a_file_as_root(tmp_path: Path) -> None:
    write_npz(tmp_path)
    assert load(OWN, tmp_path / "train.npz", 0).train.pixels.shape[1:] == (1, 3, 4)


def test_absent_root_and_bad_seed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there; give another with --data DIR"):
        load(OWN, tmp_path / "gone", 0)
    write_npz(tmp_path)
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match="seed"):
            load(OWN, tmp_path, seed)


class Evil:
    def __init__(self, call: Any, arguments: tuple[Any, ...]) -> None:
        self.parts = (call, arguments)

    def __reduce__(self) -> Any:
        return self.parts


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("call", ["system", "eval", "getattr"])
def test_a_pickle_with_code_is_refused(tmp_path: Path, protocol: int, call: str) -> None:
    witness = tmp_path / "executed"
    evil = {
        "system": Evil(os.system, (f"touch {witness}",)),
        "eval": Evil(eval, (f"open({str(witness)!r}, 'w')",)),
        "getattr": Evil(getattr, ("text", "upper")),
    }[call]
    with pytest.raises(InputError, match="is not read: use the binary version"):
        read_plain_pickle(pickle.dumps({"data": evil, "labels": [1]}, protocol=protocol), "batch")
    assert not witness.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00a\x85R.",
        b"\x80\x02}cnumpy\ndtype\n\x85R.",
        b"\x80\x02}U\x01aN\x85R.",
        b"\x80\x02.",
        b"\x80\x02].",
        b"\x80\x02}}.",
        b"\x80\x02}q\x00h\x05s.",
        b"\x80\x02}]Ns.",
        b"\x80\x02}(U\x01au.",
        b"\x80\x02}.trailing",
        b"\x80\x02}U\x01dcnumpy\nndarray\ns.",
        b"\x80\x02}(((((((",
        b"q\x00",
        b"R",
        b"",
    ],
)
def test_broken_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        read_plain_pickle(data, "batch")


def test_a_pickle_cannot_multiply_memory() -> None:
    text = b"\x80\x02}q\x00U\x01aX" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x01"
    call = b"c_codecs\nencode\nh\x01U\x06latin1\x86R"
    data = text + call * 1000 + b"s."
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="more text than the file has bytes"):
            read_plain_pickle(data, "batch")
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
