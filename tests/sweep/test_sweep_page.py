"""sweep.json and sweep.html: what they hold, that the page escapes and stands alone, and that charts survive odd numbers."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sweep_fakes import measured

from vsparse.cli import run
from vsparse.errors import GateError, InputError
from vsparse.pipeline.build import BuildResult
from vsparse.progress import Reporter
from vsparse.recipe import Recipe, load_recipe
from vsparse.stages.report.checks import Gate
from vsparse.sweep import certify, train_sweep
from vsparse.sweep import run as sweep_run
from vsparse.sweep.charts import scatter
from vsparse.sweep.page import html
from vsparse.sweep.results import Measured


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Training replaced by a rule; returns the recipes that were asked for."""
    asked: list[Recipe] = []

    class Runner:
        def __init__(self, *arguments: object) -> None:
            pass

        def __call__(self, recipe: Recipe, reporter: Reporter) -> Measured:
            asked.append(recipe)
            if recipe.train.sparsity == 0.99:
                raise GateError("diverged <b>here</b>")
            keep = 1 - recipe.train.sparsity
            return measured(0.5 + 0.4 * keep + 0.01 * recipe.train.seed, 0.95, round(1e5 * keep), round(4e5 * keep), 12.5)

    monkeypatch.setattr(sweep_run, "RoadRunner", Runner)
    return asked


def test_sweep_json_holds_every_configuration_with_settings_seeds_and_numbers(faked: list[Recipe], tmp_path: Path) -> None:
    result = train_sweep("digits", ["train.sparsity=[0, 0.5, 0.99]", "train.seed=[3, 4]"], out=tmp_path / "s", settings=["train.epochs=9"])
    content = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert content == json.loads(json.dumps(result.as_json()))
    assert (content["schema_version"], content["recipe"], content["split"], content["set"]) == (
        1,
        "digits",
        "validation",
        ["train.epochs=9"],
    )
    assert content["axes"] == ["certified", "macs", "bytes"]
    first, _, last = content["configurations"]
    assert (first["id"], first["settings"], first["set"], first["seeds"]) == ("c01", {"train.sparsity": 0}, ["train.sparsity=0"], [3, 4])
    assert (first["status"], first["pareto"], first["epochs"], first["rung"]) == ("finished", True, 9, 0)
    assert first["mean"]["certified_share"] == pytest.approx(0.935)
    assert first["spread"]["certified_share"] == pytest.approx(0.01 / 2**0.5)
    assert [run["measured"]["macs"] for run in first["runs"]] == [100_000, 100_000]
    assert (last["status"], last["pareto"], last["reason"]) == ("failed", False, "2 of 2 seeds failed: diverged <b>here</b>")
    assert all(recipe.train.epochs == 9 and not recipe.train.baseline for recipe in faked)


def test_the_page_stands_alone_and_escapes(faked: list[Recipe], tmp_path: Path) -> None:
    train_sweep("digits", ["train.sparsity=[0, 0.5, 0.9, 0.99]"], out=tmp_path / "s")
    page = (tmp_path / "s" / "sweep.html").read_text()
    assert "diverged &lt;b&gt;here&lt;/b&gt;" in page
    assert "<b>here" not in page
    assert not re.search(r"<script|https?://|src=", page)
    assert page.count("<svg") == 4
    assert "3 on the Pareto front" in page
    assert "The test split was not looked at" in page
    again = html(json.loads((tmp_path / "s" / "sweep.json").read_text()))
    assert again == page, "the page follows from sweep.json alone"


def test_a_dense_network_is_one_recipe_whatever_the_sparsifier(faked: list[Recipe], tmp_path: Path) -> None:
    train_sweep("digits", ["train.sparsity=[0, 0.5]", 'train.sparse.granularity=["channel", "element"]'], out=tmp_path / "s")
    dense = [recipe for recipe in faked if recipe.train.sparsity == 0]
    sparse = [recipe for recipe in faked if recipe.train.sparsity == 0.5]
    assert len(dense) == 2
    assert dense[0] == dense[1]
    assert sparse[0] != sparse[1]


def test_options_that_do_not_fit_are_refused(faked: list[Recipe], tmp_path: Path) -> None:
    sweep = ["train.sparsity=[0, 0.5]"]
    with pytest.raises(InputError, match="--seed 3"):
        train_sweep("digits", ["train.seed=[0, 1]"], seed=3, out=tmp_path / "s")
    with pytest.raises(InputError, match=r"train\.epochs is what halving varies"):
        train_sweep("digits", ["train.epochs=[10, 20]"], eta=2, out=tmp_path / "s")
    with pytest.raises(InputError, match="goes with --halving"):
        train_sweep("digits", sweep, first_epochs=3, out=tmp_path / "s")
    with pytest.raises(InputError, match="keep"):
        train_sweep("digits", sweep, eta=2, keep="best", out=tmp_path / "s")
    with pytest.raises(InputError, match="--axes"):
        train_sweep("digits", sweep, axes=["certified", "speed"], out=tmp_path / "s")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something that is no sweep"):
        train_sweep("digits", sweep, out=tmp_path / "other")
    assert faked == []
    assert not (tmp_path / "s").exists()


