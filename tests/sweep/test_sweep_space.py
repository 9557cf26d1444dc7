"""TPE: what is drawn follows from the seed and the results, finds what is good, repeats nothing, and what is refused."""

from __future__ import annotations

import importlib.util
from math import log10
from pathlib import Path

import pytest
from sweep_fakes import measured

from vsparse.errors import InputError, UnavailableError
from vsparse.sweep import train_sweep
from vsparse.sweep.grid import Configuration
from vsparse.sweep.results import Row, TrainingRun
from vsparse.sweep.space import read_space, search_tpe

RATES = "train.learning_rate={low = 1e-4, high = 1e-1, log = true}"
needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed")


def found(arguments: list[str], trials: int, seed: int = 0, fail: bool = False) -> list[Row]:
    """Draws with results by a rule: a rate near 0.003 certifies most, and half the density costs half the multiply-adds."""

    def train(wanted: list[Configuration]) -> list[Row]:
        rows = []
        for one in wanted:
            rate, sparsity = one.settings.get("train.learning_rate", 0.003), one.settings.get("train.sparsity", 0.5)
            away = abs(log10(rate / 0.003))
            result = measured(1 / (1 + away), macs=int(1000 * (1 - sparsity)))
            failed = fail or rate > 0.05
            run = TrainingRun(0, 10, None if failed else result, "diverged" if failed else "")
            rows.append(Row(one, 0, (run,), "failed" if failed else "finished"))
        return rows

    space, _, _ = read_space(arguments)
    return search_tpe(space, trials, seed, ("certified", "macs"), train)


@needs_optuna
def test_the_same_seed_draws_the_same_and_more_trials_continue_it() -> None:
    first = [dict(row.configuration.settings) for row in found([RATES, "train.sparsity=[0, 0.5, 0.9]"], 16)]
    again = [dict(row.configuration.settings) for row in found([RATES, "train.sparsity=[0, 0.5, 0.9]"], 24)]
    assert again[: len(first)] == first
    assert len(again) > len(first)
    assert first != [dict(row.configuration.settings) for row in found([RATES, "train.sparsity=[0, 0.5, 0.9]"], 16, seed=1)]
    assert all(1e-4 <= one["train.learning_rate"] <= 1e-1 and one["train.sparsity"] in (0, 0.5, 0.9) for one in again)


@needs_optuna
def test_it_draws_near_what_was_good() -> None:
    rows = found([RATES], 48)
    rates = [row.configuration.settings["train.learning_rate"] for row in rows]
    near = [5e-4 < rate < 2e-2 for rate in rates]
    assert sum(near[-24:]) > sum(near[:8]) / 8 * 24
    assert [row.configuration.id for row in rows] == [f"c{index:02d}" for index in range(1, len(rows) + 1)]


@needs_optuna
def test_small_spaces_points_whole_numbers_and_failures() -> None:
    rows = found(["train.sparsity=[0, 0.5]"], 20)
    assert len(rows) == 2, "what was drawn before is not trained again"
    rows = found(["train.epochs={low = 2, high = 9}"], 6)
    assert all(isinstance(row.configuration.settings["train.epochs"], int) for row in rows)
    assert all(row.status == "failed" for row in found([RATES], 10, fail=True))


@needs_optuna
def test_a_sweep_by_tpe_on_the_pipeline_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSPARSE_CACHE", str(tmp_path / "cache"))
    settings = ["network.architecture=mlp", "network.width=0.1", "train.epochs=1", "train.batch_size=256", "property.epsilon='0.01'"]
    arguments = ["train.learning_rate={low = 1e-3, high = 1e-2, log = true}"]
    one = train_sweep("digits", arguments, out=tmp_path / "s", settings=settings, sampler="tpe", trials=3)
    two = train_sweep("digits", arguments, out=tmp_path / "s", settings=settings, sampler="tpe", trials=4)
    assert [row.configuration for row in two.rows[:3]] == [row.configuration for row in one.rows]
    assert [row.runs[0].measured.reused for row in two.rows if row.runs[0].measured] == [True, True, True, False]
    assert two.as_json()["sampler"] == {
        "name": "tpe",
        "trials": 4,
        "seed": 0,
        "ranges": {"train.learning_rate": {"low": 0.001, "high": 0.01, "log": True}},
    }


@pytest.mark.skipif(importlib.util.find_spec("optuna") is not None, reason="optuna is installed")
def test_without_optuna_one_sentence_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"pip install 'vsparse\[optuna\]'"):
        train_sweep("digits", [RATES], out=tmp_path / "s", sampler="tpe", trials=3)


BAD = {
    "a range in a grid": ([RATES], {}, "give --sampler tpe too"),
    "another sampler": (["train.sparsity=[0, 0.5]"], {"sampler": "random"}, 'there is no "random"'),
    "trials of a grid": (["train.sparsity=[0, 0.5]"], {"trials": 4}, "--trials goes with --sampler tpe"),
    "with halving": ([RATES], {"sampler": "tpe", "eta": 3}, "leave one of them out"),
    "low above high": (["train.learning_rate={low = 1, high = 0.1}"], {"sampler": "tpe"}, "low must be less than high"),
    "log of 0": (["train.learning_rate={low = 0, high = 0.1, log = true}"], {"sampler": "tpe"}, "above 0 where log is true"),
    "no range": (["train.learning_rate={lowest = 0}"], {"sampler": "tpe"}, "lowest"),
    "not TOML": (["train.learning_rate={low"], {"sampler": "tpe"}, "write it as KEY="),
    "unknown key": (["train.rate={low = 0, high = 1}"], {"sampler": "tpe"}, "is not a key of a recipe"),
    "a range of seeds": (["train.seed={low = 0, high = 9}"], {"sampler": "tpe"}, "is a seed"),
    "range and list": ([RATES, "train.learning_rate=[0.1]"], {"sampler": "tpe"}, "has a range and values"),
    "seeds alone": (["train.seed=[0, 1]"], {"sampler": "tpe"}, "nothing is varied but the seed"),
}


@pytest.mark.parametrize(("arguments", "options", "sentence"), BAD.values(), ids=BAD.keys())
def test_what_does_not_go_together_is_told(tmp_path: Path, arguments: list[str], options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        train_sweep("digits", arguments, out=tmp_path / "s", **options)  # type: ignore[arg-type]
