"""Every shipped recipe trains: its budget can be met, and its first epoch runs, on random images of its dataset's shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vsparse import second_opinion
from vsparse.data import Dataset, Splits
from vsparse.graph import from_torch
from vsparse.graph.cost import weight_count
from vsparse.networks import make
from vsparse.recipe import load_recipe
from vsparse.stages.train import train
from vsparse.stages.train.granularity import make_pattern
from vsparse.stages.train.shrink import pack

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.toml"))
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28)}


def noise(count: int, shape: tuple[int, int, int], seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset(rng.integers(0, 256, (count, *shape)).astype(np.uint8), 255.0, rng.integers(0, 10, count), tuple("0123456789"), None)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_budget_removes_what_the_gate_wants_and_an_epoch_runs(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(path))
    shape = SHAPES.get(recipe.data.name, (3, 32, 32))
    graph = from_torch(make(recipe.network, shape, 10, recipe.data.mean, recipe.data.std), shape)
    total = sum(int(np.prod(graph.params[name].shape)) for name in weights_of(graph.params))
    pattern = make_pattern(recipe.train, graph)
    masks = pattern.choose(graph.tensors())
    budget = int(pattern.final_density * total + 1e-6)
    left = weight_count(pack(graph, masks).graph) if pattern.structured else sum(int(masks[name].sum()) for name in pattern.weights)
    assert left <= budget
    assert budget <= (1 - recipe.gates.weights_removed) * total

    if recipe.train.objective == "crown-ibp" and not second_opinion.is_available():
        pytest.skip("auto_LiRPA is not installed")
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 2, "batch_size": 16})})
    splits = Splits(noise(32, shape, 0), noise(8, shape, 1), noise(8, shape, 2), "noise", "0" * 64)
    result = train(short, splits, tmp_path, sparse=True)
    assert sum(int(mask.sum()) for mask in result.masks.values()) <= budget


def weights_of(params: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> list[str]:
    """The tensors of at least two axes: weights of the affine layers (constants of a normalisation are not hidden weights)."""
    return [name for name, value in params.items() if value.ndim >= 2 and "normalise" not in name]
