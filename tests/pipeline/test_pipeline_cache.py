"""The stage cache: keyed by content, whole or absent, mended when damaged, resumable."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vsparse.pipeline import cache as cache_module
from vsparse.pipeline.cache import StageCache, computed, stage_key
from vsparse.pipeline.plan import CODE


def test_keys_follow_everything_that_goes_in() -> None:
    base = stage_key("train", {"epochs": 3}, ("files",))
    assert base == stage_key("train", {"epochs": 3}, ("files",))
    assert (
        len(
            {
                base,
                stage_key("train", {"epochs": 4}, ("files",)),
                stage_key("verify", {"epochs": 3}, ("files",)),
                stage_key("train", {"epochs": 3}, ("pipeline/cache",)),
            }
        )
        == 4
    )


SOURCE = b'''"""What it does."""


class Rule:
    """A rule."""

    LEVELS = ("all", 3)

    def apply(self, x: float) -> float:
        """Returns twice x."""
        assert x > 0, "positive"
        return 2.0 * x if x not in {"a", "b", "c"} else -0.0
'''
SAME = {
    "a docstring": (b"Returns twice x.", b"Doubles."),
    "no docstring": (b'        """Returns twice x."""\n', b""),
    "a comment": (b"    LEVELS", b"    # of optimisation\n    LEVELS"),
    "lines": (b"\n\n\nclass", b"\n\n\n\n\n\nclass"),
    "layout": (b'("all", 3)', b'(\n        "all",\n        3,\n    )'),
}
OTHER = {
    "a constant": (b"2.0 *", b"2.5 *"),
    "the kind of a constant": (b"2.0 *", b"2 *"),
    "the sign of zero": (b"-0.0", b"0.0"),
    "a constant in a tuple": (b"3)", b"4)"),
    "a member of a set": (b'"b"', b'"d"'),
    "an operator": (b"2.0 * x", b"2.0 / x"),
    "an assertion": (b"x > 0", b"x >= 0"),
    "a name": (b"def apply", b"def use"),
    "a string that is no docstring": (b'"all"', b'"basic"'),
    "a default": (b"x: float)", b"x: float = 1.0)"),
    "an annotation": (b"x: float)", b"x: int)"),
}


def test_comments_docstrings_and_layout_change_no_key() -> None:
    for what, (old, new) in SAME.items():
        assert old in SOURCE
        assert computed(SOURCE.replace(old, new)) == computed(SOURCE), what


def test_whatever_computes_otherwise_changes_the_key() -> None:
    found = {computed(SOURCE)}
    for old, new in OTHER.values():
        assert old in SOURCE
        found.add(computed(SOURCE.replace(old, new)))
    assert len(found) == len(OTHER) + 1


def test_a_template_counts_byte_for_byte(tmp_path: Path) -> None:
    for name in ("page.html", "page.py"):
        (tmp_path / name).write_text("# one\n")
        before = cache_module._file_hash(tmp_path / name)
        cache_module._file_hash.cache_clear()
        (tmp_path / name).write_text("# two\n")
        assert (cache_module._file_hash(tmp_path / name) == before) is (name == "page.py")
        cache_module._file_hash.cache_clear()


def test_the_code_of_every_stage_is_hashed_quickly() -> None:
    cache_module.code_hash.cache_clear()
    cache_module._file_hash.cache_clear()
    started = time.process_time()
    first = {stage: cache_module.code_hash(*parts) for stage, parts in CODE.items()}
    spent = time.process_time() - started
    assert spent < 2.0  # about 0.3 s on an idle machine
    started = time.process_time()
    assert {stage: cache_module.code_hash(*parts) for stage, parts in CODE.items()} == first
    assert time.process_time() - started < 0.01


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
