"""Two of four and blocks: which entries stay, and what is refused."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from pattern_nets import graph_of, magnitudes, spec
from torch import nn

from vsparse.errors import InputError
from vsparse.graph import from_torch
from vsparse.graph.cost import weight_count
from vsparse.stages.train.granularity import make_pattern
from vsparse.stages.train.granularity.block import BlockPattern
from vsparse.stages.train.granularity.two_four import TwoFourPattern, two_of_four
from vsparse.stages.train.measures import weights_of

# 2:4.


@pytest.mark.parametrize("name", ["plain", "mnist-like"])
def test_two_of_every_four_inputs_stay(name: str) -> None:
    small = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 2), nn.ReLU(), nn.Flatten(), nn.Linear(108, 20))
    graph = graph_of("plain") if name == "plain" else from_torch(small, (1, 6, 6))
    pattern = make_pattern(spec(0.5 if name == "plain" else 0.48, granularity="2:4"), graph)
    params = graph.tensors()
    for masks in (pattern.choose(params), pattern.masks(pattern.random(pattern.counts(), torch.Generator().manual_seed(0)), params)):
        halved = [weight for weight in pattern.weights if not masks.entries[weight].all()]
        assert halved == [weight for weight in pattern.weights if params[weight].shape[1] % 4 == 0]
        for weight in halved:
            mask = masks.entries[weight]
            for first in range(0, mask.shape[1], 4):
                assert (mask[:, first : first + 4].sum(1) == 2).all()
    masks = pattern.choose(params)
    for weight in halved:
        magnitude = params[weight].abs()
        for first in range(0, magnitude.shape[1], 4):
            four, kept = magnitude[:, first : first + 4], masks.entries[weight][:, first : first + 4]
            best = torch.stack([four[:, list(pair)].sum(1) for pair in combinations(range(4), 2)]).amax(0)
            torch.testing.assert_close((four * kept).sum(1), best)


@pytest.mark.parametrize("share", [0.55, 0.7, 0.95])
def test_on_the_way_to_two_of_four_only_entries_that_it_removes_are_removed(share: float) -> None:
    graph = graph_of("plain")
    pattern = make_pattern(spec(0.5, granularity="2:4"), graph)
    params = graph.tensors()
    early, final = pattern.choose(params, share).entries, pattern.choose(params).entries
    assert all((early[name] | ~final[name]).all() for name in pattern.weights)
    kept = sum(int(early[name].sum()) for name in pattern.weights)
    assert kept == int(share * weight_count(graph))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_fewer_or_more_than_half_are_taken_from_the_pairs_first(part: float) -> None:
    pattern = TwoFourPattern(graph_of("plain"), spec(0.5, granularity="2:4"))
    scores = magnitudes(pattern, graph_of("plain").tensors())
    scores[pattern.weights[0]].view(-1)[::3] = torch.nan
    wanted = {name: int(part * scores[name].numel()) for name in pattern.weights}
    active = pattern.top(scores, wanted)
    for name in pattern.weights:
        assert int(active[name].sum()) == wanted[name]
        pairs = two_of_four(scores[name])
        assert not (active[name] & ~pairs).any() if part <= 0.5 else not (pairs & ~active[name]).any()


def test_layers_stay_dense_where_the_budget_allows_it() -> None:
    pattern = make_pattern(spec(0.2, granularity="2:4"), graph_of("plain"))
    assert isinstance(pattern, TwoFourPattern)
    total, sizes = weight_count(graph_of("plain")), {name: cell.size for name, cell in weights_of(graph_of("plain")).items()}
    removed = sum(sizes[name] // 2 for name in pattern.covered)
    assert removed >= 0.2 * total
    assert all(removed - sizes[name] // 2 < 0.2 * total for name in pattern.covered)
    assert pattern.weights[-1] not in pattern.covered
    dense = make_pattern(spec(0.0, granularity="2:4"), graph_of("plain"))
    assert all(mask.all() for mask in dense.choose(graph_of("plain").tensors()).entries.values())


def test_two_four_refuses_what_it_cannot_do_and_says_what_it_can() -> None:
    three = from_torch(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16)), (3, 6, 6))
    with pytest.raises(InputError, match=r'layer "0" cannot be 2:4, as each of its outputs reads 3 input.*sparsity to 0\.4522 or less'):
        make_pattern(spec(0.5, granularity="2:4"), three)
    assert make_pattern(spec(0.4522, granularity="2:4"), three).counts() == {"0.weight": 216, "3.weight": 1024}
    with pytest.raises(InputError, match=r'half of layer "3".*sparsity to 0\.4522 or less'):
        make_pattern(spec(0.8, granularity="2:4"), three)
    with pytest.raises(InputError, match=r"parameter_budget to 1240,"):
        make_pattern(spec(0.0, parameter_budget=1239, granularity="2:4"), three)
    make_pattern(spec(0.0, parameter_budget=1240, granularity="2:4"), three)
    none = from_torch(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), (1, 1, 3))
    with pytest.raises(InputError, match=r'layer "1".*leave the network dense'):
        make_pattern(spec(0.4, granularity="2:4"), none)
    with pytest.raises(InputError, match=r"not 0\.3"):
        make_pattern(spec(0.5, granularity="2:4"), graph_of("plain")).counts(0.3)


# Blocks.


def test_blocks_by_hand() -> None:
    """A 3 × 5 weight in blocks of 2 × 2: six blocks, the last row and column of them half empty."""
    graph = from_torch(nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), (1, 1, 5))
    pattern = BlockPattern(graph, spec(0.4, granularity="block", block=(2, 2)))
    weight = torch.arange(15.0).reshape(3, 5)
    scores = magnitudes(pattern, {"1.weight": weight})
    assert scores["1.weight"].shape == (2, 3)
    assert float(scores["1.weight"][0, 1]) == pytest.approx((2**2 + 3**2 + 7**2 + 8**2) ** 0.5)
    assert float(scores["1.weight"][1, 2]) == 14
    assert [pattern.costs({"1.weight": count})["1.weight"] for count in range(7)] == [0, 4, 8, 10, 12, 14, 15]
    masks = pattern.masks({"1.weight": torch.tensor([[True, False, True], [False, True, False]])}, {"1.weight": weight})
    assert masks.entries["1.weight"].int().tolist() == [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 1, 1, 0]]


def test_blocks_of_a_convolution_have_one_position_of_its_kernel() -> None:
    pattern = BlockPattern(graph_of("plain"), spec(0.5, granularity="block", block=(8, 1)))
    assert pattern.shapes()["0.weight"] == (1, 4, 3, 3)
    assert pattern.shapes()["2.weight"] == (2, 8, 2, 2)
    masks = pattern.choose(graph_of("plain").tensors())
    mask = masks.entries["2.weight"]
    assert (mask[:8] == mask[:1]).all()
    assert (mask[8:] == mask[8:9]).all()
    assert not (mask[0] == mask[8]).all()
