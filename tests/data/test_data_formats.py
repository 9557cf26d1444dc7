"""Each format round-trips: what is written is what is loaded, in the source's order."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vsparse.data import Splits, load
from vsparse.data.names import CIFAR10_NAMES
from vsparse.errors import InputError
from vsparse.recipe import Data

RANDOM = np.random.RandomState(0)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, part: str, images: np.ndarray, labels: np.ndarray, *, zipped: bool = True, joint: str = "-") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array, rank in (("images", images, 3), ("labels", labels, 1)):
        data = idx_bytes(array)
        path = folder / f"{part}-{kind}{joint}idx{rank}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def balanced(count: int, classes: int) -> np.ndarray:
    return np.arange(count) % classes


def whole_train(splits: Splits) -> int:
    return len(splits.train) + len(splits.validation)


def test_digits_are_whole_and_stratified() -> None:
    splits = load(Data(), None, 0)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 1797
    assert splits.train.pixels.shape[1:] == (1, 8, 8)
    assert splits.train.pixels.dtype == np.uint8
    assert splits.train.scale == 16.0
    assert splits.train.inputs().dtype == np.float32
    assert splits.train.inputs().max() == 1.0
    assert 0.19 < len(splits.test) / 1797 < 0.21
    for part in (splits.validation, splits.test):
        share = np.bincount(part.labels, minlength=10) / len(part)
        assert abs(share - 0.1).max() < 0.02


def test_inputs_are_one_float32_division() -> None:
    data = load(Data(), None, 0).test
    for index in (slice(0, 3), np.array([5, 1])):
        values = data.inputs(index)
        expected = data.pixels[index].astype(np.float32) / np.float32(16)
        assert np.array_equal(values, expected)
    assert values.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("where", [".", "signs", "deep/er"])
def test_idx_round_trip(tmp_path: Path, zipped: bool, joint: str, where: str) -> None:
    images = RANDOM.randint(0, 256, (40, 5, 6))
    labels = balanced(40, 4)
    write_idx(tmp_path / where, "train", images, labels, zipped=zipped, joint=joint)
    write_idx(tmp_path / where, "t10k", images[::-1], labels[::-1], zipped=zipped, joint=joint)
    spec = Data(name="signs", path=where if "/" in where else "")
    splits = load(spec, tmp_path, 0)
    assert np.array_equal(splits.test.pixels[:, 0], images[::-1])
    assert np.array_equal(splits.test.labels, labels[::-1])
    assert splits.test.classes == ("0", "1", "2", "3")
    assert whole_train(splits) == 40
    assert len(splits.validation) == 4


def test_order_of_training_samples_is_the_sources(tmp_path: Path) -> None:
    images = np.repeat(np.arange(100), 4).reshape(100, 2, 2)
    write_idx(tmp_path, "train", images, balanced(100, 5))
    splits = load(Data(name="own"), tmp_path, 3)
    for part in (splits.train, splits.validation, splits.test):
        assert np.all(np.diff(part.pixels[:, 0, 0, 0].astype(int)) > 0)
    assert len(splits.test) == 20


def test_environment_variable_is_the_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, "train", RANDOM.randint(0, 256, (40, 5, 6)), balanced(40, 4))
    monkeypatch.setenv("VSPARSE_DATA", str(tmp_path))
    assert whole_train(load(Data(name="own"), None, 0)) == 32
    monkeypatch.delenv("VSPARSE_DATA")
    with pytest.raises(InputError, match="--data DIR"):
        load(Data(name="own"), None, 0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((30, 4, 5), (1, 4, 5)),
        ((30, 4, 5, 3), (3, 4, 5)),
        ((30, 3, 4, 5), (3, 4, 5)),
        ((30, 8, 8, 2), (2, 8, 8)),
        ((30, 2, 8, 3), (3, 2, 8)),
    ],
)
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
def test_npz_round_trip(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...], kind: str) -> None:
    x = RANDOM.randint(0, 256, shape).astype(np.uint8) if kind == "uint8" else RANDOM.random_sample(shape).astype(kind)
    y = balanced(30, 3).astype(np.uint8)
    np.savez_compressed(tmp_path / "train.npz", x=x, y=y)
    np.savez(tmp_path / "test.npz", x=np.asfortranarray(x), y=y.astype(">i4"))
    splits = load(Data(name="own"), tmp_path, 0)
    assert splits.test.pixels.shape == (30, *expected)
    assert splits.test.pixels.dtype == (np.uint8 if kind == "uint8" else np.float32)
    assert splits.test.pixels.dtype.isnative
    channels_last = x.ndim == 4 and expected[0] == shape[-1] and expected[0] != shape[1]
    first = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2) if channels_last else x
    assert np.array_equal(splits.test.pixels, first.astype(splits.test.pixels.dtype))
    assert np.array_equal(splits.test.labels, y)
    assert splits.test.labels.dtype == np.int64


def test_npz_single_file_with_class_names_and_tracks(tmp_path: Path) -> None:
    y = balanced(120, 2)
    track = np.arange(120) // 10 * 2 + y
    np.savez(
        tmp_path / "signs.npz",
        x=RANDOM.randint(0, 256, (120, 4, 4)).astype(np.uint8),
        y=y,
        track=track,
        classes=np.array(["stop", "yield"]),
    )
    for spec in (Data(name="signs"), Data(name="own", path="signs.npz"), Data(name="signs", format="npz")):
        splits = load(spec, tmp_path, 0)
        assert splits.train.classes == ("stop", "yield")
        sides = [set(part.groups.tolist()) for part in (splits.train, splits.validation, splits.test) if part.groups is not None]
        assert len(sides) == 3
        assert all(sides)
        assert sum(len(side) for side in sides) == len(set.union(*sides))
        assert set.union(*sides) == set(track.tolist())


def write_images(root: Path, names: tuple[str, ...], each: int, kind: str = "PNG") -> dict[str, np.ndarray]:
    written = {}
    for name in names:
        (root / name).mkdir(parents=True)
        written[name] = RANDOM.randint(0, 256, (each, 4, 5, 3)).astype(np.uint8)
        for number, pixels in enumerate(written[name]):
            (root / name / f"{number:03}.{kind.lower()}").write_bytes(png(pixels, kind))
        (root / name / "notes.csv").write_text("ignored")
    return written


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_folder_with_train_and_test(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path / "train", ("dog", "cat"), 5, kind)
    held = write_images(tmp_path / "test", ("dog", "cat"), 2, kind)
    (tmp_path / "README.md").write_text("ignored")
    (tmp_path / "train" / ".cache").mkdir()
    splits = load(Data(name="pets"), tmp_path, 0)
    assert splits.train.classes == ("cat", "dog")
    assert whole_train(splits) == 10
    assert np.array_equal(splits.test.pixels, np.concatenate([held["cat"], held["dog"]]).transpose(0, 3, 1, 2))
    assert splits.test.labels.tolist() == [0, 0, 1, 1]


def test_folder_of_one_level_splits_and_orders_numbered_classes(tmp_path: Path) -> None:
    write_images(tmp_path, ("10", "9", "0"), 10)
    splits = load(Data(name="own"), tmp_path, 0)
    assert splits.train.classes == ("0", "9", "10")
    assert len(splits.test) == 6
    assert len(splits.validation) == 3


def test_grey_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.jpg").write_bytes(png(np.full((3, 3), 40 * number, np.uint8), "JPEG"))
    assert load(Data(name="own"), tmp_path, 0).train.pixels.shape[1:] == (1, 3, 3)


@pytest.mark.parametrize("prefix", ["", "set/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_keeps_the_members_order(tmp_path: Path, prefix: str, method: int) -> None:
    names = ["dog/2.png", "cat/9.png", "dog/1.png", "cat/8.png"]
    images = RANDOM.randint(0, 256, (4, 3, 4, 3)).astype(np.uint8)
    for part in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w", method) as file:
            file.writestr(f"{prefix}dog/", b"")
            for name, pixels in zip(names, images, strict=True):
                file.writestr(prefix + name, png(pixels))
            file.writestr("__MACOSX/dog/._2.png", b"x")
    splits = load(Data(name="pets"), tmp_path, 0)
    assert splits.test.labels.tolist() == [1, 0, 1, 0]
    assert np.array_equal(splits.test.pixels, images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_one_zip_with_both_parts(tmp_path: Path, prefix: str) -> None:
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as file:
        for part, count in (("train", 4), ("test", 2)):
            for number in range(count):
                for name in ("cat", "dog"):
                    file.writestr(f"{prefix}{part}/{name}/{number}.png", png(np.full((3, 3), number, np.uint8)))
    splits = load(Data(name="pets"), tmp_path, 0)
    assert (whole_train(splits), len(splits.test)) == (8, 4)


def cifar_batches(each: int = 20) -> list[tuple[str, np.ndarray, np.ndarray]]:
    random = np.random.RandomState(1)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    return [(name, random.randint(0, 256, (each, 3072)).astype(np.uint8), balanced(each, 10)) for name in names]


def cifar_bytes(pixels: np.ndarray, labels: np.ndarray, version: str) -> bytes:
    if version == "binary":
        return np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1).tobytes()
    key = (lambda text: text.encode()) if version.startswith("bytes") else (lambda text: text)
    content = {
        key("batch_label"): key("a batch"),
        key("labels"): labels.tolist(),
        key("data"): pixels,
        key("filenames"): [key("x.png")] * len(labels),
    }
    return pickle.dumps(content, protocol=int(version[-1]))


def python2_batch(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """The opcodes of the official files, which Python 2 wrote: byte strings for text and for the array's content."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85" + text(b"b") + b"\x87Rq\x03(K\x01"
    array += b"M" + struct.pack("<H", len(pixels)) + b"M\x00\x0c\x86" + b"cnumpy\ndtype\nq\x04" + text(b"u1") + b"K\x00K\x01\x87Rq\x05"
    array += (
        b"(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", pixels.size)
        + pixels.tobytes()
        + b"tb"
    )
    numbers = b"]q\x06(" + b"".join(b"K" + bytes([label]) for label in labels.tolist()) + b"e"
    return b"\x80\x02}q\x00(" + text(b"data") + array + text(b"labels") + numbers + b"u."


