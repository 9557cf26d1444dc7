"""Scales of int8 networks: equalised channels compute the same, the search finds what certifies more, and says nothing of the rest."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from vsparse.errors import InputError
from vsparse.graph import Conv, FakeQuant, Gemm, Graph, MaxPool, Relu, Reshape, run
from vsparse.graph.quantised import check_integer_execution
from vsparse.perturbation import PerturbationSet
from vsparse.stages.export.equalise import equalised, pairs, reaches
from vsparse.stages.export.fit import MarginLoss, fitted
from vsparse.stages.export.quantise import quantise

PERTURBATION = PerturbationSet(epsilon=Fraction("0.02"))


def uneven(seed: int) -> tuple[Graph, np.ndarray]:
    """A convolution whose channels differ a hundredfold, a pool, a flattened linear layer, and logits."""
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-1, 1, 4)
    params = {
        "w0": rng.normal(size=(4, 1, 3, 3)) * size[:, None, None, None],
        "b0": 0.1 * rng.normal(size=4) * size,
        "w1": rng.normal(size=(5, 16)) / np.repeat(size, 4),
        "b1": rng.normal(size=5),
        "w2": rng.normal(size=(3, 5)),
    }
    nodes = (
        Conv(name="c", inputs=("x",), shape=(4, 4, 4), weight="w0", bias="b0"),
        Relu(name="r", inputs=("c",), shape=(4, 4, 4)),
        MaxPool(name="p", inputs=("r",), shape=(4, 2, 2), kernel=(2, 2), stride=(2, 2)),
        Reshape(name="f", inputs=("p",), shape=(16,)),
        Gemm(name="z", inputs=("f",), shape=(5,), weight="w1", bias="b1"),
        Relu(name="s", inputs=("z",), shape=(5,)),
        Gemm(name="y", inputs=("s",), shape=(3,), weight="w2", bias=None),
    )
    graph = Graph("x", (1, 6, 6), nodes, "y", {name: value.astype(np.float32) for name, value in params.items()})
    return graph, rng.random((96, 1, 6, 6), dtype=np.float32)


def found_reaches(graph, samples):
    values = run(graph, graph.tensors(), torch.from_numpy(samples), keep=True)
    return {pair: reaches(graph, pair, values[pair.between].numpy()) for pair in pairs(graph)}


def test_equalised_channels_reach_equally_far_and_compute_the_same():
    graph, samples = uneven(0)
    found = found_reaches(graph, samples)
    assert [(pair.first.name, pair.second.name, pair.between) for pair in found] == [("c", "z", "f"), ("z", "y", "s")]
    made = equalised(graph, found, dict.fromkeys(found, 1.0))
    before, after = (run(one, one.tensors(torch.float64), torch.from_numpy(samples).double()) for one in (graph, made))
    assert torch.allclose(before, after, rtol=1e-5, atol=1e-5)
    for reach in found_reaches(made, samples).values():
        assert np.allclose(reach, reach.max(), rtol=1e-4)
    assert all(
        np.array_equal(value, made.params[name]) == (name not in {"w0", "b0", "w1", "b1", "w2"}) for name, value in graph.params.items()
    )
    same = equalised(graph, found, {})
    assert all(np.array_equal(value, same.params[name]) for name, value in graph.params.items())


def test_zeros_stay_zeros_and_dead_channels_change_by_little():
    graph, samples = uneven(1)
    graph.params["w0"][2] = 0
    graph.params["b0"][2] = -1
    made = equalised(graph, found_reaches(graph, samples), dict.fromkeys(pairs(graph), 1.0))
    assert not made.params["w0"][2].any()
    assert made.params["b0"][2] == -64
    assert all(np.isfinite(value).all() for value in made.params.values())


def test_what_is_read_elsewhere_is_not_scaled():
    graph, _ = uneven(2)
    (branch,) = (node for node in graph.nodes if node.name == "s")
    twice = Relu(name="t", inputs=("z",), shape=(5,))
    other = Graph("x", graph.input_shape, (*graph.nodes[:-1], twice, graph.nodes[-1]), "y", graph.params)
    assert branch.inputs == twice.inputs
    assert [pair.first.name for pair in pairs(other)] == ["c"]


@pytest.mark.parametrize("seed", range(2))
def test_chosen_scales_certify_no_less_by_the_measure_and_far_more_where_channels_differ(seed):
    graph, samples = uneven(seed)
    calls = []

    def quantised(one, shares):
        calls.append(dict(shares))
        return quantise(one, samples, shares=shares)

    made = fitted(graph, samples, PERTURBATION, quantised).quantised
    check_integer_execution(made)
    measure = MarginLoss(graph, samples, PERTURBATION, 10)
    assert measure(made) < measure(quantise(graph, samples))
    again = fitted(graph, samples, PERTURBATION, quantised).quantised
    assert all(np.array_equal(value, again.params[name]) for name, value in made.params.items())
    assert len(calls) == 2 * (1 + 3 * 2 + 3 * 2)  # one plain, three strengths of two pairs, three shares of two grids
    assert calls[0] == {}


def test_shares_narrow_the_grid_and_other_choices_that_fail_are_passed_over():
    graph, samples = uneven(3)
    grids = [
        {node.inputs[0]: node.scale for node in quantise(graph, samples, shares=one).nodes if isinstance(node, FakeQuant)}
        for one in ({}, {"s": 0.5})
    ]
    assert grids[1]["s"] == pytest.approx(grids[0]["s"] / 2)
    assert {name: scale for name, scale in grids[1].items() if name != "s"} == {
        name: scale for name, scale in grids[0].items() if name != "s"
    }

    def plain_alone(one, shares):
        if one is not graph or shares:
            raise InputError("cannot be quantised")
        return quantise(one, samples)

    made = fitted(graph, samples, PERTURBATION, plain_alone).quantised
    assert all(np.array_equal(value, made.params[name]) for name, value in quantise(graph, samples).params.items())
    with pytest.raises(InputError, match="calibration needs samples"):
        fitted(graph, samples[:0], PERTURBATION, lambda one, shares: quantise(one, samples[:0], shares=shares))
