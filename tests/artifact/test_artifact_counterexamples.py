"""counterexamples.npz is read without trust: no objects, no other types, no missing arrays, no promises that the file does not keep."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vsparse.artifact.counterexamples import Counterexamples, read_counterexamples
from vsparse.errors import InputError

GOOD = Counterexamples(
    np.array([3, 5]), np.zeros((2, 1, 2, 2), np.float32), np.ones((2, 1, 2, 2), np.float32), np.array([0, 1]), np.array([1, 0])
)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def rewritten(path: Path, **members: bytes | None) -> Path:
    """Writes the good file with some members replaced, or left out."""
    arrays = {name: npy(getattr(GOOD, name)) for name in ("ids", "inputs", "originals", "labels", "predictions")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (arrays | members).items():
            if content is not None:
                archive.writestr(f"{name}.npy", content)
    return path


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    GOOD.write(tmp_path / "x.npz")
    assert read_counterexamples(tmp_path / "x.npz").sha256() == GOOD.sha256()
    assert len(read_counterexamples(rewritten(tmp_path / "y.npz"))) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("inputs", npy(np.array([{"a": 1}], dtype=object))),
        ("inputs", npy(np.array(["a"]))),
        ("inputs", npy(np.full((2, 1, 2, 2), np.nan, np.float32))),
        ("originals", npy(np.full((2, 1, 2, 2), np.inf, np.float32))),
        ("inputs", npy(np.zeros((2, 1, 2, 2)))),
        ("inputs", npy(np.zeros((3, 1, 2, 2), np.float32))),
        ("originals", npy(np.zeros((2, 4), np.float32))),
        ("labels", npy(np.zeros(3, np.int64))),
        ("ids", npy(np.zeros(100, np.int64))[:-8]),
        ("ids", npy(np.zeros(4, np.int64)).replace(b"(4,)", b"(4000000000000,)".ljust(4))),
        ("ids", b"\x93NUMPY\x01\x00\x02\x00{}"),
        ("ids", b""),
        ("originals", None),
        ("predictions", None),
    ],
)
def test_anything_else_is_one_sentence(tmp_path: Path, name: str, content: bytes | None) -> None:
    with pytest.raises(InputError, match=r"bad\.npz"):
        read_counterexamples(rewritten(tmp_path / "bad.npz", **{name: content}))
