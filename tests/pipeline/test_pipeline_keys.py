"""Keys of stages: they follow all that goes in, and of the code what it computes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from simulated_device import simulated_device
from vsparse.errors import UnavailableError
from vsparse.pipeline import keys
from vsparse.pipeline.build import resolve
from vsparse.pipeline.keys import KNOWN, Hashes, code_hash, computed, stage_key
from vsparse.pipeline.plan import CODE, make_plan


def test_keys_follow_everything_that_goes_in() -> None:
    base = stage_key("train", {"epochs": 3}, ("files",))
    assert base == stage_key("train", {"epochs": 3}, ("files",))
    assert (
        len(
            {
                base,
                stage_key("train", {"epochs": 4}, ("files",)),
                stage_key("verify", {"epochs": 3}, ("files",)),
                stage_key("train", {"epochs": 3}, ("pipeline/keys",)),
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


def test_a_template_counts_byte_for_byte_and_a_source_by_what_it_computes(tmp_path: Path) -> None:
    hashes = Hashes(tmp_path)
    assert hashes.of(b"# one\n", ".html") != hashes.of(b"# two\n", ".html")
    assert hashes.of(b"# one\n", ".py") == hashes.of(b"# two\n", ".py") != hashes.of(b"one = 1\n", ".py")


def test_hashes_are_kept_and_what_is_damaged_or_of_other_code_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(content: str | None) -> str:
        if content is not None:
            (tmp_path / KNOWN).write_text(content)
        return Hashes(tmp_path).of(SOURCE, ".py")

    hashes = Hashes(tmp_path)
    wanted = hashes.of(SOURCE, ".py")
    hashes.save()
    whole = json.loads((tmp_path / KNOWN).read_text())
    for damaged in ("{", "[]", '{"by": 1}', json.dumps({**whole, "files": []}), json.dumps({"by": "other", "files": {}})):
        assert kept(damaged) == wanted
    with monkeypatch.context() as patch:
        patch.setattr(keys, "computed", lambda source: pytest.fail("it was computed before"))
        assert kept(json.dumps(whole)) == wanted
    other = {**whole, "by": "another Python", "files": dict.fromkeys(whole["files"], "0")}
    assert kept(json.dumps(other)) == wanted


def test_the_code_of_every_stage_is_hashed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VSPARSE_CACHE", str(tmp_path))
    code_hash.cache_clear()
    first = {stage: code_hash(*parts) for stage, parts in CODE.items()}
    code_hash.cache_clear()
    keys._hashes.cache_clear()
    with monkeypatch.context() as patch:  # another process finds what this one kept
        patch.setattr(keys, "computed", lambda source: pytest.fail("it was computed before"))
        started = time.process_time()
        assert {stage: code_hash(*parts) for stage, parts in CODE.items()} == first
        assert time.process_time() - started < 0.3
    code_hash.cache_clear()


def test_the_key_of_a_training_has_the_model_of_its_device_and_not_its_name() -> None:
    def key(device: str) -> str:
        recipe, target = resolve("digits", "local", [f"train.device={device}", "network.architecture=mlp"])
        return make_plan(recipe, target, None, 1).stages("train")[0].key

    here = key("cpu")
    assert key("auto") == here
    with pytest.raises(UnavailableError, match=r"train\.device"):
        key("cuda")
    with simulated_device(count=2):
        there = key("cuda:1")
        assert key("auto") == key("cuda") == there != here
        assert key("cpu") == here
