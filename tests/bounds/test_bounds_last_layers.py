"""Folding the property into the last linear operators: sound, and never looser than intervals of the logits."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from vsparse.bounds import Rounding, ball, interval, last_layer_folding, margin_rows
from vsparse.bounds.last_layers import last_layers
from vsparse.contract import CONTRACTS
from vsparse.graph import run
from vsparse.graph.ir import AddConstant, Conv, Gemm, Graph, Relu, Reshape


def network(rng: np.random.Generator) -> Graph:
    nodes = (
        Conv(name="c", inputs=("input",), shape=(3, 4, 4), weight="c", bias="cb", pads=(1, 1, 1, 1)),
        Relu(name="r", inputs=("c",), shape=(3, 4, 4)),
        Reshape(name="flat", inputs=("r",), shape=(48,)),
        Gemm(name="g", inputs=("flat",), shape=(4,), weight="g", bias=None),
        AddConstant(name="logits", inputs=("g",), shape=(4,), constant="k"),
    )
    shapes = {"c": (3, 1, 3, 3), "cb": (3,), "g": (4, 48), "k": (4,)}
    return Graph("input", (1, 4, 4), nodes, "logits", {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def test_the_chain_stops_at_the_last_relu() -> None:
    end = last_layers(network(np.random.default_rng(0)))
    assert end.input == "r"
    assert [node.name for node in end.nodes] == ["flat", "g", "logits"]


def test_by_hand() -> None:
    # z0 - z1 = (h + 3) - h = 3 exactly, though each logit ranges over [0, 1].
    nodes = (Relu(name="h", inputs=("input",), shape=(1,)), Gemm(name="z", inputs=("h",), shape=(2,), weight="w", bias="b"))
    graph = Graph("input", (1,), nodes, "z", {"w": np.ones((2, 1), np.float32), "b": np.array([3, 0], np.float32)})
    box = (torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    rounding = Rounding(graph, CONTRACTS["real"])
    boxes = interval(graph, rounding.params, box, rounding)
    assert float(boxes["z"][0][0, 0] - boxes["z"][1][0, 1]) == pytest.approx(2)
    assert float(last_layer_folding(graph, rounding.params, margin_rows(torch.tensor([0]), 2), boxes, rounding)[0, 0]) == pytest.approx(3)


@pytest.mark.parametrize("seed", range(20))
def test_no_point_breaks_it_and_it_is_no_looser(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = network(rng)
    rounding = Rounding(graph, CONTRACTS["fp32"])
    x = torch.from_numpy(rng.random((2, 1, 4, 4)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 4, 2))
    box = ball(x, Fraction(1, 20))
    boxes = interval(graph, rounding.params, box, rounding)
    rows = margin_rows(labels, 4)
    lower = last_layer_folding(graph, rounding.params, rows, boxes, rounding)
    low, high = boxes["logits"]
    plain = low.gather(1, labels[:, None]) - torch.stack([high[i][torch.arange(4) != labels[i]] for i in range(2)])
    assert bool((lower >= plain - 1e-5).all())
    for _ in range(300):
        share = torch.from_numpy(rng.choice([0.0, 1.0, rng.random()], size=box[0].shape))
        point = (box[0] + share * (box[1] - box[0])).float()
        point = torch.maximum(torch.minimum(point, box[1].float()), box[0].float())
        logits = run(graph, graph.tensors(torch.float32), point).double()
        inside = bool(((point.double() >= box[0]) & (point.double() <= box[1])).all())
        assert not inside or bool(((rows @ logits[:, :, None])[:, :, 0] >= lower).all())


def test_what_is_unknown_proves_nothing() -> None:
    graph = network(np.random.default_rng(1))
    rounding = Rounding(graph, CONTRACTS["fp32"])
    x = torch.full((1, 1, 4, 4), 0.5)
    boxes = interval(graph, rounding.params, ball(x, Fraction(1, 20)), rounding)
    boxes["r"] = (torch.full_like(boxes["r"][0], -torch.inf), torch.full_like(boxes["r"][1], torch.inf))
    assert bool((last_layer_folding(graph, rounding.params, margin_rows(torch.tensor([0]), 4), boxes, rounding) == -torch.inf).all())
