"""SVHN, CIFAR-100 and TinyImageNet by name: tiny files in the exact layout, and what is not of it."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from vsparse.data import load
from vsparse.data.mat import read_variables
from vsparse.data.names import CIFAR100_NAMES
from vsparse.errors import InputError
from vsparse.recipe import Data

RANDOM = np.random.default_rng(5)


# SVHN.


def svhn(root: Path, count: int = 60, compressed: bool = True, **change: NDArray) -> tuple[NDArray, NDArray]:
    """Writes both files as MATLAB would; returns the images of the test file [N, 3, 32, 32] and its digits."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        x = RANDOM.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        y = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(root / f"{name}_32x32.mat", {"X": x, "y": y, **change}, do_compression=compressed)
    return x.transpose(3, 2, 0, 1), y[:, 0] % 10


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn_round_trip(tmp_path: Path, compressed: bool) -> None:
    x, y = svhn(tmp_path / "svhn", compressed=compressed)
    splits = load(Data(name="svhn"), tmp_path, 0)
    assert np.array_equal(splits.test.pixels, x)
    assert np.array_equal(splits.test.labels, y)
    assert splits.test.classes == tuple("0123456789")
    assert len(splits.train) + len(splits.validation) == 60


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8", "u8"])
@pytest.mark.parametrize("compressed", [True, False])
def test_variables_of_any_number_type(tmp_path: Path, order: str, dtype: str, compressed: bool) -> None:
    value = RANDOM.integers(0, 100, (3, 1, 4)).astype(order + dtype)
    path = tmp_path / "a.mat"
    if order == "<":
        savemat(
            path,
            {"skipped": np.zeros((2, 2)), "label": np.ones((2, 1)), "a": value, "b": np.zeros((1, 1), "u1")},
            do_compression=compressed,
        )
    else:
        path.write_bytes(big_endian(value, compressed))
    found = read_variables(path, ("a",))["a"]
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found, value)


CASTS = {
    "NaN as uint8": (9, 9, np.array([[1.0, np.nan]]), "holds nan"),
    "fraction as uint8": (9, 9, np.array([[1.0, 2.5]]), "holds 2.5"),
    "beyond uint8": (9, 9, np.array([[1.0, 256.0]]), "holds 256.0"),
    "below uint8": (1, 9, np.array([[1, -1]], "i1"), "holds -1"),
    "beyond int8": (2, 8, np.array([[1, 128]], "u1"), "holds 128"),
    "beyond int64": (9, 14, np.array([[1.0, 2.0**63]]), "holds 9.2"),
    "infinity as int64": (9, 14, np.array([[1.0, -np.inf]]), "holds -inf"),
    "beyond single": (9, 7, np.array([[1.0, 1e300]]), r"holds 1e\+300"),
    "rounded to single": (9, 7, np.array([[1.0, 0.1]]), "holds 0.1"),
    "rounded to double": (12, 6, np.array([[1, 2**53 + 1]], "i8"), "holds 9007199254740993"),
    "rounded up beyond int64": (12, 6, np.array([[1, 2**63 - 1]], "i8"), "holds 9223372036854775807"),
}


@pytest.mark.parametrize(("kind", "number", "value", "told"), CASTS.values(), ids=CASTS.keys())
def test_a_number_that_its_class_does_not_have_is_refused(tmp_path: Path, kind: int, number: int, value: NDArray, told: str) -> None:
    """A cast would make another number of it without a word."""
    path = tmp_path / "a.mat"
    path.write_bytes(stored(kind, number, value))
    with pytest.raises(InputError, match=f"a.mat: a is of class .*{told}"):
        read_variables(path, ("a",))


def test_numbers_that_their_class_has_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    for kind, number, value in (
        (9, 9, np.array([[0.0, 255.0]])),
        (9, 14, np.array([[-(2.0**63), 5.0]])),
        (9, 7, np.array([[np.nan, np.inf]])),
        (12, 6, np.array([[2**60, -(2**63)]])),
        (2, 6, np.array([[0, 255]], "u1")),
    ):
        path.write_bytes(stored(kind, number, value))
        found = read_variables(path, ("a",))["a"]
        assert np.array_equal(found, value, equal_nan=value.dtype.kind == "f"), (kind, number)


