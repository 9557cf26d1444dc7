"""A full disk is one sentence that names the folder and the space, wherever it is met."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from vsparse import cli
from vsparse.files import DiskFullError, copy_tree, new_directory, refused, write_bytes


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that is written or copied meets a full disk."""

    class Full:
        def __init__(self, stream: IO[Any]) -> None:
            self.stream = stream

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = os.fdopen
    monkeypatch.setattr("vsparse.files.os.fdopen", lambda handle, mode: Full(real(handle, mode)))

    def copy(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr("vsparse.files.shutil.copy2", copy)


@pytest.mark.usefixtures("full")
def test_a_file_says_its_folder_and_the_space(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError) as caught:
        write_bytes(tmp_path / "a" / "model.onnx", b"x" * 2_500_000)
    text = refused(caught.value)
    assert text.startswith(f"no space is left in {tmp_path / 'a'} (2.5 MB to be written, ")
    assert " free); free space there, or choose another folder" in text
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.usefixtures("full")
def test_a_copy_says_how_much_it_needs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "one").write_bytes(b"x" * 1500)
    (source / "deep" / "two").write_bytes(b"x" * 500)
    with pytest.raises(DiskFullError, match=r"2\.0 kB to be written"):
        copy_tree(source, tmp_path / "goal")


def test_a_copy_is_whole_but_for_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("one", "b/two", "b/seal"):
        (tmp_path / "a" / name).write_text(name)
    copy_tree(tmp_path / "a", tmp_path / "c", leave_out=("seal",))
    assert {path.name: path.read_text() for path in (tmp_path / "c").rglob("*") if path.is_file()} == {"one": "one", "two": "b/two"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_met_by_others_names_where_it_goes(tmp_path: Path, number: int) -> None:
    error = OSError(number, os.strerror(number), "from", None, str(tmp_path / "to"))
    assert refused(error).startswith(f"no space is left in {tmp_path} (")


def test_a_list_of_tuples_is_one_sentence() -> None:
    error = shutil.Error([("a", "there/b", "[Errno 28] No space left on device: 'there/b'"), ("c", "there/d", "the same")])
    assert refused(error).startswith("the system refused there/b: [Errno 28] No space left on device")
    assert refused(OSError("odd")) == "the system refused: odd; free space, correct its rights, or choose another folder"


@pytest.mark.usefixtures("full")
def test_the_command_line_prints_it(tiny_artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", str(tiny_artifact)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("vsparse: no space is left in ")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_indeed(tiny_disk: Path, tmp_path: Path) -> None:
    write_bytes(tiny_disk / "a", b"x" * 100_000)
    with pytest.raises(DiskFullError, match=r"150\.0 kB to be written, "):
        write_bytes(tiny_disk / "b", b"x" * 150_000)
    assert [path.name for path in tiny_disk.iterdir()] == ["a"]
    source = tmp_path / "source"
    source.mkdir()
    (source / "c").write_bytes(b"x" * 300_000)
    with pytest.raises(DiskFullError, match=r"300\.0 kB to be written"), new_directory(tiny_disk / "new") as new:
        copy_tree(source, new)
    assert [path.name for path in tiny_disk.iterdir()] == ["a"]
