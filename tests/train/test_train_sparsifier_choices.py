"""Choices of the sparsifiers on a net of two layers, by hand: which items stay, go and grow, and what trains scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, pi, sqrt
from typing import Any

import pytest
import torch
from pattern_nets import graph_of
from torch import Tensor, nn

from vsparse.graph import from_torch, run
from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.phases import EpochPosition, epoch_position
from vsparse.stages.train.sparsifiers import Sparsifier, make_sparsifier
from vsparse.stages.train.sparsifiers.dynamic import GROWTH_BATCHES
from vsparse.stages.train.sparsifiers.hydra import Hydra, scaled_scores, straight_through
from vsparse.stages.train.state import TrainingState
from vsparse.stages.train.units import UnitGroup, groups_of


def two_layers() -> tuple[Graph, dict[str, Tensor], str, str]:
    """x ∈ R⁴ → relu of 2 units → 2 logits; returns the graph, its tensors and the names of both weights."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[0.5, -0.1, 0.3, -0.2], [0.4, 0.05, -0.6, 0.7]]))
        module[1].bias.copy_(torch.tensor([0.1, -0.1]))
        module[3].weight.copy_(torch.tensor([[1.0, -0.5], [0.25, 2.0]]))
        module[3].bias.zero_()
    graph = from_torch(module, (1, 1, 4))
    first, last = (node.weight for node in graph.nodes if hasattr(node, "weight"))
    return graph, graph.tensors(), first, last