def stored(kind: int, number: int, value: NDArray) -> bytes:
    """A MAT-file of one variable `a` [1, n] of class `number`, whose numbers are stored as elements of type `kind`."""
    data = value.tobytes()
    inner = struct.pack("<IIII", 6, 8, number, 0) + struct.pack("<IIii", 5, 8, *value.shape) + struct.pack("<HHcxxx", 1, 1, b"a")
    inner += struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)
    return header(struct.pack("<II", 14, len(inner)) + inner)


def big_endian(value: NDArray, compressed: bool) -> bytes:
    """A MAT-file of one variable `a`, written from the format's description."""
    kinds = {"u1": (2, 9), "i2": (3, 10), "i4": (5, 12), "f4": (7, 7), "f8": (9, 6), "u8": (13, 15)}
    kind, number = kinds[value.dtype.str[1:]]
    data = value.tobytes(order="F")
    matrix = struct.pack(">IIII", 6, 8, number, 0) + struct.pack(">II3iI", 5, 12, *value.shape, 0) + struct.pack(">HHcxxx", 1, 1, b"a")
    matrix += struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
    whole = struct.pack(">II", 14, len(matrix)) + matrix
    if compressed:
        packed = zlib.compress(whole)
        whole = struct.pack(">II", 15, len(packed)) + packed
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + whole