@pytest.mark.parametrize("version", ["binary", "bytes2", "text2", "bytes3", "text4", "python2"])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar_round_trip(tmp_path: Path, version: str, packed: bool) -> None:
    binary = version == "binary"
    written = {}
    for name, pixels, labels in cifar_batches():
        data = python2_batch(pixels, labels) if version == "python2" else cifar_bytes(pixels, labels, version)
        written[name + (".bin" if binary else "")] = data
    if version == "python2":  # our hand-written opcodes are a valid pickle of the same content
        assert np.array_equal(pickle.loads(written["test_batch"], encoding="bytes")[b"data"], cifar_batches()[-1][1])
    if packed:
        with tarfile.open(tmp_path / f"cifar-10-{'binary' if binary else 'python'}.tar.gz", "w:gz", format=tarfile.USTAR_FORMAT) as file:
            for name, data in reversed(written.items()):
                info = tarfile.TarInfo(f"cifar-10-batches/{name}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    else:
        folder = tmp_path / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
        folder.mkdir()
        for name, data in written.items():
            (folder / name).write_bytes(data)
    splits = load(Data(name="cifar10"), tmp_path, 0)
    _, pixels, labels = cifar_batches()[-1]
    assert np.array_equal(splits.test.pixels.reshape(-1, 3072), pixels)
    assert np.array_equal(splits.test.labels, labels)
    assert splits.test.classes == CIFAR10_NAMES
    assert whole_train(splits) == 100
    assert len(splits.validation) == 10


def test_versions_of_cifar_have_one_digest(tmp_path: Path) -> None:
    digests = set()
    for version in ("binary", "bytes2"):
        folder = tmp_path / version
        folder.mkdir()
        for name, pixels, labels in cifar_batches():
            (folder / (name + (".bin" if version == "binary" else ""))).write_bytes(cifar_bytes(pixels, labels, version))
        digests.add(load(Data(name="cifar10"), folder, 0).sha256)
    assert len(digests) == 1
