"""Networks whose curves are no ReLUs, or not all: the search has little or nothing to choose, and what it claims is still true."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from vsparse.bounds import Rounding, ball, crown, interval, refine
from vsparse.contract import CONTRACTS
from vsparse.graph import Clip, Gemm, Graph, LeakyRelu, Node, Relu, Sigmoid, Tanh, run
from vsparse.search.branch_and_bound import prove
from vsparse.search.result import Limits


def network(curves: list[Node], rng: np.random.Generator) -> Graph:
    nodes: list[Node] = []
    params: dict[str, np.ndarray] = {}
    before = "x"
    for i, curve in enumerate([*curves, None]):
        size = 3 if curve is None else 8
        params[f"w{i}"] = (rng.normal(size=(size, 4 if i == 0 else 8))).astype(np.float32)
        nodes.append(Gemm(name=f"g{i}", inputs=(before,), shape=(size,), weight=f"w{i}", bias=None))
        if curve is not None:
            before = f"f{i}"
            nodes.append(type(curve)(**{**vars(curve), "name": before, "inputs": (f"g{i}",)}))
    return Graph("x", (4,), tuple(nodes), nodes[-1].name, params)


def curve(kind: type[Node], **fields: float) -> Node:
    return kind(name="", inputs=(), shape=(8,), **fields)


KINDS = {
    "leaky": [curve(LeakyRelu, slope=0.25), curve(LeakyRelu, slope=0.25)],
    "clip and tanh": [curve(Clip, lowest=-1.0, highest=1.0), curve(Tanh)],
    "relu before sigmoid": [curve(Relu), curve(Sigmoid)],
    "sigmoid before relu": [curve(Sigmoid), curve(Relu)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_proved_holds_and_nothing_breaks(kind: str) -> None:
    rng = np.random.default_rng(7)
    proved = given_up = 0
    for _ in range(1):
        graph = network(KINDS[kind], rng)
        rounding = Rounding(graph, CONTRACTS["fp32"])
        box = ball(torch.tensor(rng.random((1, 4)), dtype=torch.float32), Fraction(1, 10))
        boxes = refine(graph, rounding.params, box, interval(graph, rounding.params, box, rounding), rounding)
        row = torch.tensor([1.0, -1, 0.5], dtype=torch.float64)
        plain = float(crown(graph, rounding.params, box, row.unsqueeze(0), boxes, rounding)[0, 0])
        points = box[0] + torch.rand(4000, 4, dtype=torch.float64) * (box[1] - box[0])
        lowest = float((run(graph, rounding.params, points) @ row).min())
        for threshold in (plain - 0.1, (plain + lowest) / 2, lowest + 0.01):
            found = prove(graph, rounding, box, boxes, row, threshold, Limits(domains=8))
            proved, given_up = proved + found.proved, given_up + (not found.proved)
            assert not (found.proved and lowest < found.lower)
    assert proved >= 1
    assert given_up >= 1
