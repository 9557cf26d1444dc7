"""Granularities keep their budgets to the last item, turn items into masks and back, and say what a packed network computes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_nets import NETS, SHAPE, graph_of, magnitudes, spec

from vsparse.errors import InputError
from vsparse.graph import from_torch, run
from vsparse.graph.cost import macs, weight_count
from vsparse.graph.ir import Affine, BatchNorm, Graph
from vsparse.networks import make
from vsparse.recipe import Network, Train
from vsparse.stages.train.granularity import make_pattern
from vsparse.stages.train.granularity.channel import ChannelPattern
from vsparse.stages.train.granularity.element import ElementPattern
from vsparse.stages.train.granularity.pattern import largest
from vsparse.stages.train.masks import Masks, density, enforce
from vsparse.stages.train.measures import weights_of
from vsparse.stages.train.packing import pack
from vsparse.stages.train.units import groups_of


def cost_of(graph: Graph, masks: Masks, wanted: Train, structured: bool, blocks: Mapping[str, int]) -> float:
    """The measure of a masked network, from what is left in its arrays: packed, or entry by entry."""
    if structured:
        graph = pack(graph, masks).graph
    total = 0.0
    for node in graph.nodes:
        if not isinstance(node, Affine):
            continue
        weight = graph.params[node.weight]
        left = weight.size if structured or node.weight not in masks.entries else int(masks.entries[node.weight].sum())
        bits = blocks.get(node.weight, weight.size)
        size = 4 * left if structured else min(4 * weight.size, 4 * left + (bits + 7) // 8)
        work = left * int(torch.tensor(node.shape[1:]).prod()) if len(node.shape) > 1 else left
        total += {"weights": left, "macs": work, "bytes": size, "latency": max(work / wanted.macs_per_byte, size)}[wanted.budget]
    return total


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(NETS),
    granularity=st.sampled_from(["channel", "element", "block"]),
    allocation=st.sampled_from(["uniform", "erdos-renyi-kernel", "global", "lamp"]),
    budget=st.sampled_from(["weights", "macs", "bytes", "latency"]),
    share=st.sampled_from([0.5, 1.0, 1.5]),
    sparsity=st.floats(0.05, 0.9),
    block=st.sampled_from([(2, 1), (1, 2), (8, 1)]),
    seed=st.integers(0, 1000),
)
def test_budgets_are_kept_and_filled_to_the_last_item(
    name: str, granularity: str, allocation: str, budget: str, share: float, sparsity: float, block: tuple[int, int], seed: int
) -> None:
    graph, params = graph_of(name), graph_of(name).tensors()
    wanted = spec(sparsity, granularity=granularity, allocation=allocation, budget=budget, conv_share=share, block=block)
    try:
        pattern = make_pattern(wanted, graph)
    except InputError as refusal:
        assert 'layer "' in str(refusal)  # noqa: PT017 (a refusal is one of the two right answers)
        return
    scores = magnitudes(pattern, params)
    kept = pattern.counts(scores=scores)
    assert set(kept) == set(pattern.shapes())
    assert all(kept[layer] >= 1 for layer in kept)

    blocks = {layer: int(torch.tensor(shape).prod()) for layer, shape in pattern.shapes().items()} if granularity == "block" else {}
    everything = {layer: torch.ones(shape, dtype=torch.bool) for layer, shape in pattern.shapes().items()}
    total = sum(cost * weights_of(graph)[weight].size for weight, cost in unit_costs(graph, wanted).items())
    if budget in ("weights", "macs", "bytes"):
        assert cost_of(graph, pattern.masks(everything, params), wanted, pattern.structured, blocks) == total
        limit: float = int((1 - sparsity) * total * (1 + 1e-12) + 1e-9)
    else:
        limit = (1 - sparsity) * cost_of(graph, pattern.masks(everything, params), wanted, pattern.structured, blocks) * (1 + 1e-12)
    for active in (pattern.top(scores, kept), pattern.random(kept, torch.Generator().manual_seed(seed))):
        assert {layer: int(items.sum()) for layer, items in active.items()} == kept
        masks = pattern.masks(active, params)
        spent = cost_of(graph, masks, wanted, pattern.structured, blocks)
        assert spent <= limit
        back = pattern.active(masks)
        assert all(torch.equal(back[layer], active[layer]) for layer in active)
        if granularity == "block" and any(
            size % part for cell in weights_of(graph).values() for size, part in zip(cell.shape, block, strict=False)
        ):
            continue  # blocks at edges are charged as if full, so one more may fit
        for layer, items in active.items():
            if not items.all():
                more = items.clone()
                more.view(-1)[int(torch.nonzero(~items.flatten())[0])] = True
                assert cost_of(graph, pattern.masks({**active, layer: more}, params), wanted, pattern.structured, blocks) > limit


def unit_costs(graph: Graph, wanted: Train) -> dict[str, int]:
    """What one entry of each weight costs when all are there."""
    return {
        name: {"weights": 1, "macs": cell.positions, "bytes": 4, "latency": 0}[wanted.budget] for name, cell in weights_of(graph).items()
    }


@pytest.mark.parametrize("granularity", ["channel", "element", "block", "2:4"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_schedules_of_densities_end_at_the_final_budget(granularity: str, allocation: str) -> None:
    graph = graph_of("plain")
    sparsity = 0.5 if granularity == "2:4" else 0.7
    pattern = make_pattern(spec(sparsity, granularity=granularity, allocation=allocation), graph)
    scores = magnitudes(pattern, graph.tensors())
    assert pattern.final_density == pytest.approx(1 - sparsity)
    sizes = [sum(pattern.counts(share, scores).values()) for share in (1.0, 0.9, 0.75, 0.6, pattern.final_density)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert pattern.counts(pattern.final_density, scores) == pattern.counts(scores=scores)
    assert all(pattern.counts(1.0, scores)[layer] == torch.tensor(shape).prod() for layer, shape in pattern.shapes().items())
    with pytest.raises(ValueError, match="density"):
        pattern.counts(1.5, scores)


def test_a_parameter_budget_is_a_share_too() -> None:
    pattern = make_pattern(spec(0.1, parameter_budget=300, granularity="element"), graph_of("plain"))
    assert sum(pattern.counts().values()) == 300
    assert pattern.final_density == pytest.approx(300 / weight_count(graph_of("plain")))
    assert pattern.counts(pattern.final_density) == pattern.counts()


# Ranks.


@settings(deadline=None)
@given(values=st.lists(st.sampled_from([0.0, 1.0, 2.0, float("nan"), float("inf"), float("-inf")]), min_size=1, max_size=9), data=st.data())
def test_the_best_are_first_among_ties_and_nan_is_least(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    known = [float("-inf") if value != value else value for value in values]
    order = sorted(range(len(values)), key=lambda index: (-known[index], index))
    mask = largest(torch.tensor(values), count)
    assert torch.nonzero(mask).flatten().tolist() == sorted(order[:count])


def test_global_keeps_the_largest_entries_of_the_whole_network() -> None:
    graph = graph_of("plain")
    pattern = ElementPattern(graph, spec(0.8, granularity="element", allocation="global"))
    params = graph.tensors()
    scores = magnitudes(pattern, params)
    masks = pattern.masks(pattern.top(scores, pattern.counts(scores=scores)), params)
    kept = torch.cat([params[name][masks.entries[name]].abs() for name in pattern.weights])
    gone = torch.cat([params[name][~masks.entries[name]].abs() for name in pattern.weights])
    assert kept.min() >= gone.max()
    with pytest.raises(ValueError, match="scores"):
        pattern.counts()


# Channels.


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("budget", ["weights", "macs", "bytes", "latency"])
def test_packing_computes_the_masked_network_at_the_cost_promised(name: str, budget: str) -> None:
    graph = graph_of(name)
    pattern = ChannelPattern(graph, spec(0.4, budget=budget, allocation="uniform"))
    params = {key: value.to(torch.float64) for key, value in graph.tensors().items()}
    for node in graph.nodes:
        if isinstance(node, BatchNorm):
            params[node.bias] = torch.linspace(-1, 1, node.shape[0], dtype=torch.float64)
    masks = pattern.masks(pattern.random(pattern.counts(), torch.Generator().manual_seed(1)), params)
    x = torch.rand(5, *SHAPE, dtype=torch.float64)
    # Zeroing so that units can grow back, and setting all of them to zero, computes the same.
    gentle = {key: value.clone() for key, value in params.items()}
    pattern.deactivate(gentle, masks)
    enforce(params, masks)
    packing = pack(graph, masks)
    packed = {key: packing.pack(key, value) for key, value in params.items()}
    assert any(int(keep.sum()) < len(keep) for keep in masks.groups.values())
    torch.testing.assert_close(run(packing.graph, packed, x), run(graph, params, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run(graph, gentle, x), run(graph, params, x), rtol=1e-12, atol=1e-12)
    promised = sum(pattern.costs(pattern.counts()).values())
    found = {"weights": weight_count(packing.graph), "macs": macs(packing.graph), "bytes": 4 * weight_count(packing.graph)}
    assert promised == found.get(budget, promised) <= pattern.budget.limit()
    for node in graph.nodes:
        if isinstance(node, Affine):
            assert torch.equal(packing.unpack(node.weight, packed[node.weight]), params[node.weight])


def test_what_is_deactivated_can_grow_back() -> None:
    graph = graph_of("residual")
    pattern = make_pattern(spec(0.5, allocation="uniform"), graph)
    params = graph.tensors()
    masks = pattern.choose(params)
    pattern.deactivate(params, masks)
    weight = params["hidden.weight"].requires_grad_()
    (gradient,) = torch.autograd.grad(run(graph, params, torch.rand(8, *SHAPE)).square().sum(), weight)
    columns = ~masks.entries["hidden.weight"].any(0)
    assert columns.any()
    assert (weight.detach()[:, columns] == 0).all()
    assert (gradient[:, columns] != 0).any()
    assert (params["second.bias"][~masks.entries["second.bias"]] == 0).all()
    assert (params["second.weight"][~masks.entries["second.bias"]] != 0).any()


def test_residual_branches_lose_the_same_channels() -> None:
    graph = graph_of("residual")
    pattern = make_pattern(spec(0.6, allocation="uniform"), graph)
    masks = pattern.choose(graph.tensors())
    rows = {name: masks.entries[name].flatten(1).any(1) for name in ("second.weight", "cut.weight")}
    assert torch.equal(rows["second.weight"], rows["cut.weight"])
    assert 0 < int(rows["cut.weight"].sum()) < 6
    assert torch.equal(masks.entries["hidden.weight"].any(0), rows["cut.weight"].repeat_interleave(36))
    assert torch.equal(masks.entries["second.bias"], rows["cut.weight"])
    stem = masks.entries["stem.weight"].flatten(1).any(1)
    assert torch.equal(masks.entries["norm.weight"], stem)
    assert torch.equal(masks.entries["cut.weight"].any(0).flatten(), stem)


def test_a_channel_scores_the_product_of_what_makes_and_what_reads_it() -> None:
    graph = graph_of("plain")
    pattern = ChannelPattern(graph, spec(0.5))
    params = graph.tensors()
    scores = magnitudes(pattern, params)
    wanted = params["5.weight"].norm(dim=1) * params["7.weight"].norm(dim=0)
    torch.testing.assert_close(scores["5"], wanted)
    # A factor that moves through the ReLU changes nothing.
    moved = {**params, "5.weight": params["5.weight"] * 4, "7.weight": params["7.weight"] / 4}
    torch.testing.assert_close(magnitudes(pattern, moved)["5"], wanted)


def test_a_channel_s_norm_counts_when_its_saliency_is_given() -> None:
    graph = graph_of("residual")
    pattern = ChannelPattern(graph, spec(0.5))
    params = {name: value.abs() for name, value in graph.tensors().items()}
    params["norm.weight"] = torch.tensor([1.0, 2.0, 1.0, 0.5, 0.0, 1.0])
    weights = {name: params[name] for name in pattern.weights}
    torch.testing.assert_close(pattern.items(params)["stem"], pattern.items(weights)["stem"] * params["norm.weight"])


def test_groups_of_the_graph_are_the_layers_of_the_pattern() -> None:
    for name in NETS:
        pattern = make_pattern(spec(0.3), graph_of(name))
        assert pattern.shapes() == {group.name: (group.count,) for group in groups_of(graph_of(name))}
        assert pattern.structured


def test_density_counts_what_masks_leave() -> None:
    graph = graph_of("plain")
    pattern = make_pattern(spec(0.75, granularity="element"), graph)
    params = graph.tensors()
    assert not pattern.structured
    assert density(params, pattern.choose(params), pattern.weights) == pytest.approx(0.25, abs=0.5 / weight_count(graph) + 1e-3)


def test_every_shipped_architecture_has_every_pattern() -> None:
    for name in ("cnn4", "cnn5", "resnet-small", "mobile", "lenet-300-100"):
        graph = from_torch(make(Network(architecture=name, width=0.5), (4, 16, 16), 10), (4, 16, 16))
        params = graph.tensors()
        for granularity, sparsity in (("channel", 0.7), ("element", 0.9), ("block", 0.8), ("2:4", 0.4)):
            pattern = make_pattern(spec(sparsity, granularity=granularity), graph)
            masks = pattern.choose(params)
            assert all(mask.shape == params[key].shape for key, mask in masks.entries.items())
            if not pattern.structured:
                assert density(params, masks, pattern.weights) <= 1 - sparsity + 1e-9
