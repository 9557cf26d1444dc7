"""Coupled units: which tensors stand and fall together, and that removing them leaves the masked network's function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vsparse.errors import InputError
from vsparse.graph import fold_batch_norm, from_torch, run
from vsparse.graph.ir import Affine, BatchNorm, Conv, Graph
from vsparse.networks import ARCHITECTURES, make
from vsparse.recipe import Network
from vsparse.stages.compress import compress
from vsparse.stages.train.masks import Masks
from vsparse.stages.train.packing import pack
from vsparse.stages.train.result import finish
from vsparse.stages.train.units import UnitGroup, groups_of, unit_norms

SHAPE = (2, 8, 8)
WIDTH = {"vgg16": 0.03, "resnet18": 0.06, "wrn-28-4": 0.1, "mobile": 0.2}


def graph_of(name: str, shape: tuple[int, int, int] = SHAPE) -> Graph:
    return from_torch(make(Network(architecture=name, width=WIDTH.get(name, 0.1)), shape, 5, seed=1), shape)


def drawn(graph: Graph, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Returns parameters at random, statistics, scales and shifts of batch norms too, so that nothing is zero by chance."""
    generator = torch.Generator().manual_seed(seed)
    params = {name: torch.randn(value.shape, generator=generator, dtype=torch.float64) for name, value in graph.params.items()}
    for node in graph.nodes:
        if isinstance(node, BatchNorm):
            params[node.variance] = params[node.variance].square() + 0.5
        elif isinstance(node, Affine):
            params[node.weight] *= params[node.weight][0].numel() ** -0.5
    return {name: value.to(dtype) for name, value in params.items()}


def random_masks(graph: Graph, seed: int) -> Masks:
    """Returns masks that keep a random part of each group's units, at least one, in the form in which training hands them on."""
    generator = torch.Generator().manual_seed(seed)
    masks = Masks()
    tensors = graph.tensors()
    for group in groups_of(graph):
        keep = torch.rand(group.count, generator=generator) < 0.6
        keep[torch.randint(group.count, (1,), generator=generator)] = True
        masks.groups[group.name] = keep
        for name, mask in group.masks(keep, tensors).items():
            masks.entries[name] = masks.entries[name] & mask if name in masks.entries else mask.clone()
    return masks