class Given:
    """Tools whose gradients are given."""

    def __init__(self, gradients: dict[str, Tensor] | None = None, seed: int = 0) -> None:
        self.given, self.seed = gradients or {}, seed
        self.asked: list[tuple[int, float | None]] = []
        self.quiet: dict[str, Tensor] = {}

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def gradients(self, batches: int, fraction: float | None = None) -> dict[str, Tensor]:
        self.asked.append((batches, fraction))
        return self.given

    def dead_units(self, groups: Sequence[UnitGroup], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.quiet


def small(method: str, params: dict[str, Tensor], graph: Graph, **settings: Any) -> tuple[Sparsifier, TrainingState]:
    choices = {"method": method, "granularity": "element", "allocation": "uniform", "conv_share": 1.0, **settings.pop("sparse", {})}
    spec = Train.model_validate({"epochs": 10, "sparsity": 0.5, "sparse": choices, **settings})
    sparsifier = make_sparsifier(spec, graph, True)
    return sparsifier, TrainingState(spec, graph, params, sparsifier.phases()[0])


def at(sparsifier: Sparsifier, epoch: int) -> EpochPosition:
    return epoch_position(sparsifier.phases(), epoch)


def test_snip_keeps_the_largest_products_of_weight_and_gradient_at_full_radius() -> None:
    graph, params, first, last = two_layers()
    gradients = {
        first: torch.tensor([[0.1, 9.0, -0.1, 1.0], [0.0, 10.0, 0.1, 0.2]]),  # products .05 .9 .03 .2 / 0 .5 .06 .14
        last: torch.tensor([[0.1, -0.1], [-1.0, 0.01]]),  # products .1 .05 / .25 .02
    }
    sparsifier, state = small("snip", params, graph)
    tools = Given(gradients)
    sparsifier.begin_epoch(state, at(sparsifier, 0), tools)
    assert tools.asked == [(1, 1.0)]
    assert state.fixed
    assert state.masks.entries[first].tolist() == [[False, True, False, True], [False, True, False, True]]
    assert state.masks.entries[last].tolist() == [[True, False], [True, False]]
    assert torch.equal(state.params[first] != 0, state.masks.entries[first])
    before = {name: mask.clone() for name, mask in state.masks.entries.items()}
    sparsifier.begin_epoch(state, at(sparsifier, 1), Given())
    assert all(torch.equal(mask, before[name]) for name, mask in state.masks.entries.items())
    # All layers ranked together: 6 of 12 products, of which 1.0 in the first layer would be 5.
    graph, params, first, last = two_layers()
    sparsifier, state = small("snip", params, graph, sparse={"allocation": "global"})
    sparsifier.begin_epoch(state, at(sparsifier, 0), Given(gradients))
    assert int(state.masks.entries[first].sum()) == 4
    assert int(state.masks.entries[last].sum()) == 2
    assert bool(state.masks.entries[last][1, 0])


def with_masks(sparsifier: Sparsifier, state: TrainingState, first: str, last: str) -> None:
    """Starts a dynamic method from known masks, with known moments."""
    sparsifier.begin_epoch(state, at(sparsifier, 0), Given())
    state.params[first].data.copy_(torch.tensor([[0.5, -0.1, 0.3, -0.2], [0.4, 0.05, -0.6, 0.7]]))
    state.params[last].data.copy_(torch.tensor([[1.0, -0.5], [0.25, 2.0]]))
    on = {first: torch.tensor([[True, True, True, True], [False] * 4]), last: torch.tensor([[True, True], [False, False]])}
    state.fix(sparsifier.pattern.masks(on, state.params), False)
    step(state, 0.0)


def step(state: TrainingState, rate: float) -> None:
    """Steps along gradients of 1, removed weights included."""
    for leaf in state.optimiser.leaves.values():
        leaf.grad = torch.ones_like(leaf)
    state.optimiser.step(rate, 100.0)


def test_rigl_swaps_the_smallest_weights_for_the_largest_gradients_and_new_ones_start_afresh() -> None:
    graph, params, first, last = two_layers()
    sparsifier, state = small("rigl", params, graph, sparse={"drop": 0.8, "freeze": 0.6})
    with_masks(sparsifier, state, first, last)
    # Epoch 2 of 6: f = 0.4 (1 + cos(π/3)) = 0.6, so ⌊0.6 · 4⌋ = 2 of the first and ⌊0.6 · 2⌋ = 1 of the last layer go.
    assert sparsifier.fraction(at(sparsifier, 2)) == pytest.approx(0.4 * (1 + cos(pi / 3)))  # type: ignore[attr-defined]
    gradients = {
        # Among the dropped −0.1 and −0.2 the latter comes back; 5.0 belongs to a kept weight and counts for nothing.
        first: torch.tensor([[5.0, 0.2, 0.1, -3.0], [1.0, -2.0, 0.5, 0.0]]),
        last: torch.tensor([[9.0, 0.1], [0.2, -0.3]]),
    }
    tools = Given(gradients)
    sparsifier.begin_epoch(state, at(sparsifier, 2), tools)
    assert tools.asked == [(GROWTH_BATCHES, None)]
    assert state.masks.entries[first].tolist() == [[True, False, True, True], [False, True, False, False]]
    assert state.masks.entries[last].tolist() == [[True, False], [False, True]]
    torch.testing.assert_close(state.params[first].detach(), torch.tensor([[0.5, 0.0, 0.3, -0.2], [0.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(state.params[last].detach(), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    for kind in ("exp_avg", "exp_avg_sq"):
        moments = state.optimiser.moments()[kind]
        assert moments[first][1, 1] == 0  # grown
        assert moments[last][1, 1] == 0
        assert moments[first][0, 0] > 0  # kept
        assert moments[first][0, 3] > 0  # dropped and back at once


def test_set_grows_at_random_and_keeps_what_is_large() -> None:
    chosen = set()
    for seed in range(12):
        graph, params, first, last = two_layers()
        sparsifier, state = small("set", params, graph, sparse={"drop": 0.8, "freeze": 0.6})
        with_masks(sparsifier, state, first, last)
        tools = Given(seed=seed)
        sparsifier.begin_epoch(state, at(sparsifier, 2), tools)
        assert not tools.asked  # it needs no gradient
        mask = state.masks.entries[first]
        assert int(mask.sum()) == 4
        assert bool(mask[0, 0])
        assert bool(mask[0, 2])
        assert torch.equal(state.params[first][1], torch.zeros(4))
        chosen.add(tuple(mask.flatten().tolist()))
    assert len(chosen) > 3


def test_sparsevlr_prunes_to_the_budget_and_thickens_by_the_gradient() -> None:
    graph, params, first, last = two_layers()
    sparsifier, state = small("sparsevlr", params, graph, sparse={"drop": 0.5, "freeze": 0.6})
    sparsifier.begin_epoch(state, at(sparsifier, 0), Given())
    assert [int(state.masks.entries[name].sum()) for name in (first, last)] == [4, 2]
    assert not state.fixed
    started = {name: mask.clone() for name, mask in state.masks.entries.items()}
    step(state, 0.0)
    state.params[first].data.copy_(torch.tensor([[0.5, -0.1, 0.3, -0.2], [0.4, 0.05, -0.6, 0.7]]))
    state.params[last].data.copy_(torch.tensor([[1.0, -0.5], [0.25, 2.0]]))
    gradients = {
        first: torch.tensor([[0.0, 0.3, 1.0, -2.0], [0.0, -3.0, 0.0, 0.0]]),
        last: torch.tensor([[0.0, 0.1], [-0.2, 0.0]]),
    }
    sparsifier.begin_epoch(state, at(sparsifier, 2), Given(gradients))
    # f = 0.25 (1 + cos(π/3)) = 0.375: ⌈1.5⌉ = 2 more than .5 .4 −.6 .7, and ⌈0.75⌉ = 1 more than 1 and 2.
    assert state.masks.entries[first].tolist() == [[True, False, False, True], [True, True, True, True]]
    assert state.masks.entries[last].tolist() == [[True, False], [True, True]]
    torch.testing.assert_close(state.params[first].detach(), torch.tensor([[0.5, 0, 0, 0], [0.4, 0, -0.6, 0.7]]))
    moments = state.optimiser.moments()["exp_avg"][first]
    grown = state.masks.entries[first] & ~started[first]
    assert bool((moments[grown] == 0).all())
    assert bool((moments[~grown] > 0).all())
    # A step moves what is active, old or new, and nothing else, whatever moments are left from before.
    for leaf in state.optimiser.leaves.values():
        leaf.grad = torch.ones_like(leaf)
    sparsifier.before_step(state)
    assert state.optimiser.step(0.01, 100.0) == pytest.approx(sqrt(6 + 3 + 4))  # both weights' active entries, and the biases
    assert not torch.equal(state.params[first] != 0, state.masks.entries[first])
    sparsifier.after_step(state)
    assert torch.equal(state.params[first] != 0, state.masks.entries[first])
    sparsifier.begin_epoch(state, at(sparsifier, 6), Given())
    assert state.fixed
    assert [int(state.masks.entries[name].sum()) for name in (first, last)] == [4, 2]


def test_sparsevlr_grows_the_channel_whose_filter_and_readers_gradient_are_largest() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = from_torch(module, (1, 1, 2))
    params = graph.tensors()
    first, last = (node.weight for node in graph.nodes if hasattr(node, "weight"))
    sparsifier, state = small("sparsevlr", params, graph, sparse={"granularity": "channel", "drop": 0.5, "freeze": 0.6})
    sparsifier.begin_epoch(state, at(sparsifier, 0), Given())
    group = sparsifier.pattern.groups[0].name  # type: ignore[attr-defined]
    state.params[first].data.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.1, 0.0], [0.5, 0.0]]))
    state.params[last].data.copy_(torch.tensor([[1.0, 1.0, 0.1, 0.1], [1.0, 1.0, 0.1, 0.1]]))
    gradients = {first: torch.zeros(4, 2), last: torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])}
    sparsifier.begin_epoch(state, at(sparsifier, 2), Given(gradients))
    # Units 0 and 1 stay; of the others 0.1 · 2 is less than 0.5 · 1, so unit 3 grows, with its filter and no readers yet.
    assert state.masks.groups[group].tolist() == [True, True, False, True]
    assert state.params[first][3].tolist() == [0.5, 0.0]
    assert state.params[last][:, 2:].abs().sum() == 0


