"""Truncated and flipped files: the same samples or others, or one InputError; never another exception, never much memory."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vsparse.data import load
from vsparse.data.plain_pickle import read_plain_pickle
from vsparse.errors import InputError
from vsparse.recipe import Data

X = np.random.RandomState(0).randint(0, 256, (40, 3, 4)).astype(np.uint8)
Y = (np.arange(40) % 4).astype(np.uint8)


def npz(compressed: bool) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, x=X, y=Y, track=np.arange(40) // 2, classes=np.array(["a", "b", "c", "d"]))
    return stream.getvalue()


def image_zip(kind: str, method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for number in range(12):
            image = io.BytesIO()
            Image.fromarray(X[number]).save(image, kind)
            file.writestr(f"{'ab'[number % 2]}/{number}.{kind.lower()}", image.getvalue())
    return stream.getvalue()


def batch() -> bytes:
    pixels = np.zeros((10, 3072), np.uint8)
    return pickle.dumps({b"data": pixels, b"labels": list(range(10)), b"filenames": [b"x"] * 10}, protocol=2)


def archive() -> bytes:
    stream = io.BytesIO()
    data = batch()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return gzip.compress(stream.getvalue())


IDX_IMAGES = b"\0\0\x08\x03\0\0\0\x28\0\0\0\x03\0\0\0\x04" + X.tobytes()
IDX_LABELS = b"\0\0\x08\x01\0\0\0\x28" + Y.tobytes()
# file to damage, its content, and the whole files beside it
TARGETS: dict[str, tuple[str, bytes, dict[str, bytes]]] = {
    "idx images": ("train-images-idx3-ubyte", IDX_IMAGES, {"train-labels-idx1-ubyte": IDX_LABELS}),
    "idx labels": ("train-labels-idx1-ubyte", IDX_LABELS, {"train-images-idx3-ubyte": IDX_IMAGES}),
    "idx gzip": ("train-images-idx3-ubyte.gz", gzip.compress(IDX_IMAGES), {"train-labels-idx1-ubyte": IDX_LABELS}),
    "npz": ("train.npz", npz(False), {}),
    "npz deflated": ("train.npz", npz(True), {}),
    "zip of png": ("train.zip", image_zip("PNG", zipfile.ZIP_STORED), {}),
    "zip of jpeg, deflated": ("train.zip", image_zip("JPEG", zipfile.ZIP_DEFLATED), {}),
    "zip of bmp": ("train.zip", image_zip("BMP", zipfile.ZIP_STORED), {}),
    "zip of ppm": ("train.zip", image_zip("PPM", zipfile.ZIP_STORED), {}),
    "cifar python": ("data_batch_2", batch(), {f"data_batch_{n}": batch() for n in (1, 3, 4, 5)} | {"test_batch": batch()}),
    "cifar archive": ("cifar-10-python.tar.gz", archive(), {}),
}
Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn, size: int) -> Damage:
    keep = draw(st.one_of(st.just(size), st.integers(0, size - 1)))
    # headers and central directories lie at the ends
    position = st.one_of(st.integers(0, min(64, size - 1)), st.integers(max(0, size - 700), size - 1), st.integers(0, size - 1))
    flips = draw(st.lists(st.tuples(position, st.integers(0, 255)), max_size=4))

    def apply(data: bytes) -> bytes:
        changed = bytearray(data)
        for where, value in flips:
            changed[where] = value
        return bytes(changed[:keep])

    return apply


@pytest.mark.parametrize("target", list(TARGETS))
def test_damage_never_escapes(target: str) -> None:
    name, content, beside = TARGETS[target]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for other, data in beside.items():
            (root / other).write_bytes(data)
        (root / name).write_bytes(content)
        load(Data(name="own"), root, 0)  # whole, it loads

        @settings(max_examples=150, deadline=None, database=None, derandomize=True)
        @given(damages(len(content)))
        def attack(damage: Damage) -> None:
            (root / name).write_bytes(damage(content))
            tracemalloc.start()
            try:
                splits = load(Data(name="own"), root, 0)
                assert all(len(part) for part in (splits.train, splits.validation, splits.test))
                assert 0 <= splits.test.inputs().min() <= splits.test.inputs().max() <= 1
            except InputError as error:
                sentence = str(error)
            else:
                sentence = ""
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            assert "\n" not in sentence
            assert peak < 64 * 2**20

        attack()


@settings(max_examples=500, deadline=None, database=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from([bytes([code]) for code in range(256)] + [b"K\x01", b"U\x01a", b"cnumpy\ndtype\n", b"(", b"}", b"]"]), max_size=60
    )
)
def test_random_opcodes_never_escape(parts: list[bytes]) -> None:
    try:
        content = read_plain_pickle(b"\x80\x02" + b"".join(parts) + b".", "batch")
    except InputError:
        return
    assert all(isinstance(key, str) for key in content)
