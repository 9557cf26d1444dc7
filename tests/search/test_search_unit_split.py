"""Cutting what curves read: exact on piecewise linear networks, sound on all, and no proof where there is none."""

from __future__ import annotations

from fractions import Fraction
from math import inf
from time import perf_counter

import numpy as np
import pytest
import torch
from search_nets import enclosed, exact_minimum, gemms
from test_search_curves import curve, network
from torch import Tensor

from vsparse.bounds import ball
from vsparse.errors import SoundnessError
from vsparse.graph import Clip, Graph, LeakyRelu, Node, Relu, Sigmoid, Tanh, run
from vsparse.search.branch_and_bound import prove
from vsparse.search.result import Limits
from vsparse.search.unit_split import applies, split_units

ROW = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)


def sampled(graph: Graph, box: tuple[Tensor, Tensor]) -> float:
    """The least value at many points, corners among them."""
    share = torch.rand(20000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share[:5000] = share[:5000].round()
    return float((run(graph, graph.tensors(torch.float64), box[0] + share * (box[1] - box[0])) @ ROW).min())


def cut(graph: Graph, box: tuple[Tensor, Tensor], threshold: float, contract: str = "fp32", domains: int = 2000, seconds: float = 120):
    rounding, boxes = enclosed(graph, box, contract)
    return split_units(graph, rounding, box, boxes, ROW, threshold, domains=domains, deadline=perf_counter() + seconds)


@pytest.mark.parametrize("seed", [1])
def test_on_relus_it_reaches_the_exact_minimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = gemms(rng, 3, 6, 4, 3)
    centre = torch.from_numpy(rng.uniform(0, 1, (1, 3)))
    box = centre - 0.4, centre + 0.4
    least = exact_minimum(graph, box, ROW)
    found = cut(graph, box, least - 0.1, "real")
    assert found.proved
    assert found.lower <= least + 1e-6
    assert not cut(graph, box, least + 1e-4, "real", domains=200).proved


KINDS: dict[str, list[Node]] = {
    "tanh": [curve(Tanh), curve(Tanh)],
    "sigmoid": [curve(Sigmoid), curve(Sigmoid)],
    "leaky": [curve(LeakyRelu, slope=0.25), curve(LeakyRelu, slope=0.25)],
    "clip and tanh": [curve(Clip, lowest=-1.0, highest=1.0), curve(Tanh)],
    "relu and sigmoid": [curve(Relu), curve(Sigmoid)],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contract", ["fp32", "real"])
def test_it_proves_more_than_crown_and_nothing_false(kind: str, contract: str) -> None:
    rng = np.random.default_rng(7)
    graph = network(KINDS[kind], rng)
    box = ball(torch.tensor(rng.random((1, 4)), dtype=torch.float32), Fraction(1, 10))
    rounding, boxes = enclosed(graph, box, contract)
    plain = float(prove(graph, rounding, box, boxes, ROW, -inf, Limits(domains=0)).lower)
    least = sampled(graph, box)
    found = cut(graph, box, plain + 0.3 * (least - plain), contract)
    assert found.proved
    assert plain < found.lower <= least
    wrong = cut(graph, box, least + 1e-6, contract, domains=60)
    assert not wrong.proved
    outcome = prove(graph, rounding, box, boxes, ROW, plain + 0.2 * (least - plain), Limits(domains=2000, seconds=120))
    assert outcome.proved
    assert applies(graph)


def test_a_point_that_violates_is_found_where_it_is_plain() -> None:
    graph = network(KINDS["tanh"], np.random.default_rng(2))
    box = ball(torch.full((1, 4), 0.5), Fraction(3, 10))
    found = cut(graph, box, 10.0)
    assert found.point is not None
    assert float(run(graph, graph.tensors(), found.point[None]) @ ROW.float()) <= 10.0
    assert bool((found.point >= box[0][0]).all() & (found.point <= box[1][0]).all())


def test_it_stops_at_its_limits() -> None:
    graph = network(KINDS["tanh"], np.random.default_rng(7))
    box = ball(torch.full((1, 4), 0.5), Fraction(1, 2))
    least = sampled(graph, box)
    late = cut(graph, box, least - 1e-3, seconds=-1)
    assert late.timed_out
    assert not late.proved
    few = cut(graph, box, least - 1e-3, domains=2)
    assert not few.proved
    assert few.domains <= 4


def test_boxes_that_contradict_an_execution_void_the_search() -> None:
    """A wrong bound must not look like an empty set."""
    graph = network(KINDS["tanh"], np.random.default_rng(3))
    box = ball(torch.full((1, 4), 0.5), Fraction(1, 10))
    rounding, boxes = enclosed(graph, box, "fp32")
    name = graph.nodes[0].name
    _, upper = boxes[name]
    with pytest.raises(SoundnessError, match="a bound is wrong"):
        split_units(graph, rounding, box, {**boxes, name: (upper + 1, upper + 2)}, ROW, 1e6, domains=1, deadline=perf_counter() + 60)
