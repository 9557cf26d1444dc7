"""Recipes and data of the tests of keys that published trainings need."""

from __future__ import annotations

from typing import Any

from blob_data import blobs

from vsparse.data import Splits
from vsparse.recipe import Recipe

SPLITS = Splits(blobs(90, 0), blobs(30, 1), blobs(30, 2), "blobs", "0" * 64)


def wanted(architecture: str = "mlp", **train: Any) -> Recipe:
    base = {"batch_size": 30, "epochs": 4, "sparsity": 0, "learning_rate": 0.01, "regulariser": 0}
    return Recipe.model_validate(
        {
            "name": "t",
            "network": {"architecture": architecture, "width": 0.1},
            "property": {"epsilon": "0.05"},
            "train": {**base, **train},
        }
    )
