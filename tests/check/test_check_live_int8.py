"""Recorded verdicts of the quantised network are replayed by bounds of its own integers, each forgery refuted by what it claims."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from check_artifacts import sign
from live_artifacts import live_artifact
from test_check_live import FORGERIES

from vsparse.artifact.live import LIVE
from vsparse_check import check
from vsparse_check.documents import _live

# What is said of the whole record, of the curve that both forms have, and of files rather than of verdicts.
OF_THE_WHOLE = ("another data range",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live_artifact(tmp_path_factory.mktemp("live-int8"), "residual", int8=True)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads((folder / LIVE).read_text())
    change(content)
    (folder / LIVE).write_text(json.dumps(content))
    return sign(folder)


def test_verdicts_of_both_networks_are_confirmed(whole: Path) -> None:
    content, found = json.loads((whole / LIVE).read_text()), check(whole)
    assert found.passed, found.sentence
    frames = content["int8"]["frames"]
    assert (content["int8"]["contract"], found.live.int8_frames) == ("int8", len(frames))
    certified = sum(frame["certified"] for frame in frames)
    assert found.live.int8_certified == found.live.int8_by_interval == certified > 5
    assert found.live.frames == len(content["frames"])
    assert f"int8: {len(frames)} live verdicts replayed" in found.sentence
    assert [frame["margin"] for frame in frames] != [frame["margin"] for frame in content["frames"]]


@pytest.mark.parametrize("name", [name for name in FORGERIES if name not in OF_THE_WHOLE])
def test_a_forged_verdict_in_int8_is_refuted(name: str, copy: Path) -> None:
    change, says = FORGERIES[name]
    found = check(changed(copy, lambda content: change(content["int8"])))
    assert found.verdict == "refuted", found.sentence
    assert says in found.problem, found.sentence
    assert "int8" in found.problem or "live.json" in says, found.sentence


OTHERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "left out": (lambda content: content.pop("int8"), "lacks int8"),
    "null": (lambda content: content.update(int8=None), "live.json: int8"),
    "the answers of float32": (lambda content: content.update(int8={key: content[key] for key in content["int8"]}), "contract than int8"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_told_of_int8_is_about_that_network(name: str, copy: Path) -> None:
    change, says = OTHERS[name]
    found = check(changed(copy, change))
    assert found.verdict == "refuted", found.sentence
    assert says in found.problem, found.sentence


def test_answers_in_int8_need_the_c(copy: Path) -> None:
    for path in (copy / "model").glob("model.int8*.[chS]"):
        path.unlink()
    shutil.rmtree(copy / "certificate/int8/c")
    assert "has int8, and model/model.int8.c is not there" in check(sign(copy)).problem


@pytest.mark.parametrize(("chosen", "of"), [("int8-c", "int8"), ("sequential", ""), ("int8", ""), ("", "")])
def test_the_gate_is_judged_by_the_form_that_is_deployed(chosen: str, of: str, copy: Path) -> None:
    (copy / "choice.json").write_text(json.dumps({"chosen": chosen}))
    content = json.loads((copy / LIVE).read_text())
    found = _live(copy, {LIVE, "choice.json"})
    assert found is not None
    assert found["at_epsilon"] == (content[of] if of else content)["at_epsilon"]
    assert found["contract"] == (of or "sequential")


@pytest.fixture(scope="module")
def both_tiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live_artifact(tmp_path_factory.mktemp("live-int8-budget"), "residual", epsilon="0.03", int8=True, budget=9)


def test_verdicts_of_both_tiers_are_derived_again(both_tiers: Path) -> None:
    content, found = json.loads((both_tiers / LIVE).read_text()), check(both_tiers)
    assert found.passed, found.sentence
    integers = content["int8"]
    assert integers["budget"] == content["budget"] == 9
    assert integers["at_epsilon"]["by_intervals"] < integers["at_epsilon"]["certified"]
    assert found.live.int8_by_interval < found.live.int8_certified


BUDGETS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "more passes": (lambda content: content["int8"].update(budget=10), "live.json: int8: budget is not the 9"),
    "passes of no number": (lambda content: content["int8"].update(budget=True), "budget is not the 9"),
    "no passes, and counts of them": (lambda content: content["int8"].pop("budget"), "by_intervals is counted"),
    "none in float32": (lambda content: content.pop("budget"), "live.json: budget is not the 9"),
    "a larger margin": (lambda content: _raise(content["int8"]["frames"]), "margin"),
}


def _raise(frames: list[dict[str, Any]]) -> None:
    least = min((one for one in frames if one["certified"]), key=lambda one: float(one["margin"]))
    least["margin"] = 0.5 + 2 * least["margin"]


@pytest.mark.parametrize("name", BUDGETS)
def test_a_forged_budget_is_refuted(name: str, both_tiers: Path, tmp_path: Path) -> None:
    change, says = BUDGETS[name]
    found = check(changed(Path(shutil.copytree(both_tiers, tmp_path / "forged")), change))
    assert found.verdict == "refuted", found.sentence
    assert says in found.problem, found.sentence


def test_a_quantised_network_without_passes_may_say_so(both_tiers: Path, tmp_path: Path) -> None:
    def without(content: dict[str, Any]) -> None:
        own = content["int8"]
        own.pop("budget")
        for point in (own["at_epsilon"], *own["curve"]):
            point["certified"] = point["right"] = point.pop("by_intervals")
        for frame in own["frames"]:
            frame.update(certified=False, margin=-1.0)

    folder = Path(shutil.copytree(both_tiers, tmp_path / "intervals"))
    problem = check(changed(folder, without)).problem
    assert "budget" not in problem
    assert "by_intervals" not in problem
