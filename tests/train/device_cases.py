"""Trainings for the tests on devices: each objective with each sparsifier and granularity that goes with it, small."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blob_data import blobs

from vsparse.data import Splits
from vsparse.recipe import Recipe
from vsparse.recipe_train import METHODS, OBJECTIVES, REGRESSION
from vsparse.stages.train.loop import train
from vsparse.stages.train.result import TrainResult

SPLITS = Splits(blobs(24, 0), blobs(10, 1), blobs(10, 2), "blobs", "0" * 64)
GRANULARITIES = ("channel", "element", "block", "2:4")
SPARSITY = {"element": 0.6, "block": 0.6, "2:4": 0.4, "channel": 0.5}

Case = tuple[str, str, str]

# That of numbers has data of its own.
OF_CLASSES = [name for name in OBJECTIVES if name != REGRESSION]


def cases() -> list[Case]:
    """Returns every objective × sparsifier × granularity that a recipe may ask for."""
    return [
        (objective, method, granularity)
        for objective, method, granularity in product(OF_CLASSES, METHODS, GRANULARITIES)
        if not (granularity == "channel" and method in ("rigl", "set", "snip"))
    ]


def covering() -> list[Case]:
    """Returns few cases among which every two values of different columns that go together stand side by side at least once."""
    missing = {pair for case in cases() for pair in _pairs(case)}
    chosen: list[Case] = []
    while missing:
        best = max(cases(), key=lambda case: len(missing & _pairs(case)))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def few() -> list[Case]:
    """Returns one case for every sparsifier and granularity, in which the objectives take turns."""
    pairs = list(dict.fromkeys(case[1:] for case in cases()))
    names = list(OF_CLASSES)
    return [(names[number % len(names)], *pair) for number, pair in enumerate(pairs)]


def _pairs(case: Case) -> set[tuple[Any, ...]]:
    return {(i, case[i], j, case[j]) for i in range(3) for j in range(i)}


def recipe(
    objective: str,
    method: str,
    granularity: str,
    device: str,
    architecture: str = "mlp",
    sparse_keys: dict[str, Any] | None = None,
    **settings: Any,
) -> Recipe:
    """Returns a recipe of a few epochs in which masks are chosen, moved and fixed; draws are those of any device."""
    sparse = {
        "method": method,
        "granularity": granularity,
        "block": [2, 2],
        "allocation": "uniform",
        "conv_share": 1.0,
        "freeze": 0.7,
        "prune_epochs": 1,
        "prune_learning_rate": 0.01,
        "finetune_epochs": 1,
        **(sparse_keys or {}),
    }
    return Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "blobs", "shift": 1, "flip": True},
            "network": {"architecture": architecture, "width": 0.05 if architecture == "cnn5" else 0.2},
            "property": {"epsilon": "0.05"},
            "train": {
                "objective": objective,
                "epochs": 3,
                "batch_size": 12,
                "learning_rate": 0.01,
                "warmup": 0,
                "ramp": 0.5,
                "sparsity": SPARSITY[granularity],
                "sparse": sparse,
                "loss": {"attack_steps": 2, "attack_restarts": 2},
                "kappa_end": 0.25,
                "device": device,
                "draws": "counter",
                **settings,
            },
        }
    )


def alike(a: TrainResult, b: TrainResult) -> None:
    """Asserts that two devices trained the same, up to what orders of sums may change."""
    assert a.graph.nodes == b.graph.nodes
    for name, mask in a.masks.items():
        assert np.array_equal(mask, b.masks[name])
    for name, value in a.graph.params.items():
        np.testing.assert_allclose(value, b.graph.params[name], rtol=1e-4, atol=1e-6)
    for row, other in zip(a.history, b.history, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert [row[key] for key in ("clean", "certified", "density")] == [other[key] for key in ("clean", "certified", "density")]


def trained(wanted: Recipe, folder: Path, sparse: bool = True) -> TrainResult:
    """Returns what the recipe trains on the blobs."""
    folder.mkdir(exist_ok=True)
    return train(wanted, SPLITS, folder, sparse=sparse)