def test_hydra_scores_start_scaled_and_their_gradient_passes_the_mask() -> None:
    graph, params, first, last = two_layers()
    sparsifier, state = small("hydra", params, graph, sparse={"prune_epochs": 2, "finetune_epochs": 1})
    assert isinstance(sparsifier, Hydra)
    weight = state.params[first].detach().clone()
    begin = at(sparsifier, 10)
    assert begin.phase.name == "prune"
    state.begin(begin.phase)
    sparsifier.begin_epoch(state, begin, Given())
    scores = state.extras[f"scores/{first}"]
    torch.testing.assert_close(scores.detach(), weight * sqrt(6 / 4) / 0.7)
    torch.testing.assert_close(state.extras[f"scores/{last}"].detach(), params[last] * sqrt(6 / 2) / 2.0)
    assert set(state.optimiser.leaves) == set(state.extras)
    found = sparsifier.effective(state)
    # The first mask is that of magnitude: .5 of the first row, .4 .6 .7 of the second; 1 and 2 of the last layer.
    assert torch.equal(found[first].detach(), torch.tensor([[0.5, 0, 0, 0], [0.4, 0, -0.6, 0.7]]))
    assert torch.equal(found[last].detach(), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert torch.equal(state.masks.entries[first], found[first] != 0)
    x = torch.rand(3, 1, 1, 4)
    plain = {name: value.detach().clone().requires_grad_(True) for name, value in found.items()}
    (run(graph, plain, x) ** 2).sum().backward()
    (run(graph, found, x) ** 2).sum().backward()
    for name in (first, last):
        gradient = plain[name].grad
        assert gradient is not None
        held = state.params[name]
        torch.testing.assert_close(state.extras[f"scores/{name}"].grad, gradient * held * held.sign())
    assert all(value.grad is None for value in state.params.values())  # the weights are frozen


def test_hydra_changes_its_mask_where_the_loss_wants_it() -> None:
    graph, params, first, _ = two_layers()
    sparsifier, state = small("hydra", params, graph, optimizer="sgd", momentum=0.0)
    begin = at(sparsifier, 10)
    state.begin(begin.phase)
    sparsifier.begin_epoch(state, begin, Given())
    before = {name: value.clone() for name, value in state.params.items()}
    for _ in range(30):  # a loss that falls as the second input of the first unit, −0.1, comes in
        state.optimiser.clear()
        sparsifier.effective(state)[first][0, 1].mul(10.0).backward()
        state.optimiser.step(0.05, 100.0)
        sparsifier.after_step(state)
    assert bool(sparsifier.effective(state)[first][0, 1] == before[first][0, 1])
    assert all(torch.equal(value, before[name]) for name, value in state.params.items())
    tuned = at(sparsifier, 14)
    assert tuned.index == 2
    wanted = {name: mask.clone() for name, mask in state.masks.entries.items()}
    state.begin(tuned.phase)
    sparsifier.begin_epoch(state, EpochPosition(tuned.epoch, 2, tuned.phase, 0, True), Given())
    assert state.fixed
    assert not state.extras
    assert all(torch.equal(mask, wanted[name]) for name, mask in state.masks.entries.items())
    assert torch.equal(state.params[first], before[first] * wanted[first])


def test_scaled_scores_and_the_straight_through_mask_at_their_edges() -> None:
    assert torch.equal(scaled_scores(torch.zeros(2, 3)), torch.zeros(2, 3))
    score = torch.tensor([-1e30, 3.0, 0.1, 1e-20], requires_grad=True)
    mask = torch.tensor([True, False, True, False])
    assert straight_through(mask, score).tolist() == [1, 0, 1, 0]
    straight_through(mask, score).sum().backward()
    assert score.grad is not None
    assert score.grad.tolist() == [-1, 1, 1, 1]


def test_one_shot_magnitude_removes_the_smallest_weights() -> None:
    graph, params, first, last = two_layers()
    sparsifier, state = small("magnitude", params, graph)
    sparsifier.begin_epoch(state, at(sparsifier, 0), Given())
    assert not state.masks.entries
    begin = at(sparsifier, 10)
    assert (begin.phase.name, begin.phase.ramp, begin.inside, begin.last) == ("fine-tune 1", False, 0, True)
    state.begin(begin.phase)
    sparsifier.begin_epoch(state, begin, Given())
    assert state.fixed
    assert torch.equal(state.params[first].detach(), torch.tensor([[0.5, 0, 0, 0], [0.4, 0, -0.6, 0.7]]))
    assert torch.equal(state.params[last].detach(), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))


