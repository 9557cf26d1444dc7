"""The embedded default of regression, small: trained, certified, written as C, checked, and told without nonsense."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tiny_build import TINY
from vsparse.data import load
from vsparse.errors import InputError
from vsparse.pipeline.build import build
from vsparse.recheck import recheck as check
from vsparse.recipe import Data
from vsparse.stages.export.c_source.compile import CompiledModel
from vsparse_check.artifact import check as check_alone
from vsparse_check.samples import SampleData

SETTINGS = [
    *(one for one in TINY if "gates.latency_ratio" not in one),
    "property.delta=30",
    "property.samples=0",
    "train.epochs=40",
    "train.learning_rate=0.005",
    "train.sparsity=0.5",
    "train.baseline=false",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("regression") / "out"
    result = build("regression", out=directory, settings=SETTINGS, jobs=2)
    assert result.passed, [gate for gate in result.gates if gate.passed is False]
    figures = result.figures["sparse"]
    assert figures["mean_absolute_error"] < figures["constant_mean_absolute_error"]
    assert "clean_accuracy" not in figures
    assert "majority_accuracy" not in figures
    return directory


def test_both_checkers_confirm_it_and_know_its_data(built: Path) -> None:
    found = check(built)
    assert (found.verdict, found.problem) == ("confirmed", "")
    assert found.certified > 0
    test = load(Data(name="diabetes"), None, 0).test
    assert test.targets is not None
    inputs = test.inputs()
    same = check_alone(built, data=SampleData(inputs, test.targets))
    assert same.passed
    assert all(one.same_data for one in same.certificates)
    assert not check_alone(built, data=SampleData(inputs, test.targets + 1)).passed


def test_the_answers_are_in_the_unit_of_the_target(built: Path) -> None:
    claims = json.loads((built / "certificate/sequential/certificate.json").read_text())["claims"]
    with CompiledModel(built / "model/model.c", (10, 1, 1), 1) as compiled:
        answers = compiled.logits(load(Data(name="diabetes"), None, 0).test.inputs(slice(0, len(claims)))).ravel()
    assert [claim["value"] for claim in claims] == answers.astype(np.float64).tolist()
    assert 80 < answers.mean() < 230


def test_the_report_says_nothing_of_classes_and_images(built: Path) -> None:
    page = (built / "report.html").read_text()
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    for word in ("image", "pixel", "classified", "largest class", "Clean accuracy"):
        assert word not in text.partition("Check it yourself")[0], word
    assert "Mean absolute error" in text


def test_a_sweep_of_numbers_is_refused(tmp_path: Path) -> None:
    from vsparse.sweep import train_sweep

    with pytest.raises(InputError, match="predicts a number"):
        train_sweep("regression", ["train.learning_rate=[0.1]"], out=tmp_path / "s")