def masked(params: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    return {name: value * masks.entries[name] if name in masks.entries else value for name, value in params.items()}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_hidden_unit_of_every_architecture_belongs_to_one_group(name: str) -> None:
    graph = graph_of(name, (1, 8, 8))
    groups = groups_of(graph)
    rows = [weight for group in groups for weight, _ in group.producers]
    columns = [weight for group in groups for weight, _ in group.consumers]
    norms = [scale for group in groups for scale, _ in group.norms]
    depthwise = [node.weight for node in graph.nodes if isinstance(node, Conv) and node.groups > 1]
    affine = [node for node in graph.nodes if isinstance(node, Affine)]
    assert sorted(rows) == sorted(node.weight for node in affine if node.name != graph.output)
    assert sorted(columns) == sorted(node.weight for node in affine[1:] if node.weight not in depthwise)  # the first reads the input
    assert sorted(norms) == sorted(node.scale for node in graph.nodes if isinstance(node, BatchNorm))
    assert sorted(weight for group in groups for weight in group.depthwise) == sorted(depthwise)
    for group in groups:
        assert all(len(graph.params[weight]) == group.count for weight, _ in group.producers)
        assert all(graph.params[weight].shape[1] == group.count * spread for weight, spread in group.consumers)


def test_the_thresholds_of_one_of_several_channels_stay() -> None:
    """They are the filters of a grouped convolution, of which each group needs as many."""
    graph = graph_of("cnn4-clip")
    first, second, third = [node for node in graph.nodes if isinstance(node, Conv)][:3]
    groups = groups_of(graph)
    assert {first.weight, second.weight}.isdisjoint(weight for group in groups for weight, _ in group.producers)
    assert third.weight not in {weight for group in groups for weight, _ in group.consumers}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("seed", range(3))
def test_packing_leaves_the_function_of_the_masked_network(name: str, seed: int) -> None:
    graph = graph_of(name)
    masks = random_masks(graph, seed)
    params = masked(drawn(graph, seed), masks)
    packing = pack(graph, masks)
    small = {key: packing.pack(key, value) for key, value in params.items()}
    assert {key: tuple(value.shape) for key, value in small.items()} == {key: value.shape for key, value in packing.graph.params.items()}
    x = torch.rand(6, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(run(packing.graph, small, x), run(graph, params, x), rtol=1e-10, atol=1e-10)
    mine: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    logits = run(packing.graph, small, x, batch_statistics=mine)
    torch.testing.assert_close(logits, run(graph, params, x, batch_statistics=whole), rtol=1e-8, atol=1e-8)
    for key, value in mine.items():
        torch.testing.assert_close(value, packing.pack(key, whole[key]), rtol=1e-8, atol=1e-8)
    for node in graph.nodes:
        for key in node.params if isinstance(node, Affine) else ():
            assert torch.equal(packing.unpack(key, small[key]), params[key])


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_removed_unit_is_zero_behind_its_batch_norm_and_cannot_be_seen(name: str) -> None:
    """Whatever stands in the removed rows, columns and statistics, the masked network computes the same."""
    graph = graph_of(name)
    masks = random_masks(graph, 7)
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    params, other = drawn(graph, 1), drawn(graph, 2)
    packing = pack(graph, masks)
    for key, value in params.items():
        inside = packing.unpack(key, packing.pack(key, torch.ones_like(value))) > 0
        other[key] = torch.where(inside, value, other[key])
    first = run(graph, masked(params, masks), x, keep=True)
    torch.testing.assert_close(run(graph, masked(other, masks), x), first[graph.output], rtol=1e-10, atol=1e-10)
    for group in groups_of(graph):
        for node in graph.nodes:
            if isinstance(node, BatchNorm) and (node.scale, node.bias) in group.norms:
                assert not first[node.name][:, ~masks.groups[group.name]].any()


@pytest.mark.parametrize("name", ["resnet-small", "resnet18", "vgg16", "wrn-28-4", "mobile", "cnn4-bn"])
def test_compression_removes_what_training_masked(name: str) -> None:
    graph = graph_of(name, (1, 6, 6))
    masks = random_masks(graph, 3)
    params = masked(drawn(graph, 3, torch.float32), masks)
    trained, chosen = finish(graph, params, masks.entries)
    result = compress(trained, chosen, inputs=np.random.default_rng(0).random((2, 1, 6, 6)).astype(np.float32), rational_inputs=0)
    assert result.evidence.within_bound
    promised = pack(graph, masks).graph
    stored = {node.name: node.shape[0] for node in result.packed.nodes if isinstance(node, Affine)}
    assert stored
    for node in promised.nodes:
        if isinstance(node, Affine) and node.name in stored:
            assert stored[node.name] <= node.shape[0]
    x = torch.rand(4, 1, 6, 6)
    before, after = (run(one, one.tensors(torch.float64), x.double()) for one in (trained, result.packed))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def group_named(graph: Graph, name: str) -> UnitGroup:
    return {group.name: group for group in groups_of(graph)}[name]


def test_a_depthwise_filter_goes_with_its_channel() -> None:
    graph = graph_of("mobile")
    group = group_named(graph, "conv1")
    assert [weight for weight, _ in group.producers] == ["conv1.weight", "block1.depthwise.weight"]
    assert group.depthwise == ("block1.depthwise.weight",)
    assert [scale for scale, _ in group.norms] == ["norm1.weight", "block1.norm1.weight"]
    assert group.consumers == (("block1.pointwise.weight", 1),)
    masks = random_masks(graph, 0)
    masks.groups["conv1"] = torch.arange(group.count) < 2
    node = pack(graph, masks).graph.node("block1.depthwise")
    assert isinstance(node, Conv)
    assert (node.groups, node.shape[0]) == (2, 2)
    masks.groups["conv1"] = torch.arange(group.count) == 1
    node = pack(graph, masks).graph.node("block1.depthwise")
    assert isinstance(node, Conv)
    assert (node.groups, node.shape[0]) == (1, 1)


def test_a_pre_activation_stage_is_one_group_and_its_batch_norms_belong_to_the_readers() -> None:
    group = group_named(graph_of("wrn-28-4"), "block5.conv2")
    makers = {weight for weight, _ in group.producers}
    assert makers == {*(f"block{i}.conv2.weight" for i in (5, 6, 7, 8)), "block5.shortcut.weight"}
    assert set(group.made_through) == {None}
    through = dict(zip((weight for weight, _ in group.consumers), group.read_through, strict=True))
    own = {f"block{i}.conv1.weight": f"block{i}.norm1.weight" for i in (6, 7, 8, 9)}
    assert through == {**own, "block9.shortcut.weight": "block9.norm1.weight"}


def test_the_last_stage_is_read_by_the_logits_through_the_last_batch_norm() -> None:
    group = group_named(graph_of("wrn-28-4"), "block9.conv2")
    assert dict(zip(group.consumers, group.read_through, strict=True))[("logits.weight", 1)] == "norm.weight"


class Tied(nn.Module):
    """conv + shortcut, a factor for each channel, depthwise, flatten, linear; with options that tie the units to what cannot go."""

    def __init__(self, option: str = "") -> None:
        super().__init__()
        self.option = option
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        filters = 8 if option == "multiplier" else 4
        self.d = nn.Conv2d(4, filters, 3, padding=1, groups=2 if option == "grouped" else 4)
        self.register_buffer("factor", torch.tensor([0.5, 2.0, -1.0, 3.0]).view(4, 1, 1))
        self.norm = nn.BatchNorm1d(filters * 16) if option == "flat norm" else nn.Identity()
        self.out = nn.Linear(filters * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.d(torch.relu((self.a(x) + self.b(x)) * self.factor))
        y = y + 1 if self.option == "constant" else torch.relu(y)
        result: Tensor = self.out(self.norm(y.flatten(1)))
        return result


def test_a_factor_for_each_channel_is_packed_too() -> None:
    graph = from_torch(Tied().eval(), (2, 4, 4))
    (group,) = groups_of(graph)
    assert group.constants == (("factor", 1),)
    masks = random_masks(graph, 2)
    masks.groups["a"] = torch.tensor([True, False, False, True])
    masks.entries.update(group.masks(masks.groups["a"], graph.tensors()))
    params = masked(graph.tensors(torch.float64), masks)
    packing = pack(graph, masks)
    assert packing.graph.params["factor"].reshape(-1).tolist() == [0.5, 3.0]
    x = torch.rand(5, 2, 4, 4, dtype=torch.float64)
    small = {key: packing.pack(key, value) for key, value in params.items()}
    torch.testing.assert_close(run(packing.graph, small, x), run(graph, params, x))


@pytest.mark.parametrize("option", ["multiplier", "grouped", "flat norm", "constant"])
def test_units_that_cannot_go_alone_stay(option: str) -> None:
    assert groups_of(from_torch(Tied(option).eval(), (2, 4, 4))) == []


def test_masks_that_leave_no_unit_are_refused() -> None:
    graph = graph_of("mlp")
    masks = random_masks(graph, 0)
    masks.groups["fc1"] = torch.zeros_like(masks.groups["fc1"])
    with pytest.raises(InputError, match='no unit of "fc1"'):
        pack(graph, masks)


def test_importance_does_not_change_when_a_factor_moves_along_a_unit() -> None:
    """Positive factors pass through ReLU, depthwise filters, batch norms and the flatten; the network and the scores stay the same."""
    graph = graph_of("mobile")
    params = drawn(graph, 4)
    group = group_named(graph, "conv1")
    incoming, outgoing = unit_norms(group, params)
    moved = dict(params)
    factor = torch.linspace(0.5, 3.0, group.count, dtype=torch.float64)
    view = factor.view(-1, 1, 1, 1)
    for name in ("norm1.weight", "norm1.bias"):
        moved[name] = params[name] * factor
    moved["block1.depthwise.weight"] = params["block1.depthwise.weight"] / view
    for name in ("block1.norm1.weight", "block1.norm1.bias"):
        moved[name] = params[name] * factor
    moved["block1.pointwise.weight"] = params["block1.pointwise.weight"] / factor.view(1, -1, 1, 1)
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(run(graph, moved, x), run(graph, params, x))
    after = unit_norms(group, moved)
    torch.testing.assert_close(after[0] * after[1], incoming * outgoing)


def test_norms_of_a_pre_activation_group_by_hand() -> None:
    graph = graph_of("wrn-28-4")
    params = drawn(graph, 6)
    group = group_named(graph, "stem")
    incoming, outgoing = unit_norms(group, params)
    own = params["block1.norm1.weight"].abs()
    torch.testing.assert_close(incoming, params["stem.weight"].flatten(1).norm(dim=1).double() * own)
    read = torch.cat([params[f"block1.{name}.weight"].transpose(0, 1).flatten(1) for name in ("conv1", "shortcut")], dim=1)
    torch.testing.assert_close(outgoing, read.norm(dim=1))


def test_folding_batch_norm_first_gives_groups_with_the_same_members_where_nothing_is_added() -> None:
    for name in ("mobile", "vgg16", "resnet18"):
        graph = graph_of(name)
        before, after = groups_of(graph), groups_of(fold_batch_norm(graph))
        assert [[weight for weight, _ in group.producers] for group in before] == [[weight for weight, _ in g.producers] for g in after]
