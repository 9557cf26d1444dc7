"""Every objective of the table takes a step, every sparsifier says what it removes, and both have their row in docs/training.md."""

from __future__ import annotations

import re
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from blob_data import blobs
from torch import Tensor

from vsparse import second_opinion
from vsparse.data import Splits
from vsparse.recipe import Recipe
from vsparse.recipe_train import METHODS, OBJECTIVES, REGRESSION
from vsparse.stages.train.objectives import TrainingBatch, objective_class
from vsparse.stages.train.sparsifiers import sparsifier_class
from vsparse.stages.train.trainer import Trainer

SPLITS = Splits(blobs(24, 0), blobs(12, 1), blobs(12, 2), "blobs", "0" * 64)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "training.md"
EPSILON = 0.05
# That of numbers has data of its own (test_train_regression.py).
OF_CLASSES = [name for name in OBJECTIVES if name != REGRESSION]
# A row of a table with all names of its first cell; the heading is none.
ROW = re.compile(r"^\| ((?:`[^`|]+`(?:, )?)+) \|(?!.*\n\| ---)", re.M)


def recipe(**train: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "network": {"architecture": "mlp", "width": 0.05},
            "property": {"epsilon": str(EPSILON)},
            "train": {"batch_size": 8, "sparsity": 0, **train},
        }
    )


def engines() -> list[tuple[str, str]]:
    """Returns every objective with every engine that it can be trained with."""
    found = [(name, "vsparse") for name in OF_CLASSES]
    return found + [(name, engine) for name in OF_CLASSES for engine in objective_class(recipe(objective=name).train).engines]


def documented(heading: str) -> set[str]:
    """Returns the names in the first column of the tables below a heading of docs/training.md."""
    section = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.M)
    text = next(part for part in section if part.startswith(heading))
    return {name for cell in ROW.findall(text) for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("kappa", [0.0, 0.5])
@pytest.mark.parametrize(("name", "engine"), engines())
def test_every_objective_takes_a_step(tmp_path: Path, name: str, engine: str, kappa: float) -> None:
    """At the full radius, halfway to it, and with the bounds that terms of the loss ask for."""
    if engine == "auto_lirpa" and not second_opinion.is_available():
        pytest.skip("auto_LiRPA is not installed")
    trainer = Trainer(recipe(objective=name, engine=engine), SPLITS, tmp_path, False)
    chosen = objective_class(trainer.spec)
    assert chosen.report
    trainer.stepper.prepare()
    x, labels = trainer.train.inputs(torch.arange(8)), trainer.train.labels[:8]
    for epsilon in (EPSILON, EPSILON / 2):
        before: dict[str, Tensor] = {key: value.detach().clone() for key, value in trainer.state.params.items()}
        batch = TrainingBatch(x, labels, epsilon, EPSILON, kappa, chosen.certified, torch.Generator().manual_seed(0))
        loss, norm = trainer.stepper.step(batch, epsilon / EPSILON, 0.01, 1.0)
        assert isfinite(loss)
        assert isfinite(norm)
        assert norm > 0
        for key, value in trainer.state.params.items():
            assert bool(torch.isfinite(value).all()), key
            assert key.endswith("bias") or not torch.equal(value, before[key]), key


def test_every_objective_has_its_row() -> None:
    if not DOCUMENT.exists():
        pytest.skip("the documents are not beside the tests")
    assert documented("Objectives") == set(OBJECTIVES)


def test_every_sparsifier_has_its_row_and_says_what_it_removes() -> None:
    for name in METHODS:
        chosen = sparsifier_class(recipe(sparse={"method": name, "granularity": "element"}).train)
        assert isinstance(chosen.removes_channels, bool)
        assert "magnitude" in chosen.importances
    if not DOCUMENT.exists():
        pytest.skip("the documents are not beside the tests")
    assert documented("Sparsifiers") == set(METHODS)
