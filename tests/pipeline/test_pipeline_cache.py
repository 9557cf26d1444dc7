"""The stage cache: keyed by content, whole or absent, mended when damaged, resumable."""

from __future__ import annotations

import os
from pathlib import Path
from time import time

import pytest

from vsparse.pipeline.cache import DAY, StageCache


def test_a_stage_runs_once(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    calls = []

    def work(scratch: Path, output: Path) -> None:
        calls.append(1)
        (output / "result").write_text("42")

    first, reused_first = cache.run("s", "k" * 64, work)
    second, reused_second = cache.run("s", "k" * 64, work)
    assert (first, reused_first, reused_second, len(calls)) == (second, False, True, 1)
    assert (first / "result").read_text() == "42"


@pytest.mark.parametrize("damage", ["edit", "remove", "seal"])
def test_a_damaged_stage_is_run_again(tmp_path: Path, damage: str) -> None:
    cache = StageCache(tmp_path)

    def work(scratch: Path, output: Path) -> None:
        (output / "result").write_text("42")

    done, _ = cache.run("s", "k" * 64, work)
    if damage == "edit":
        (done / "result").write_text("43")
    elif damage == "remove":
        (done / "result").unlink()
    else:
        (done / "stage.json").write_text("[]")
    again, reused = cache.run("s", "k" * 64, work)
    assert not reused
    assert (again / "result").read_text() == "42"


def test_scratch_outlives_an_interrupted_run(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)

    def interrupted(scratch: Path, output: Path) -> None:
        (scratch / "epoch").write_text("7")
        (output / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.run("s", "k" * 64, interrupted)
    assert cache.finished("s", "k" * 64) is None

    def resumed(scratch: Path, output: Path) -> None:
        (output / "result").write_text((scratch / "epoch").read_text())

    done, _ = cache.run("s", "k" * 64, resumed)
    assert (done / "result").read_text() == "7"
    assert not (done / "half").exists()
    assert not any((tmp_path / "work").iterdir())


def _filled(root: Path) -> StageCache:
    cache = StageCache(root)
    for key, size in (("a" * 64, 10), ("b" * 64, 1000)):
        cache.run("train-dense", key, lambda scratch, output, size=size: (output / "result").write_text("x" * size))
    (root / "work" / f"train-{'c' * 64}").mkdir(parents=True)
    (root / "work" / f"train-{'c' * 64}" / "epoch").write_text("7")
    return cache


def _age(folder: Path, days: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (time() - days * DAY,) * 2)


def test_what_the_cache_holds_is_listed_by_size(tmp_path: Path) -> None:
    entries = _filled(tmp_path).entries()
    assert [(entry.stage, entry.key[0], entry.finished) for entry in entries] == [
        ("train-dense", "b", True),
        ("train-dense", "a", True),
        ("train", "c", False),
    ]
    assert all(entry.bytes == sum(path.stat().st_size for path in entry.path.rglob("*")) for entry in entries)
    assert StageCache(tmp_path / "none").entries() == []


def test_only_what_was_not_used_for_long_is_pruned(tmp_path: Path) -> None:
    cache = _filled(tmp_path)
    for entry in cache.entries():
        _age(entry.path, 40)
    assert cache.finished("train-dense", "a" * 64) is not None  # which is a use
    assert {entry.key[0] for entry in cache.prune(30, dry_run=True)} == {"b", "c"}
    assert len(cache.entries()) == 3
    assert {entry.key[0] for entry in cache.prune(30)} == {"b", "c"}
    assert [entry.key[0] for entry in cache.entries()] == ["a"]
    assert not [path for path in tmp_path.rglob("*") if "b" * 64 in path.name and path.parent.name != "locks"]
    assert [entry.key[0] for entry in cache.prune(0)] == ["a"]


def test_what_a_process_works_on_is_not_pruned(tmp_path: Path) -> None:
    cache = _filled(tmp_path)
    with cache.lock(f"train-{'c' * 16}"):
        assert {entry.key[0] for entry in cache.prune(0)} == {"a", "b"}
    assert [entry.key[0] for entry in cache.entries()] == ["c"]
