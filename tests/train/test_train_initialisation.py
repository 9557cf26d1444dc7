"""Initial weights: their deviations, their range, what keeps its own, and which objective takes which."""

from __future__ import annotations

from math import pi, sqrt

import pytest
import torch
from torch import Tensor, nn

from vsparse.graph import from_torch
from vsparse.graph.ir import Graph
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe_train import OBJECTIVES, Initialisation, Train
from vsparse.stages.train.checks import objection
from vsparse.stages.train.initialisation import initial_kind, initialise


def drawn(graph: Graph, kind: Initialisation) -> dict[str, Tensor]:
    params = graph.tensors()
    initialise(graph, params, torch.Generator().manual_seed(0), kind)
    return params


@pytest.fixture(scope="module")
def lenet() -> Graph:
    return from_torch(make(Network(architecture="lenet-300-100"), (1, 28, 28), 10), (1, 28, 28))


@pytest.mark.parametrize(
    ("kind", "deviation"),
    [("interval", sqrt(2 * pi) / 784), ("he", sqrt(2 / 784)), ("glorot", sqrt(6 / (784 + 300)) / sqrt(3))],
)
def test_weights_have_the_deviation_of_the_paper_and_no_bias(lenet: Graph, kind: Initialisation, deviation: float) -> None:
    params = drawn(lenet, kind)
    weight = params["fc1.weight"]
    assert float(weight.std()) == pytest.approx(deviation, rel=0.01)
    assert abs(float(weight.mean())) < 5 * deviation / sqrt(weight.numel())
    assert not params["fc1.bias"].any()


def test_glorot_is_uniform_and_counts_the_outputs_that_read_an_input() -> None:
    # 8 outputs in 4 groups of 2 channels: an output reads 2·9 values, an input value is read by 2·9 outputs.
    graph = from_torch(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.ReLU()), (8, 6, 6))
    (weight,) = (value for value in drawn(graph, "glorot").values() if value.dim() == 4)
    limit = sqrt(6 / (18 + 18))
    assert 0.9 * limit < float(weight.abs().max()) <= limit
    assert float((weight.abs() < limit / 2).float().mean()) == pytest.approx(0.5, abs=0.15)


def test_layers_of_fan_in_1_keep_their_parameters() -> None:
    graph = from_torch(make(Network(architecture="cnn4-clip"), (1, 28, 28), 10), (1, 28, 28))
    before = graph.tensors()
    for kind in ("interval", "he", "glorot"):
        after = drawn(graph, kind)
        assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("clip."))
        assert not torch.equal(after["conv1.weight"], before["conv1.weight"])


def test_objectives_with_bounds_start_from_the_interval_weights_and_others_from_he_unless_told() -> None:
    plain = ("natural", "fgsm", "pgd", "trades", "smoothing")
    for objective in OBJECTIVES:
        assert initial_kind(Train(objective=objective)) == ("he" if objective in plain else "interval")
    assert initial_kind(Train(initialisation="glorot")) == "glorot"


def test_a_module_may_bring_its_own_weights_but_not_where_they_are_drawn_anew(lenet: Graph) -> None:
    assert all(torch.equal(value, lenet.tensors()[name]) for name, value in drawn(lenet, "module").items())
    spec = {"initialisation": "module", "sparse": {"method": "lottery", "granularity": "element", "rewind": "random"}}
    assert "draws weights anew, and train.initialisation" in (objection(Train.model_validate(spec)) or "")