def test_removed_weights_have_no_part_in_the_norm_that_clips() -> None:
    graph, params, first, _ = two_layers()
    sparsifier, state = small("snip", params, graph)
    sparsifier.begin_epoch(state, at(sparsifier, 0), Given({name: torch.ones_like(value) for name, value in params.items()}))
    for leaf in state.optimiser.leaves.values():
        leaf.grad = torch.ones_like(leaf)
    sparsifier.before_step(state)
    alive = sum(int(mask.sum()) for mask in state.masks.entries.values()) + 4  # and the biases
    assert state.optimiser.step(0.1, 100.0) == pytest.approx(sqrt(alive))
    assert torch.equal(state.params[first] != 0, state.masks.entries[first])


def test_gradual_pruning_spends_nothing_on_a_unit_that_never_fires() -> None:
    for quiet, unit_0, unit_1, column_0, column_1 in (
        (False, [True, False, False, False], [False, False, True, True], [True, False], [True, True]),
        (True, [True, True, True, True], [False] * 4, [True, True], [False, False]),
    ):
        graph, params, first, last = two_layers()
        sparsifier, state = small("gradual", params, graph, sparse={"allocation": "global", "freeze": 0.5})
        tools = Given()
        tools.quiet = {groups_of(graph)[0].name: torch.tensor([False, True])} if quiet else {}
        sparsifier.begin_epoch(state, at(sparsifier, 5), tools)
        assert state.fixed
        # The six largest of all twelve weights, or all six of the unit that fires.
        assert state.masks.entries[first].tolist() == [unit_0, unit_1]
        assert state.masks.entries[last].T.tolist() == [column_0, column_1]


