"""Regression in training: the robust squared error by hand, the targets' scale, the measure of epochs, and recipes that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vsparse.data import Dataset, load
from vsparse.errors import InputError
from vsparse.graph import Gemm, Graph, Relu, Reshape, run
from vsparse.majority import against_mean
from vsparse.recipe import Data, Recipe, load_recipe
from vsparse.recipe_train import Train
from vsparse.stages.train.answer_scale import AnswerScale, last_layer
from vsparse.stages.train.objectives import TrainingBatch, make_objective
from vsparse.stages.train.samples import Samples
from vsparse.stages.train.validation import Validation


def net(weight: list[list[float]], bias: list[float], outputs: int = 1) -> Graph:
    """relu(x0 - x1), then a linear layer."""
    nodes = (
        Reshape(name="flat", inputs=("input",), shape=(2,)),
        Gemm(name="z", inputs=("flat",), shape=(1,), weight="w0", bias="b0"),
        Relu(name="a", inputs=("z",), shape=(1,)),
        Gemm(name="y", inputs=("a",), shape=(outputs,), weight="w1", bias="b1"),
    )
    values = {"w0": [[1, -1]], "b0": [0], "w1": weight, "b1": bias}
    params = {name: np.array(value, np.float32) for name, value in values.items()}
    return Graph(input="input", input_shape=(2, 1, 1), nodes=nodes, output="y", params=params)


def split(points: list[list[float]], targets: list[float]) -> Dataset:
    pixels = np.array(points, np.float32)[:, :, None, None]
    return Dataset(pixels, 1.0, np.zeros(len(points), np.int64), ("value",), None, np.array(targets, np.float64))


@pytest.mark.parametrize(("kappa", "wanted"), [(1.0, 0.25), (0.0, 0.4225), (0.5, 0.33625)])
def test_the_loss_by_hand(kappa: float, wanted: float) -> None:
    # f = 2 relu(x0 - x1); at (0.5, 0.25) 0.5, and within 0.0375 of each input from 0.35 to 0.65. Target 0: at most 0.65 squared.
    graph = net([[2]], [0])
    objective = make_objective(Train(objective="regression"), graph, {})
    x = torch.tensor([[0.5, 0.25]]).view(1, 2, 1, 1)
    batch = TrainingBatch(x, torch.tensor([0.0]), 0.0375, 0.0375, kappa, False, torch.Generator())
    assert float(objective(graph.tensors(), batch).value) == pytest.approx(wanted, rel=1e-5)


def test_epochs_are_measured_by_the_variance_explained() -> None:
    data = split([[0.5, 0.25], [0.25, 0.5]], [0.5, -1])
    validation = Validation(Samples.of(data, scale=AnswerScale(0.0, 1.0)), 0.0375, "explained", 1)
    found = validation(net([[2]], [0]), {name: torch.from_numpy(value) for name, value in net([[2]], [0]).params.items()})
    # Errors 0 and 1; the worst ones 0.15 (of 0.35 to 0.65) and 1: where relu is 0, f does not move.
    assert found.measure == "explained"
    assert found.clean == pytest.approx(1 - 1 / 2)
    assert found.robust == pytest.approx(1 - (0.0225 + 1) / 2, rel=1e-5)


def test_the_scale_of_targets_is_undone_in_the_last_layer() -> None:
    data = split([[0.5, 0.25], [1, 0], [0, 1]], [10, 30, 80])
    scale = AnswerScale.of(data)
    assert scale is not None
    assert scale.standardised(np.array([scale.mean, scale.mean + scale.deviation])).tolist() == [0, 1]
    graph = net([[2]], [0.5])
    x = torch.from_numpy(data.inputs())
    before, after = (run(one, one.tensors(), x).numpy().ravel() for one in (graph, scale.undone(graph)))
    np.testing.assert_allclose(after, before * scale.deviation + scale.mean, rtol=1e-6)
    assert AnswerScale.of(Dataset(data.pixels, 1.0, data.labels, ("a", "b"), None)) is None
    with pytest.raises(InputError, match="nothing to predict"):
        AnswerScale.of(split([[0, 0], [1, 1]], [3, 3]))
    with pytest.raises(InputError, match=r"torch.nn.Linear\(units, 1\)"):
        last_layer(net([[2], [1]], [0, 0], 2))


def test_diabetes_is_bundled_scaled_and_split() -> None:
    splits = load(Data(name="diabetes"), None, 0)
    parts = (splits.train, splits.validation, splits.test)
    assert sum(map(len, parts)) == 442
    whole = np.concatenate([part.pixels for part in parts])
    assert whole.shape == (442, 10, 1, 1)
    assert whole.min(axis=0).max() == 0
    assert whole.max(axis=0).min() == 1
    targets = np.concatenate([part.targets for part in parts if part.targets is not None])
    assert (targets.min(), targets.max()) == (25, 346)
    assert targets.mean() == pytest.approx(152.13, abs=0.01)
    assert load(Data(name="diabetes"), None, 1).sha256 != splits.sha256 == load(Data(format="diabetes", name="diabetes"), None, 0).sha256


def test_a_constant_answer_is_not_better_than_the_mean() -> None:
    targets = [float(value) for value in range(40)]
    assert not against_mean(targets, [19.5] * 40).beaten
    assert not against_mean(targets, [100.0 - one for one in targets]).beaten
    assert against_mean(targets, targets).beaten
    assert against_mean([1.0, 2.0], [None, float("nan")]).correct == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["property.delta=0"], "property.delta, the most that it may change, is 0"),
        (["property.delta=-1"], "outside the range"),
        (["property.delta=nan"], "is not a number"),
        (["train.objective=ibp"], 'train.objective = "ibp" is about classes'),
        (["deploy.live=true"], "deploy.live certifies classes alone"),
        (["export.precisions=['int8']"], "certified of classes alone"),
        (["data.name=digits", "data.format=digits"], "property.delta is about regression"),
        (["data.name=digits", "data.format=digits", "property.delta=0"], 'train.objective = "regression" is about regression'),
    ],
)
def test_recipes_that_do_not_fit_regression(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe("regression", settings)


def test_a_classifier_takes_no_delta() -> None:
    with pytest.raises(InputError, match="is about regression"):
        load_recipe("digits", ["property.delta=1"])
    kept: dict[str, Any] = Recipe(name="x").model_dump(mode="json")["property"]
    assert "delta" not in kept
    assert Recipe(name="x").property.perturbation.model_dump(mode="json").keys() == {"norm", "epsilon", "clip"}
