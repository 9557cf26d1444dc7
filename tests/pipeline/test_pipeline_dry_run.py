"""`build --dry-run`: the plan of a build, and that it writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_build import TINY
from vsparse import cli
from vsparse import dry_run as module
from vsparse.dry_run import plan_build
from vsparse.environment import Finding
from vsparse.graph import from_torch
from vsparse.networks import make
from vsparse.pipeline import keys
from vsparse.pipeline.cache import StageCache
from vsparse.pipeline.estimate import stage_bytes, stage_seconds
from vsparse.recipe import load_recipe


def _everything(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_new_build_is_all_to_do_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "examine", list)
    keys._hashes.cache_clear()  # a process of its own would have computed none yet
    keys.code_hash.cache_clear()
    monkeypatch.chdir(tmp_path)
    plan = plan_build("digits", settings=list(TINY))
    assert [stage.stage for stage in plan.stages] == [
        "train-sparse",
        "train-dense",
        "compress",
        "export",
        "verify-sparse",
        "verify-dense",
        "profile",
    ]
    assert not any(stage.cached for stage in plan.stages)
    assert {stage.seconds_from for stage in plan.stages} == {"arithmetic"}
    assert plan.seconds > 0
    assert plan.bytes > 0
    assert plan.ready
    assert not plan.up_to_date
    assert list(tmp_path.iterdir()) == []


def test_a_finished_build_is_cached_and_up_to_date(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "examine", list)
    cache = StageCache().root
    before = _everything(cache), _everything(tiny_artifact)
    plan = plan_build("digits", settings=list(TINY), out=tiny_artifact)
    assert plan.up_to_date
    assert plan.seconds == 0
    assert plan.bytes == 0
    assert all(stage.cached and stage.seconds_from == "cache" and stage.bytes > 0 for stage in plan.stages)
    other = plan_build("digits", settings=[*TINY, "verify.attack_steps=37"], out=tiny_artifact)
    assert [stage.stage for stage in other.stages if not stage.cached] == ["verify-sparse", "verify-dense"]
    assert {stage.seconds_from for stage in other.stages if not stage.cached} == {"last build"}
    assert not other.up_to_date
    assert other.seconds > 0
    assert (_everything(cache), _everything(tiny_artifact)) == before


@pytest.mark.parametrize(
    ("name", "settings", "code", "said"),
    [
        ("torch", [], 3, "missing: torch"),
        ("auto_LiRPA", [], 0, "absent, and this build leaves out what needs it: auto_LiRPA"),
        ("auto_LiRPA", ["train.engine=auto_lirpa", "train.objective=crown-ibp"], 3, "missing: auto_LiRPA"),
        ("ssh", [], 0, ""),
    ],
)
def test_the_exit_code_is_the_doctors_where_a_build_would_fail(
    name: str, settings: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "examine", lambda: [Finding(name, "absent", "", "not there", "install it")])
    given = [part for one in (*TINY, *settings) for part in ("--set", one)]
    assert cli.run(["build", "digits", *given, "--dry-run"]) == code
    out = capsys.readouterr().out
    assert said in out
    assert ("not there" in out) is bool(said)


def test_what_a_build_refuses_is_refused_and_missing_data_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["build", "mnist", "--data", str(tmp_path), "--dry-run"]) == 2
    assert "looked for" in capsys.readouterr().err
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").write_text("")
    assert cli.run(["build", "digits", "--out", str(tmp_path / "own"), "--dry-run"]) == 2
    assert "holds something that is no artifact" in capsys.readouterr().err


def test_estimates_grow_with_what_they_are_of() -> None:
    recipe = load_recipe("mnist")
    network = from_torch(make(recipe.network, (1, 28, 28), 10, (), (), 0).eval(), (1, 28, 28))
    few, many = ({"train": n, "validation": n // 10, "test": n // 5} for n in (1_000, 10_000))
    for stage in ("train-sparse", "verify-sparse"):
        assert stage_seconds(stage, recipe, network, few) < stage_seconds(stage, recipe, network, many)
    twice = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 2 * recipe.train.epochs})})
    once = stage_seconds("train-sparse", recipe, network, few)
    assert 1.9 * once - 4 < stage_seconds("train-sparse", twice, network, few) <= 2 * once
    assert stage_bytes("export", recipe, network, few) > stage_bytes("compress", recipe, network, few) > 0