def header(element: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + element


def matrix(shape: tuple[int, ...], data: bytes, number: int = 9, name: bytes = b"X") -> bytes:
    axes = struct.pack("<II", 5, 4 * len(shape)) + struct.pack(f"<{len(shape)}i", *shape) + bytes(-4 * len(shape) % 8)
    inner = (
        struct.pack("<IIII", 6, 8, number, 0) + axes + struct.pack("<HH4s", 1, len(name), name) + struct.pack("<II", 2, len(data)) + data
    )
    return struct.pack("<II", 14, len(inner)) + inner


def bomb() -> bytes:
    """A small file with a compressed variable that claims 300 MB, of which 20 MB are there."""
    claimed = 32 * 32 * 3 * 100_000
    inner = matrix((32, 32, 3, 100_000), b"")[8:-8] + struct.pack("<II", 2, claimed)
    packer = zlib.compressobj(9)
    random = RANDOM.bytes(claimed // 1000)  # so that no ratio gives it away
    whole = struct.pack("<II", 14, len(inner) + claimed) + inner + random
    packed = packer.compress(whole) + packer.compress(bytes(20 * 2**20)) + packer.flush()
    return header(struct.pack("<II", 15, len(packed)) + packed)


def replaced(root: Path, content: bytes) -> None:
    svhn(root)
    (root / "train_32x32.mat").write_bytes(content)


BAD_SVHN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no test file": (lambda root: (svhn(root), (root / "test_32x32.mat").unlink()), "test_32x32.mat is not there; copy it beside"),
    "empty": (lambda root: replaced(root, b""), "is truncated: the header of a MAT-file needs 128 bytes"),
    "text": (lambda root: replaced(root, b"x" * 200), "is no MAT-file of level 5"),
    "HDF5, level 7.3": (lambda root: replaced(root, b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"), "is no MAT-file of level 5 .* -v7"),
    "no variables": (lambda root: replaced(root, header(b"")), "has no variable X"),
    "truncated": (lambda root: replaced(root, header(matrix((2, 2), b"abcd"))[:-2]), "is truncated: a variable needs"),
    "fewer numbers": (lambda root: replaced(root, header(matrix((2, 2), b"abc"))), "X has 3 numbers for its shape"),
    "more than it has": (lambda root: replaced(root, header(matrix((2, 2**30), b"abcd"))), "X has 4 numbers"),
    "absurd shape": (lambda root: replaced(root, header(matrix((2**30, 2**30), b"abcd"))), "which is no array of at most 4 GiB"),
    "negative shape": (lambda root: replaced(root, header(matrix((-2, -2), b"abcd"))), "which is no array of at most 4 GiB"),
    "structure": (lambda root: replaced(root, header(matrix((1, 1), b"", number=2))), "X is a structure"),
    "cell": (lambda root: svhn(root, X=np.array([["b", "a"]], dtype=object)), "X is a cell array"),
    "complex": (lambda root: svhn(root, X=np.ones((2, 2)) * 1j), "X is complex"),
    "float pixels": (lambda root: svhn(root, X=np.ones((32, 32, 3, 60))), r"X is float64 of shape \[32, 32, 3, 60\]"),
    "another shape": (lambda root: svhn(root, X=np.ones((60, 3, 32, 32), np.uint8)), r"SVHN's is uint8 \[32, 32, 3, N\]"),
    "too few labels": (lambda root: svhn(root, y=np.ones((59, 1))), "has 60 images and 59 labels"),
    "label 0": (lambda root: svhn(root, y=np.zeros((60, 1))), "label 0.0 is out of range, SVHN has 1 to 10"),
    "label 1.5": (lambda root: svhn(root, y=np.full((60, 1), 1.5)), "label 1.5 is out of range"),
    "label NaN": (lambda root: svhn(root, y=np.full((60, 1), np.nan)), "label nan is out of range"),
}


@pytest.mark.parametrize(("make", "sentence"), BAD_SVHN.values(), ids=BAD_SVHN.keys())
def test_what_is_no_svhn_is_told_in_a_sentence(tmp_path: Path, make: Callable[[Path], object], sentence: str) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=sentence) as told:
        load(Data(name="svhn"), tmp_path, 0)
    assert "\n" not in str(told.value)


def test_what_unpacks_to_less_than_it_claims(tmp_path: Path) -> None:
    replaced(tmp_path, bomb())
    with pytest.raises(InputError, match="is truncated: X needs 307200000 bytes"):
        load(Data(name="svhn"), tmp_path, 0)
    claim = struct.pack("<II", 14, 2**31) + bytes(64)
    packed = zlib.compress(claim)
    replaced(tmp_path, header(struct.pack("<II", 15, len(packed)) + packed))
    with pytest.raises(InputError, match="a compressed variable that claims type 14 and 2147483648 bytes"):
        load(Data(name="svhn"), tmp_path, 0)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_file_never_escapes(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    value = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    savemat(path, {"y": np.ones((3, 1)), "X": value}, do_compression=compressed)
    content = path.read_bytes()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(
        st.integers(0, len(content)),
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    )
    def attack(keep: int, flips: list[tuple[int, int]]) -> None:
        changed = bytearray(content)
        for where, byte in flips:
            changed[where] = byte
        path.write_bytes(bytes(changed[: keep if keep > len(content) // 2 else len(content)]))
        tracemalloc.start()
        try:
            found = read_variables(path, ("X",))["X"]
            assert found.size <= 4 * len(content)
        except InputError as error:
            sentence = str(error)
        else:
            sentence = ""
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert "\n" not in sentence
        assert peak < 8 * 2**20

    attack()


# CIFAR-100.


def cifar100(root: Path, version: str, packed: bool = False, each: int = 300) -> tuple[NDArray, NDArray]:
    """Writes both files; returns pixels [N, 3072] and fine labels of the test file."""
    written = {}
    for name in ("train", "test"):
        pixels = RANDOM.integers(0, 256, (each, 3072), dtype=np.uint8)
        fine = np.arange(each) % 100
        if version == "binary":
            labels = np.stack([fine // 5, fine], axis=1).astype(np.uint8)
            written[f"{name}.bin"] = np.concatenate([labels, pixels], axis=1).tobytes()
        else:
            content = {b"filenames": [b"x.png"] * each, b"batch_label": b"a", b"fine_labels": fine.tolist()}
            written[name] = pickle.dumps({**content, b"coarse_labels": (fine // 5).tolist(), b"data": pixels}, protocol=2)
    if version == "python":
        written["meta"] = pickle.dumps({b"fine_label_names": [name.encode() for name in CIFAR100_NAMES]}, protocol=2)
    folder = f"cifar-100-{version}"
    if packed:
        with tarfile.open(root / f"{folder}.tar.gz", "w:gz", format=tarfile.USTAR_FORMAT) as file:
            for name, data in written.items():
                info = tarfile.TarInfo(f"{folder}/{name}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    else:
        (root / folder).mkdir(parents=True)
        for name, data in written.items():
            (root / folder / name).write_bytes(data)
    return pixels, fine


@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar100_round_trip(tmp_path: Path, version: str, packed: bool) -> None:
    pixels, fine = cifar100(tmp_path, version, packed)
    splits = load(Data(name="cifar100"), tmp_path, 0)
    assert np.array_equal(splits.test.pixels.reshape(-1, 3072), pixels)
    assert np.array_equal(splits.test.labels, fine)
    assert splits.test.classes == CIFAR100_NAMES
    assert (splits.test.classes[0], splits.test.classes[99], len(set(CIFAR100_NAMES))) == ("apple", "worm", 100)


def test_cifar100_that_is_damaged_or_another_set(tmp_path: Path) -> None:
    cifar100(tmp_path, "binary")
    path = tmp_path / "cifar-100-binary" / "test.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="no number of records of 3074 bytes"):
        load(Data(name="cifar100"), tmp_path, 0)
    path.write_bytes(bytes([0, 100]) + bytes(3072))
    with pytest.raises(InputError, match="label 100 is out of range"):
        load(Data(name="cifar100"), tmp_path, 0)
    cifar100(tmp_path / "python", "python")
    inside = tmp_path / "python" / "cifar-100-python"
    with pytest.raises(InputError, match="has 100 classes"):
        load(Data(name="cifar10", format="cifar100", path="python"), tmp_path, 0)
    (inside / "test").write_bytes(b"\x80\x02cos\nsystem\nU\x04true\x85R.")
    with pytest.raises(InputError, match=r"the name 'os\.system'"):
        load(Data(name="cifar100"), inside, 0)


# TinyImageNet.


def tiny(root: Path, classes: int = 3, each: int = 12) -> Path:
    folder = root / "tiny-imagenet-200"
    lines = []
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "test" / "images").mkdir(parents=True)
    for number in range(classes):
        name = f"n0000000{classes - number}"
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        (images.parent / f"{name}_boxes.txt").write_text("")
        for index in range(each):
            Image.fromarray(np.full((64, 64, 3), 10 * number + index, np.uint8)).save(images / f"{name}_{index}.JPEG")
        Image.fromarray(np.full((64, 64), 100 + number, np.uint8)).save(folder / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{name}\t0\t32\t44\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_tinyimagenet_is_read_as_it_is_unpacked(tmp_path: Path) -> None:
    folder = tiny(tmp_path)
    for where in (tmp_path, folder):
        splits = load(Data(name="tinyimagenet"), where, 0)
        assert splits.test.classes == ("n00000001", "n00000002", "n00000003")
        assert splits.test.labels.tolist() == [2, 1, 0]
        assert splits.test.pixels.shape == (3, 3, 64, 64)
        assert splits.test.pixels[:, :, 0, 0].tolist() == [[100] * 3, [101] * 3, [102] * 3]
        assert len(splits.train) + len(splits.validation) == 36
        assert any("3 of 39 images are grey" in note for note in splits.notes)


def edited(folder: Path, text: str) -> None:
    (folder / "val" / "val_annotations.txt").write_text(text)


def small_image(folder: Path) -> None:
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(folder / "val" / "images" / "val_0.JPEG")


BAD_TINY: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown class": (lambda f: edited(f, "val_0.JPEG\tn9\t0\t0\t1\t1\n"), "line 1: 'n9' is no class of train/"),
    "a way out of the folder": (lambda f: edited(f, "../../x.JPEG\tn00000001\t0\n"), "is no name of one image"),
    "an image twice": (lambda f: edited(f, "val_0.JPEG\tn00000001\n" * 2), "line 2: 'val_0.JPEG' is no name of one image, or comes twice"),
    "no line": (lambda f: edited(f, ""), "val names 0 images"),
    "bytes": (lambda f: (f / "val" / "val_annotations.txt").write_bytes(b"\xff\xfe"), "cannot be read"),
    "image missing": (lambda f: (f / "val" / "images" / "val_1.JPEG").unlink(), "val_1.JPEG is not there"),
    "image of another size": (small_image, "has 64 × 32 pixels, and TinyImageNet's images 64 × 64"),
    "image that is none": (lambda f: (f / "val" / "images" / "val_1.JPEG").write_bytes(b"x"), "is no PNG, JPEG"),
    "class without images": (lambda f: (f / "train" / "n00000004").mkdir(), "n00000004/images is not there"),
}


@pytest.mark.parametrize(("damage", "sentence"), BAD_TINY.values(), ids=BAD_TINY.keys())
def test_what_is_no_tinyimagenet_is_told_in_a_sentence(tmp_path: Path, damage: Callable[[Path], object], sentence: str) -> None:
    damage(tiny(tmp_path))
    with pytest.raises(InputError, match=sentence):
        load(Data(name="tinyimagenet"), tmp_path, 0)
