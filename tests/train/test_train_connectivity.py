"""Choosing by magnitude: layer-adaptive scores, and nothing kept that leads nowhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pattern_nets import graph_of, magnitudes, spec
from torch import nn

from vsparse.graph import from_torch
from vsparse.graph.ir import Affine, Graph
from vsparse.stages.train.granularity import make_pattern
from vsparse.stages.train.granularity.allocated import layer_adaptive
from vsparse.stages.train.granularity.connectivity import dead_entries
from vsparse.stages.train.granularity.element import ElementPattern
from vsparse.stages.train.units import groups_of


def test_layer_adaptive_scores_by_hand() -> None:
    scores = layer_adaptive(torch.tensor([[1.0, 3.0], [2.0, 0.0]]))
    assert scores.flatten().tolist() == pytest.approx([1 / 14, 1.0, 4 / 13, 0.0])
    # What is least in a layer scores less than what is largest in any other, whatever their scales.
    assert torch.equal(layer_adaptive(torch.zeros(3)), torch.zeros(3))
    assert layer_adaptive(1000 * torch.tensor([1.0, 3.0]))[0] == pytest.approx(0.1)


def test_lamp_does_not_depend_on_the_scale_of_a_layer() -> None:
    graph = graph_of("plain")
    pattern = ElementPattern(graph, spec(0.8, granularity="element", allocation="lamp"))
    params = graph.tensors()
    first = pattern.weights[0]
    scaled = {**params, first: 64 * params[first]}
    assert pattern.counts(scores=magnitudes(pattern, params)) == pattern.counts(scores=magnitudes(pattern, scaled))


# Connectivity.


def chain(*sizes: int) -> Graph:
    """A fully connected network of ReLUs."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return from_torch(nn.Sequential(*layers[:-1]), (sizes[0],))


def test_dead_entries_by_hand() -> None:
    graph = chain(2, 3, 2)
    first, second = (node.weight for node in graph.nodes if isinstance(node, Affine))
    masks = {
        first: torch.tensor([[True, False], [True, True], [False, False]]),
        second: torch.tensor([[True, False, True], [False, False, True]]),
    }
    dead = dead_entries(groups_of(graph), masks)
    # Unit 1 is read by nobody, unit 2 reads nothing.
    assert dead[first].tolist() == [[False, False], [True, True], [False, False]]
    assert dead[second].tolist() == [[False, False, True], [False, False, True]]
    whole = {name: torch.ones_like(mask) for name, mask in masks.items()}
    assert dead_entries(groups_of(graph), whole) == {}


@pytest.mark.parametrize("granularity", ["element", "block"])
@pytest.mark.parametrize("allocation", ["uniform", "global", "lamp"])
def test_what_is_chosen_leads_somewhere(granularity: str, allocation: str) -> None:
    graph = chain(20, 30, 30, 5)
    generator = torch.Generator().manual_seed(0)
    params = {name: torch.randn(value.shape, generator=generator) for name, value in graph.tensors().items()}
    wanted = spec(0.95, granularity=granularity, allocation=allocation, block=(2, 1))
    pattern = make_pattern(wanted, graph)
    scores = magnitudes(pattern, params)
    plain = pattern.masks(pattern.top(scores, pattern.counts(scores=scores)), params).entries
    chosen = pattern.choose(params).entries

    def lost(masks: dict[str, torch.Tensor]) -> int:
        return sum(int(dead.sum()) for dead in dead_entries(groups_of(graph), masks).values())

    assert lost(plain) > 0
    # A block goes only when nothing of it leads anywhere.
    assert lost(chosen) < (lost(plain) / 2 if granularity == "element" else lost(plain))
    # The budget is as full as before.
    assert sum(int(chosen[name].sum()) for name in chosen) >= sum(int(plain[name].sum()) for name in plain) - 2
