"""What budgets count, how they are spread over layers, and that impossible ones are refused by the layer's name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vsparse.errors import InputError
from vsparse.graph import from_torch
from vsparse.graph.cost import macs, weight_count
from vsparse.graph.ir import Conv, Graph
from vsparse.networks import make
from vsparse.recipe import Network, Train
from vsparse.stages.train.budgets import PrunableLayer, SparsityBudget, best_of_all, kernel_density, spread
from vsparse.stages.train.granularity import make_pattern
from vsparse.stages.train.granularity.channel import ChannelPattern
from vsparse.stages.train.measures import Measure, weights_of


def graph_of(name: str, shape: tuple[int, int, int] = (1, 8, 8), width: float = 0.25) -> Graph:
    return from_torch(make(Network(architecture=name, width=width), shape, 10), shape)


def spec(sparsity: float, count: int = 0, budget: str = "weights", **sparse: object) -> Train:
    return Train.model_validate({"sparsity": sparsity, "parameter_budget": count, "budget": budget, "sparse": sparse})


def counts(graph: Graph, wanted: Train) -> dict[str, int]:
    return make_pattern(wanted, graph).counts()


# What is counted.


def test_kernel_density_by_hand() -> None:
    assert kernel_density((32, 16, 4, 4)) == pytest.approx((32 + 16 + 4 + 4) / (32 * 16 * 16))
    assert kernel_density((100, 50)) == pytest.approx(150 / 5000)


def test_measures_by_hand() -> None:
    """A depthwise 3×3 convolution of 4 channels on a 6×6 image (36 weights, 36 positions each), and a dense 1×1 one behind it."""
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(72, 3))
    depthwise, pointwise, linear = weights_of(from_torch(net, (4, 6, 6))).values()
    assert (depthwise.shape, depthwise.positions, depthwise.size) == ((4, 1, 3, 3), 36, 36)
    assert (pointwise.shape, pointwise.positions, linear.positions) == ((2, 4, 1, 1), 36, 1)
    assert [cell.is_conv_or_last for cell in (depthwise, pointwise, linear)] == [True, True, True]
    assert Measure("weights", 8).sparse(depthwise, 10, 36) == Measure("weights", 8).packed(depthwise, 10) == 10
    assert Measure("macs", 8).sparse(depthwise, 10, 36) == Measure("macs", 8).packed(depthwise, 10) == 360
    assert Measure("bytes", 8).packed(depthwise, 10) == 40
    assert Measure("bytes", 8).sparse(depthwise, 10, 36) == 40 + 5
    assert Measure("bytes", 8).sparse(depthwise, 35, 36) == 4 * 36  # dense is cheaper than 140 + 5
    assert Measure("latency", 8).packed(depthwise, 10) == 360 / 8  # computes longer than it reads
    assert Measure("latency", 8).packed(linear, 100) == 400  # and the other way round
    assert Measure("latency", 8).sparse(linear, 100, 216) == 427


def test_a_weight_used_twice_counts_its_work_twice_and_its_bytes_once() -> None:
    graph = from_torch(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1)), (2, 5, 5))
    first, relu, second = graph.nodes
    assert isinstance(first, Conv)
    assert isinstance(second, Conv)
    (cell,) = weights_of(replace(graph, nodes=(first, relu, replace(second, weight=first.weight)))).values()
    assert cell.positions == 50
    assert cell.size == 36


@pytest.mark.parametrize("name", ["cnn4", "mlp", "resnet-small", "mobile"])
def test_the_whole_network_costs_what_the_layer_table_says(name: str) -> None:
    graph = graph_of(name)
    cells = weights_of(graph)
    assert SparsityBudget.of(spec(0.5), cells).total == weight_count(graph)
    assert SparsityBudget.of(spec(0.5, budget="macs"), cells).total == macs(graph)
    assert SparsityBudget.of(spec(0.5, budget="bytes"), cells).total == 4 * weight_count(graph)


def test_limits_are_whole_units_and_forgive_what_floats_lose() -> None:
    linear = from_torch(nn.Sequential(nn.Flatten(), nn.Linear(1000, 1000)), (1, 1, 1000))
    budget = SparsityBudget.of(spec(0.9, granularity="element"), weights_of(linear))
    assert budget.limit() == 100_000  # 1 − 0.9 is below 0.1
    assert budget.limit(1 / 3) == 333_333
    assert SparsityBudget.of(spec(0.1, 77_777), weights_of(linear)).limit() == 77_777
    for wrong in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="density"):
            budget.limit(wrong)


# How it is spread.


@pytest.mark.parametrize("name", ["cnn4", "mlp", "resnet-small"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("allocation", ["erdos-renyi-kernel", "uniform"])
def test_elements_keep_exactly_the_budget(name: str, sparsity: float, allocation: str) -> None:
    graph = graph_of(name)
    kept = counts(graph, spec(sparsity, granularity="element", conv_share=1.0, allocation=allocation))
    assert sum(kept.values()) == int((1 - sparsity) * weight_count(graph) + 1e-9)
    assert all(1 <= count <= graph.params[weight].size for weight, count in kept.items())


def test_uniform_and_erdos_renyi_by_hand() -> None:
    """300-100-10 at 90 %: uniform keeps a tenth of each layer; Erdős–Rényi in the proportion of (in + out) / (in · out)."""
    graph = from_torch(nn.Sequential(nn.Flatten(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)), (1, 1, 300))
    even = list(counts(graph, spec(0.9, granularity="element", conv_share=1.0, allocation="uniform")).values())
    assert even == [3000, 100]
    first, last = counts(graph, spec(0.9, granularity="element", conv_share=1.0)).values()
    assert first + last == 3100
    assert first / last == pytest.approx((300 + 100) / (100 + 10), rel=0.01)


def test_conv_share_halves_what_convolutions_and_the_last_layer_lose() -> None:
    graph = graph_of("cnn4", (1, 28, 28), 1.0)
    kept = counts(graph, spec(0.8, granularity="element", conv_share=0.5, allocation="uniform"))
    lost = {name: 1 - count / graph.params[name].size for name, count in kept.items()}
    for name in ("conv1.weight", "conv2.weight", "logits.weight"):
        assert lost[name] == pytest.approx(lost["fc1.weight"] / 2, abs=0.005)


def test_uniform_allocation_with_a_larger_share_thins_the_convolutions_more() -> None:
    graph = graph_of("cnn4", (1, 28, 28), 1.0)
    even, thin = (counts(graph, spec(0.8, conv_share=share, allocation="uniform")) for share in (1.0, 1.5))
    assert thin["conv1"] < even["conv1"]
    assert thin["fc1"] > even["fc1"]


def test_channels_waste_little_of_the_budget() -> None:
    graph = graph_of("cnn4", (1, 28, 28), 1.0)
    pattern = ChannelPattern(graph, spec(0.8, conv_share=1.0, allocation="uniform"))
    assert sum(pattern.costs(pattern.counts()).values()) > 0.97 * pattern.budget.limit()


def greedy(scores: dict[str, torch.Tensor], cost: dict[str, int], limit: int) -> dict[str, int]:
    """The best item of each layer, then one after the other in the order of scores, a layer closing at its first that does not fit."""
    kept, closed = dict.fromkeys(scores, 1), set()
    ranked = {name: torch.sort(values.flatten(), descending=True).values[1:].tolist() for name, values in scores.items()}
    queue = sorted(((-value, index, name) for index, name in enumerate(ranked) for value in ranked[name]), key=lambda entry: entry[:2])
    for _, _, name in queue:
        if name in closed:
            continue
        if sum(cost[other] * kept[other] for other in kept) + cost[name] > limit:
            closed.add(name)
        else:
            kept[name] += 1
    return kept


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_global_allocation_is_the_greedy_one(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    cost = {name: int(rng.integers(1, 9)) for name in "abc"}
    scores = {name: torch.tensor(rng.integers(0, 4, 12) if ties else rng.normal(size=12), dtype=torch.float32) for name in "abc"}
    layers = [PrunableLayer(name, name, 12, 1.0, 1.0) for name in "abc"]
    wanted = Train.model_validate({"sparsity": 0.5, "sparse": {"granularity": "element", "allocation": "global"}})
    least, total = sum(cost.values()), 12 * sum(cost.values())
    limit = int(rng.integers(least, total + 1))
    budget = SparsityBudget(wanted, {}, Measure("weights", 8), total, limit / total)
    found = best_of_all(layers, scores, lambda kept: {name: cost[name] * count for name, count in kept.items()}, budget)
    assert found == greedy(scores, cost, limit)


def test_global_allocation_with_infinite_and_missing_scores() -> None:
    layers = [PrunableLayer(name, name, 4, 1.0, 1.0) for name in "ab"]
    inf, nan = torch.inf, torch.nan
    scores = {"a": torch.tensor([inf, nan, nan, 1.0]), "b": torch.tensor([nan, 2.0, -inf, inf])}
    for limit, kept in ((2, (1, 1)), (3, (1, 2)), (4, (2, 2)), (8, (4, 4))):
        budget = SparsityBudget(spec(0.5, allocation="global"), {}, Measure("weights", 8), 8, limit / 8)
        assert tuple(best_of_all(layers, scores, lambda kept: dict(kept), budget).values()) == kept


# What is refused.


def test_impossible_budgets_name_the_layer_and_the_way_out() -> None:
    graph = graph_of("resnet-small")
    with pytest.raises(InputError, match=r'layer "block2.conv2".*conv_share'):
        counts(graph, spec(0.95, granularity="element", conv_share=0.1))
    with pytest.raises(InputError, match=r'layer "conv1".*lower train\.sparsity'):
        counts(graph, spec(0.9999, granularity="element", conv_share=1.0))
    with pytest.raises(InputError, match=r"train\.parameter_budget is"):
        counts(graph, spec(0.5, 10**9))
    with pytest.raises(InputError, match=r'layer ".*raise train\.parameter_budget'):
        counts(graph, spec(0.5, 3))
    with pytest.raises(InputError, match=r'layer ".*raise train\.parameter_budget'):
        make_pattern(spec(0.5, 3, granularity="element", allocation="global"), graph)


def test_a_layer_that_would_keep_nothing_is_refused() -> None:
    ten = nn.Sequential(nn.Flatten(), nn.Linear(2000, 10), nn.ReLU(), nn.Linear(10, 400), nn.ReLU(), nn.Linear(400, 2))
    graph = from_torch(ten, (1, 1, 2000))
    with pytest.raises(InputError, match=r'layer "1" (has|alone keeps)'):
        counts(graph, spec(0.999, allocation="uniform", conv_share=1.0))
    with pytest.raises(InputError, match=r'has 32 items.*less than one.*"erdos-renyi-kernel" or "lamp"'):
        counts(graph_of("cnn4", (1, 28, 28), 1.0), spec(0.99, granularity="block", allocation="uniform", conv_share=1.0))


def test_a_bitmap_that_is_more_than_the_budget_is_refused() -> None:
    with pytest.raises(InputError, match=r'layer "fc1" alone keeps at least 19604 bytes.*"block" or "channel"'):
        counts(graph_of("cnn4", (1, 28, 28), 1.0), spec(0.99, budget="bytes", granularity="element"))


def test_a_network_without_hidden_units_cannot_lose_any() -> None:
    linear = from_torch(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2))
    with pytest.raises(InputError, match="no hidden units"):
        counts(linear, spec(0.5))
    assert counts(linear, spec(0.0)) == {}


def test_spread_fills_layers_whose_share_is_above_one_too() -> None:
    layers = [PrunableLayer("a", "a", 100, 1.0, 2.0), PrunableLayer("b", "b", 100, 1.0, 1.0)]
    budget = SparsityBudget(spec(0.1), {}, Measure("weights", 8), 200, 0.9)
    assert sum(spread(layers, lambda kept: dict(kept), budget).values()) == 180
