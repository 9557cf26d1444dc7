"""Budgets are met exactly as promised, and impossible ones are refused by the layer's name."""

from __future__ import annotations

import pytest
import torch

from vsparse.errors import InputError
from vsparse.graph import from_torch
from vsparse.graph.ir import Affine, Graph
from vsparse.networks import make
from vsparse.recipe import Network, Train
from vsparse.stages.train.shrink import pack
from vsparse.stages.train.sparsity import kernel_density, physical_weights, units_to_keep, weight_budget, weights_to_keep
from vsparse.stages.train.units import groups_of
from vsparse.stages.train.vericompress import SparseSearch, enforce


def graph_of(name: str, shape: tuple[int, int, int] = (1, 8, 8), width: float = 0.25) -> Graph:
    return from_torch(make(Network(architecture=name, width=width), shape, 10), shape)


def spec(sparsity: float, budget: int = 0, **sparse: object) -> Train:
    return Train.model_validate({"sparsity": sparsity, "parameter_budget": budget, "sparse": sparse})


def total(graph: Graph) -> int:
    return sum(graph.params[node.weight].size for node in graph.nodes if isinstance(node, Affine))


def test_kernel_density_by_hand() -> None:
    assert kernel_density((32, 16, 4, 4)) == pytest.approx((32 + 16 + 4 + 4) / (32 * 16 * 16))
    assert kernel_density((100, 50)) == pytest.approx(150 / 5000)


@pytest.mark.parametrize("name", ["cnn4", "mlp", "resnet-small"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("allocation", ["erdos-renyi-kernel", "uniform"])
def test_unstructured_keeps_exactly_the_budget(name: str, sparsity: float, allocation: str) -> None:
    graph = graph_of(name)
    wanted = spec(sparsity, granularity="unstructured", conv_share=1.0, allocation=allocation)
    kept = weights_to_keep(graph, wanted)
    assert sum(kept.values()) == weight_budget(graph, wanted) == int((1 - sparsity) * total(graph) + 1e-9)
    assert all(1 <= count <= graph.params[weight].size for weight, count in kept.items())


@pytest.mark.parametrize("name", ["cnn4", "mlp", "cnn7", "resnet-small"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("share", [0.5, 1.0, 1.4])
def test_structured_never_exceeds_the_budget_and_packs_to_the_count_promised(name: str, sparsity: float, share: float) -> None:
    graph = graph_of(name)
    wanted = spec(sparsity, conv_share=share, allocation="uniform")
    try:
        kept = units_to_keep(graph, wanted)
    except InputError as error:
        assert share == 0.5 and "conv_share" in str(error)  # noqa: PT017, PT018 (a refusal is one of the two right answers)
        return
    promised = physical_weights(graph, groups_of(graph), kept)
    assert promised <= weight_budget(graph, wanted)
    search = SparseSearch(graph, wanted)
    masks = search.random(graph.tensors(), torch.Generator().manual_seed(0))
    packed = pack(graph, masks).graph
    assert total(packed) == promised
    assert sum(int(masks[node.weight].sum()) for node in graph.nodes if isinstance(node, Affine) and node.weight in masks) <= promised


def test_structured_wastes_little_of_the_budget() -> None:
    graph = graph_of("cnn4", (1, 28, 28), 1.0)
    wanted = spec(0.8, conv_share=1.0, allocation="uniform")
    kept = units_to_keep(graph, wanted)
    assert physical_weights(graph, groups_of(graph), kept) > 0.97 * weight_budget(graph, wanted)


def test_parameter_budget_takes_the_place_of_sparsity() -> None:
    graph = graph_of("mlp")
    assert sum(weights_to_keep(graph, spec(0.1, 500, granularity="unstructured", conv_share=1.0)).values()) == 500


def test_impossible_budgets_name_the_layer_and_the_way_out() -> None:
    graph = graph_of("resnet-small")
    with pytest.raises(InputError, match=r'layer "block2.conv2.*conv_share'):
        weights_to_keep(graph, spec(0.95, granularity="unstructured", conv_share=0.1))
    with pytest.raises(InputError, match=r"lower train\.sparsity"):
        weight_budget(graph, spec(0.9999))
    with pytest.raises(InputError, match=r"train\.parameter_budget is"):
        weight_budget(graph, spec(0.5, 10**9))


def test_a_network_without_hidden_units_cannot_lose_any() -> None:
    linear = from_torch(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), (1, 2, 2))
    with pytest.raises(InputError, match="no hidden units"):
        units_to_keep(linear, spec(0.5))


def test_uniform_allocation_with_a_larger_share_thins_the_convolutions_more() -> None:
    graph = graph_of("cnn4", (1, 28, 28), 1.0)
    even, thin = (units_to_keep(graph, spec(0.8, conv_share=share, allocation="uniform")) for share in (1.0, 1.5))
    assert thin["conv1"] < even["conv1"]
    assert thin["fc1"] > even["fc1"]


def test_residual_branches_form_one_group() -> None:
    groups = {group.name: group for group in groups_of(graph_of("resnet-small"))}
    makers = {weight for weight, _ in groups["conv1"].producers}
    assert makers == {"conv1.weight", "block1.conv2.weight"}
    assert {weight for weight, _ in groups["conv1"].consumers} == {"block1.conv1.weight", "block2.conv1.weight", "block2.shortcut.0.weight"}


def test_a_flatten_spreads_a_channel_over_its_pixels() -> None:
    groups = {group.name: group for group in groups_of(graph_of("cnn4"))}
    assert groups["conv2"].consumers == (("fc1.weight", 4),)
    assert groups["fc1"].consumers == (("logits.weight", 1),)


@pytest.mark.parametrize("name", ["cnn4", "mlp", "resnet-small", "cnn5"])
def test_packing_computes_the_masked_network_and_unpacking_undoes_it(name: str) -> None:
    from vsparse.graph import run

    graph = graph_of(name)
    params = {key: value.to(torch.float64) for key, value in graph.tensors().items()}
    masks = SparseSearch(graph, spec(0.6, conv_share=1.0, allocation="uniform")).random(params, torch.Generator().manual_seed(1))
    enforce(params, masks)
    packing = pack(graph, masks)
    packed = {key: packing.pack(key, value) for key, value in params.items()}
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(run(packing.graph, packed, x), run(graph, params, x), rtol=1e-12, atol=1e-12)
    for node in graph.nodes:
        if isinstance(node, Affine):
            assert torch.equal(packing.unpack(node.weight, packed[node.weight]), params[node.weight])
