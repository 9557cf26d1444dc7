"""Units that never fire: found by bounds over the boxes, and their weights the first to go."""

from __future__ import annotations

import pytest
import torch
from pattern_nets import SHAPE, graph_of, spec
from torch import nn

from vsparse.graph import from_torch, run
from vsparse.graph.ir import Affine, Graph, Relu
from vsparse.stages.train.bounds.margins import training_box
from vsparse.stages.train.dead_units import dead_units, without_dead_units
from vsparse.stages.train.granularity import make_pattern
from vsparse.stages.train.units import groups_of


def test_dead_units_by_hand() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, -1.0], [-1.0, -1.0]]))
        module[0].bias.copy_(torch.tensor([-0.5, -0.25, -0.25]))
    graph = from_torch(module, (2,))
    groups = groups_of(graph)
    x = torch.tensor([[0.25, 0.5], [0.125, 0.25]])
    # At the points: (−0.25, −0.5, −1) and (−0.375, −0.375, −0.625). A box of ±0.125 lifts them by 0.125, 0.25, 0.25 at most.
    for epsilon, dead in (
        (0.0, [True, True, True]),
        (0.125, [True, True, True]),
        (0.25, [True, False, True]),
        (0.3, [False, False, True]),
    ):
        found = dead_units(graph, graph.tensors(), groups, [(x - epsilon, x + epsilon)])
        assert found[groups[0].name].tolist() == dead
    # One box in which a unit fires is enough.
    boxes = [(x - 0.125, x + 0.125), (x + 0.5, x + 0.5)]
    assert dead_units(graph, graph.tensors(), groups, boxes)[groups[0].name].tolist() == [False, True, True]


def following(graph: Graph, name: str) -> str:
    """Returns the ReLU behind an affine layer, through a batch norm or not."""
    (reader,) = graph.consumers()[name]
    return reader.name if isinstance(reader, Relu) else following(graph, reader.name)


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise"])
def test_a_silent_unit_fires_nowhere_in_the_boxes(name: str) -> None:
    graph = graph_of(name)
    params = graph.tensors()
    for node in graph.nodes:
        if isinstance(node, Affine) and node.bias is not None and node.name != graph.output:
            # Biases spread far enough that some units never fire.
            params[node.bias] = torch.linspace(-3, 1, len(params[node.bias]))
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(20, *SHAPE, generator=generator)
    lower, upper = training_box(x, 0.1)
    groups = groups_of(graph)
    found = dead_units(graph, params, groups, [(lower[:10], upper[:10]), (lower[10:], upper[10:])])
    assert found
    for group, dead in found.items():
        for _ in range(30):
            point = lower + torch.rand(lower.shape, generator=generator) * (upper - lower)
            activation = run(graph, params, point, True)[following(graph, group)]
            assert float(activation.transpose(0, 1)[dead].abs().max()) == 0


def test_the_weights_of_dead_units_are_the_first_to_go() -> None:
    graph = graph_of("plain")
    for granularity in ("element", "channel", "block"):
        pattern = make_pattern(spec(0.8, granularity=granularity, allocation="global", block=(1, 2)), graph)
        params = graph.tensors()
        group = pattern.groups[1]
        dead = torch.zeros(group.count, dtype=torch.bool)
        dead[:3] = True
        # The largest weights of all are those of the dead units.
        weight = group.producers[0][0]
        params[weight] = params[weight].clone()
        params[weight][:3] *= 100
        assert bool(pattern.choose(params).entries[weight][:3].any())
        kept = pattern.choose(params, None, {group.name: dead}).entries
        assert not kept[weight][:3].any()
        reader, spread = group.consumers[0]
        if granularity == "element":
            assert not kept[reader][:, : 3 * spread].any()
        assert int(kept[weight].sum()) > 0


def test_saliencies_of_other_units_are_kept() -> None:
    graph = graph_of("residual")
    groups = groups_of(graph)
    saliency = {name: value.abs() for name, value in graph.tensors().items()}
    group = next(group for group in groups if len(group.producers) == 1 and group.consumers)
    dead = torch.arange(group.count) == 1
    found = without_dead_units(saliency, groups, {group.name: dead})
    changed = {name for name in saliency if not torch.equal(found[name], saliency[name])}
    assert changed == {group.producers[0][0], *(weight for weight, _ in group.consumers)}
    assert not found[group.producers[0][0]][1].any()
    others = ~dead
    assert torch.equal(found[group.producers[0][0]][others], saliency[group.producers[0][0]][others])