def test_certify_builds_every_seed_of_the_front_and_nothing_else(
    faked: list[Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: dict[str, Recipe] = {}

    def build(recipe: str, *, out: Path, **more: object) -> BuildResult:
        built[out.name] = load_recipe(recipe)
        if out.name == "c01-seed1":
            raise GateError("the audit failed")
        figures = {"clean_share": 0.9, "attacked_share": 0.8, "certified_share": 0.7}
        passed = out.name != "c02-seed0"
        gate = Gate("contract audit", "0 violations", "0" if passed else "3", passed)
        return BuildResult(out, "report", (gate,), {"sparse": figures, "samples": 360, "contract": "fp32"}, ())

    monkeypatch.setattr(certify, "build", build)
    arguments = ["--sweep", "train.sparsity=[0, 0.5, 0.99]", "--sweep", "train.seed=[0, 1]", "--certify", "--set", "train.epochs=9"]
    assert run(["train", "digits", *arguments, "--out", str(tmp_path / "s")]) == 1, "a gate failed"
    asked = {name: (one.train.sparsity, one.train.seed, one.train.epochs) for name, one in built.items()}
    assert asked == {"c01-seed0": (0, 0, 9), "c01-seed1": (0, 1, 9), "c02-seed0": (0.5, 0, 9), "c02-seed1": (0.5, 1, 9)}
    out = capsys.readouterr().out
    assert "passed  c01, seed 0, on 360 test samples, contract fp32: certified 70.0 %, under attack 80.0 %, clean 90.0 %" in out
    assert "FAILED  c02, seed 0" in out
    assert "failed  certify c01, seed 1: the audit failed" in out
    found = json.loads((tmp_path / "s" / "sweep.json").read_text())["certified_on_test"]
    assert [(one["id"], one["seed"], one["passed"]) for one in found] == [
        ("c01", 0, True),
        ("c01", 1, False),
        ("c02", 0, False),
        ("c02", 1, True),
    ]
    page = (tmp_path / "s" / "sweep.html").read_text()
    assert 'href="certified/c01-seed0/report.html"' in page
    assert "looked at only after the choice was made" in page


def test_where_every_training_diverges_a_gate_failed(faked: list[Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "digits", "--sweep", "train.sparsity=[0.99]", "--out", str(tmp_path / "s"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["configurations"][0]["status"] == "failed"
    assert "every configuration of the sweep failed" in err
    assert (tmp_path / "s" / "sweep.html").is_file()


def test_a_sweep_replaces_a_sweep(faked: list[Recipe], tmp_path: Path) -> None:
    train_sweep("digits", ["train.sparsity=[0, 0.5]"], out=tmp_path / "s")
    train_sweep("digits", ["train.sparsity=[0.7, 0.5, 0.2]"], out=tmp_path / "s", seed=5)
    content = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert len(content["configurations"]) == 3
    assert content["configurations"][0]["seeds"] == [5]


def test_halving_is_on_record_and_the_file_is_its_default(faked: list[Recipe], tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text('axes = ["certified", "seconds"]\n[grid]\ntrain.sparsity = [0, 0.3, 0.5, 0.9]\n[halving]\neta = 2\nfirst_epochs = 20\n')
    result = train_sweep("digits", [str(file)], out=tmp_path / "s", settings=["train.epochs=80"], keep="certified")
    halving = result.as_json()["halving"]
    assert [(rung["configurations"], rung["epochs"]) for rung in halving["rungs"]] == [(4, 20), (2, 40), (1, 80)]
    assert (halving["eta"], halving["keep"], result.axes) == (2, "certified", ("certified", "seconds"))
    assert "stopped at rung 1" in (tmp_path / "s" / "sweep.html").read_text()


def rows(numbers: list[tuple[float, float]]) -> list[dict[str, Any]]:
    mean = {"certified_share": 0.0, "clean_share": 0.0, "macs": 0.0, "bytes": 0.0, "train_seconds": 0.0}
    one = {"set": [], "status": "finished", "pareto": True, "spread": {"certified_share": None}, "mean": mean}
    found = []
    for place, (certified, macs) in enumerate(numbers):
        row = copy.deepcopy(one)
        row["id"] = f"c{place}"
        row["mean"].update(certified_share=certified, macs=macs)  # type: ignore[attr-defined]
        found.append(row)
    return found


@pytest.mark.parametrize(
    "numbers", [[(0.5, 10), (0.5, 10)], [(0, 0), (0, 0)], [(0, 1), (1, 1e9)], [(0.9, 1000), (0.8, 0)], [(1, 5), (1, 50_000), (0.2, 7)]]
)
def test_charts_draw_every_row_inside_the_picture(numbers: list[tuple[float, float]]) -> None:
    drawn = scatter(rows(numbers), "macs")
    places = re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)" r="5"', drawn)
    assert len(places) == len(numbers)
    assert all(60 <= float(x) <= 466 and 16 <= float(y) <= 244 for x, y in places)
    assert "nan" not in drawn


def test_fewer_than_two_rows_draw_nothing() -> None:
    assert scatter(rows([(0.5, 10)]), "macs") == ""
