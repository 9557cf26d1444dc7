"""Files: whole or absent, swapped in one step, and JSON without NaN."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsparse.errors import InputError
from vsparse.files import canonical_json, exchange, new_directory, read_bytes, read_json, remove_stale, write_bytes, write_json


def test_a_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "artifact"
    with new_directory(final) as new:
        (new / "a").write_text("first")

    def fail() -> None:
        with new_directory(final) as new:
            (new / "a").write_text("second")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (final / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [final]


def test_a_new_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    final = tmp_path / "artifact"
    with new_directory(final) as new:
        (new / "old").write_text("x")
    with new_directory(final) as new:
        (new / "new").write_text("x")
    assert [path.name for path in final.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [final]


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".artifact.new-abc").mkdir()
    (tmp_path / ".artifact.new-abc" / "half").write_text("x")
    (tmp_path / ".other.new-abc").mkdir()
    remove_stale(tmp_path / "artifact")
    assert [path.name for path in tmp_path.iterdir()] == [".other.new-abc"]


def test_exchange_swaps(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    (a / "was-a").touch()
    exchange(a, b)
    assert (b / "was-a").exists()
    assert not (a / "was-a").exists()


def test_atomic_write_leaves_no_temporary(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x" / "f", b"1")
    write_bytes(tmp_path / "x" / "f", b"2")
    assert (tmp_path / "x" / "f").read_bytes() == b"2"
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["f"]


def test_json_refuses_nan_and_is_canonical(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "f", {"x": float("nan")})
    assert not (tmp_path / "f").exists()
    assert canonical_json({"b": 1, "a": [1.0, "é"]}) == '{"a":[1.0,"é"],"b":1}'.encode()


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "f", "thing")


def test_large_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(100))
    with pytest.raises(InputError, match="more than the 99"):
        read_bytes(tmp_path / "f", "thing", 99)