def test_sensitivity_is_the_weight_times_the_root_of_the_mean_squared_gradient() -> None:
    graph, params, first, last = two_layers()
    sparsifier, state = small("gradual", params, graph, sparse={"allocation": "global", "freeze": 0.5, "importance": "sensitivity"})
    moments = state.optimiser.moments()
    # |w|·√v: .05 .1 .03 .02 / .4 .1 0 .07 in the first layer, .1 .5 / .025 .02 in the last.
    moments["exp_avg_sq"][first] = torch.tensor([[0.1, 1.0, 0.1, 0.1], [1.0, 2.0, 0.0, 0.1]]).square()
    moments["exp_avg_sq"][last] = torch.tensor([[0.1, 1.0], [0.1, 0.01]]).square()
    state.begin(state.phase, moments, 3)
    sparsifier.begin_epoch(state, at(sparsifier, 5), Given())
    assert state.masks.entries[first].tolist() == [[False, True, False, False], [True, True, False, True]]
    assert state.masks.entries[last].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("granularity", ["element", "block", "2:4", "channel"])
def test_sensitivity_goes_with_every_granularity_and_batch_norm(granularity: str) -> None:
    graph = graph_of("residual")
    sizes = {"sparsity": 0.3 if granularity == "2:4" else 0.5}
    sparse = {"allocation": "global", "freeze": 0.5, "importance": "sensitivity", "granularity": granularity, "block": (2, 2)}
    sparsifier, state = small("gradual", graph.tensors(), graph, sparse=sparse, **sizes)
    moments = state.optimiser.moments()
    moments["exp_avg_sq"] = {name: torch.ones_like(value) for name, value in moments["exp_avg_sq"].items()}
    state.begin(state.phase, moments, 3)
    wanted = sparsifier.pattern.choose({name: state.params[name] for name in sparsifier.pattern.weights})
    sparsifier.begin_epoch(state, at(sparsifier, 5), Given())
    # Where all squared gradients are 1, sensitivity is magnitude.
    assert {name: mask.tolist() for name, mask in state.masks.entries.items()} == {
        name: mask.tolist() for name, mask in wanted.entries.items()
    }
    assert not all(bool(mask.all()) for mask in wanted.entries.values())


def test_gradual_density_may_be_final_before_the_mask_is() -> None:
    graph, params, _, _ = two_layers()
    sparsifier, _ = small("gradual", params, graph, sparse={"freeze": 0.8, "reach": 0.5})
    densities = [sparsifier.density(at(sparsifier, epoch)) for epoch in range(10)]  # type: ignore[attr-defined]
    assert densities == pytest.approx([0.5 + 0.5 * (1 - epoch / 4) ** 3 for epoch in range(4)] + [0.5] * 6)
    assert [sparsifier.settled(at(sparsifier, epoch)) for epoch in range(10)] == [False] * 8 + [True] * 2
