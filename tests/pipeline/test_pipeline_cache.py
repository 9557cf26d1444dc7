"""The stage cache: keyed by content, whole or absent, mended when damaged, resumable."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsparse.pipeline.cache import StageCache


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
