"""Sparsifiers: budgets met, masks that hold, phases, resumption after every epoch, and choices checked by hand on a small net."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, cos, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vsparse.data import Dataset, Splits
from vsparse.errors import InputError
from vsparse.graph import from_torch, run
from vsparse.graph.ir import Graph
from vsparse.recipe import Recipe
from vsparse.recipe_train import Train
from vsparse.stages.train import EpochReport, TrainResult, train
from vsparse.stages.train.determinism import generator
from vsparse.stages.train.initialisation import initialise
from vsparse.stages.train.plan import Moment, moment
from vsparse.stages.train.schedule import Schedule
from vsparse.stages.train.sparsifiers import METHODS, Sparsifier, make_sparsifier
from vsparse.stages.train.sparsifiers.dynamic import GROWTH_BATCHES
from vsparse.stages.train.sparsifiers.hydra import Hydra, scaled_scores, straight_through
from vsparse.stages.train.state import State
from vsparse.stages.train.trainer import CHOICES, Trainer


def blobs(count: int, seed: int) -> Dataset:
    """Three classes of 4×4 images, each with its own bright quarter, and noise: learnt in a few steps."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    pixels = rng.integers(0, 60, (count, 1, 4, 4))
    for index, label in enumerate(labels):
        top, left = divmod(int(label), 2)
        pixels[index, 0, 2 * top : 2 * top + 2, 2 * left : 2 * left + 2] += 180
    return Dataset(pixels.astype(np.uint8), 255.0, labels.astype(np.int64), ("a", "b", "c"), None)


SPLITS = Splits(blobs(90, 0), blobs(30, 1), blobs(30, 2), "blobs", "0" * 64)
SPARSITY = {"element": 0.6, "block": 0.6, "2:4": 0.45, "channel": 0.6}


def recipe(
    method: str, granularity: str = "element", architecture: str = "mlp", sparse: dict[str, Any] | None = None, **settings: Any
) -> Recipe:
    choices = {
        "method": method,
        "granularity": granularity,
        "block": [2, 2],
        "allocation": "uniform",
        "conv_share": 1.0,
        "freeze": 0.6,
        "rounds": 2 if method in ("magnitude", "lottery") else 1,
        "prune_epochs": 2,
        "prune_learning_rate": 0.01,
        "finetune_epochs": 0 if method == "lottery" else 2,
        **(sparse or {}),
    }
    base = {
        "epochs": 5,
        "batch_size": 32,
        "learning_rate": 0.01,
        "warmup": 0.1,
        "ramp": 0.4,
        "sparsity": SPARSITY[granularity],
        "sparse": choices,
    }
    return Recipe.model_validate(
        {
            "name": "t",
            "network": {"architecture": architecture, "width": 0.05 if architecture == "cnn5" else 0.2},
            "property": {"epsilon": "0.05"},
            "train": {**base, **settings},
        }
    )


CASES = [
    *((method, "element") for method in METHODS),
    *((method, "channel") for method in METHODS if method not in ("set", "rigl", "snip")),
    *((method, "2:4") for method in ("magnitude", "rigl", "sparsevlr", "hydra", "snip")),
    *((method, "block") for method in ("set", "rigl", "hydra", "lottery", "snip")),
]
PHASES = {
    "magnitude": ["train"] * 5 + ["fine-tune 1"] * 2 + ["fine-tune 2"] * 2,
    "lottery": ["train"] * 5 + ["round 1"] * 5 + ["round 2"] * 5,
    "hydra": ["train"] * 5 + ["prune"] * 2 + ["fine-tune"] * 2,
}


def same(a: TrainResult, b: TrainResult) -> bool:
    return (
        a.graph.nodes == b.graph.nodes
        and all(np.array_equal(a.graph.params[name], b.graph.params[name]) for name in a.graph.params)
        and all(np.array_equal(mask, b.masks[name]) for name, mask in a.masks.items())
    )


class _Killed(Exception):
    pass


def _stop(report: EpochReport) -> None:
    raise _Killed


def in_pieces(wanted: Recipe, directory: Path) -> TrainResult:
    """Trains with an interrupt after every epoch."""
    while True:
        before = Trainer(wanted, SPLITS, directory, True)
        if before.finished:
            return train(wanted, SPLITS, directory, sparse=True)
        with pytest.raises(_Killed):
            train(wanted, SPLITS, directory, sparse=True, progress=_stop)


# Whole trainings.


@pytest.mark.parametrize(("method", "granularity"), CASES)
def test_each_method_meets_its_budget_whatever_the_interrupts(tmp_path: Path, method: str, granularity: str) -> None:
    wanted = recipe(method, granularity, "cnn5" if granularity == "channel" else "mlp")
    reports: list[EpochReport] = []
    whole = train(wanted, SPLITS, tmp_path / "whole", sparse=True, progress=reports.append)
    assert [report.phase for report in reports] == PHASES.get(method, ["train"] * 5)
    assert [report.epoch for report in reports] == list(range(1, len(reports) + 1))
    total, kept = sum(mask.size for mask in whole.masks.values()), sum(int(mask.sum()) for mask in whole.masks.values())
    limit = int((1 - SPARSITY[granularity]) * total + 1e-9)
    if granularity == "element":
        assert kept == limit
    else:
        assert limit * 0.8 < kept <= limit
    assert reports[-1].density == pytest.approx(kept / total)
    for name, mask in whole.masks.items():
        assert not whole.graph.params[name][~mask].any()
    living = sum(int((whole.graph.params[name][mask] != 0).sum()) for name, mask in whole.masks.items())
    assert living > 0.9 * kept  # but what grew where no gradient comes
    if granularity == "2:4":
        fours = [mask.reshape(len(mask), -1, 4).sum(2) for mask in whole.masks.values() if not mask.all()]
        assert fours
        assert all((four == 2).all() for four in fours)
    if granularity == "block":
        for mask in whole.masks.values():
            rows, columns = mask.shape[0] // 2 * 2, mask.shape[1] // 2 * 2
            sums = mask[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).sum((1, 3))
            assert np.isin(sums, (0, 4)).all()
    pieces = in_pieces(wanted, tmp_path / "pieces")
    assert same(whole, pieces)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in pieces.history] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in whole.history
    ]


@pytest.mark.parametrize("method", list(METHODS))
def test_each_method_learns_to_certify(tmp_path: Path, method: str) -> None:
    settings = {"finetune_epochs": 0 if method == "lottery" else 8, "prune_epochs": 4}
    result = train(recipe(method, sparse=settings, epochs=12, batch_size=10, sparsity=0.5), SPLITS, tmp_path, sparse=True)
    assert result.history[0]["certified"] < 0.7
    assert result.history[-1]["certified"] > 0.95


@pytest.mark.parametrize("method", list(METHODS))
def test_global_allocation_meets_the_budget(tmp_path: Path, method: str) -> None:
    result = train(recipe(method, sparse={"allocation": "global"}, epochs=3), SPLITS, tmp_path, sparse=True)
    kept, total = sum(int(mask.sum()) for mask in result.masks.values()), sum(mask.size for mask in result.masks.values())
    assert kept == int(0.4 * total + 1e-9)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("vericompress", [3, 4]),  # full radius from 2.5 epochs, final mask from 3
        ("sparsevlr", [3, 4]),
        ("set", [3, 4]),
        ("rigl", [3, 4]),
        ("snip", [3, 4]),
        ("magnitude", [7, 8]),
        ("lottery", [13, 14]),
        ("hydra", [7, 8]),
    ],
)
def test_only_networks_at_full_radius_with_final_masks_may_be_the_result(tmp_path: Path, method: str, expected: list[int]) -> None:
    trainer = Trainer(recipe(method), SPLITS, tmp_path, True)
    assert [epoch for epoch in range(trainer.epochs) if trainer.ready(moment(trainer.phases, epoch))] == expected


def test_pruned_networks_are_trained_on_at_full_radius_and_a_tenth_of_the_rate_and_rounds_ramp_anew(tmp_path: Path) -> None:
    def rows(method: str, **sparse: Any) -> list[dict[str, Any]]:
        return train(recipe(method, sparse=sparse), SPLITS, tmp_path / f"{method}{len(sparse)}", sparse=True).history

    fine = rows("magnitude")[5:]
    assert {row["epsilon"] for row in fine} == {0.05}
    assert fine[0]["learning_rate"] == pytest.approx(0.001)
    assert rows("magnitude", finetune_learning_rate=0.02)[5]["learning_rate"] == 0.02
    again = rows("lottery")
    assert again[5]["epsilon"] == again[0]["epsilon"] < 0.05
    assert again[5]["learning_rate"] == 0.01
    assert rows("lottery", rewind="continue")[5]["epsilon"] == 0.05
    assert [row["learning_rate"] for row in rows("hydra")[5:8]] == pytest.approx([0.01, 0.01, 0.001])


def test_channels_are_gone_in_the_last_phase_and_only_zeroed_before_it(tmp_path: Path) -> None:
    for method, first in (("magnitude", 7), ("lottery", 10), ("hydra", 7), ("sparsevlr", 3), ("vericompress", 3)):
        trainer = Trainer(recipe(method, "channel", "cnn4"), SPLITS, tmp_path / method, True)
        packed = []
        while not trainer.finished:
            trainer.run_epoch()
            packed.append(trainer.state.packing is not None)
        assert packed == [epoch >= first for epoch in range(trainer.epochs)]
        assert sum(value.numel() for value in trainer.state.params.values()) < 0.5 * sum(
            value.size for value in trainer.state.full.params.values()
        )


# Choices, by hand.


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

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def gradients(self, batches: int, share: float | None = None) -> dict[str, Tensor]:
        self.asked.append((batches, share))
        return self.given


def small(method: str, params: dict[str, Tensor], graph: Graph, **settings: Any) -> tuple[Sparsifier, State]:
    choices = {"method": method, "granularity": "element", "allocation": "uniform", "conv_share": 1.0, **settings.pop("sparse", {})}
    spec = Train.model_validate({"epochs": 10, "sparsity": 0.5, "sparse": choices, **settings})
    sparsifier = make_sparsifier(spec, graph, True)
    return sparsifier, State(spec, graph, params, sparsifier.phases()[0])


def at(sparsifier: Sparsifier, epoch: int) -> Moment:
    return moment(sparsifier.phases(), epoch)


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
    assert state.masks[first].tolist() == [[False, True, False, True], [False, True, False, True]]
    assert state.masks[last].tolist() == [[True, False], [True, False]]
    assert torch.equal(state.params[first] != 0, state.masks[first])
    before = {name: mask.clone() for name, mask in state.masks.items()}
    sparsifier.begin_epoch(state, at(sparsifier, 1), Given())
    assert all(torch.equal(mask, before[name]) for name, mask in state.masks.items())
    # All layers ranked together: 6 of 12 products, of which 1.0 in the first layer would be 5.
    graph, params, first, last = two_layers()
    sparsifier, state = small("snip", params, graph, sparse={"allocation": "global"})
    sparsifier.begin_epoch(state, at(sparsifier, 0), Given(gradients))
    assert int(state.masks[first].sum()) == 4
    assert int(state.masks[last].sum()) == 2
    assert bool(state.masks[last][1, 0])


def with_masks(sparsifier: Sparsifier, state: State, first: str, last: str) -> None:
    """Starts a dynamic method from known masks, with known moments."""
    sparsifier.begin_epoch(state, at(sparsifier, 0), Given())
    state.params[first].data.copy_(torch.tensor([[0.5, -0.1, 0.3, -0.2], [0.4, 0.05, -0.6, 0.7]]))
    state.params[last].data.copy_(torch.tensor([[1.0, -0.5], [0.25, 2.0]]))
    on = {first: torch.tensor([[True, True, True, True], [False] * 4]), last: torch.tensor([[True, True], [False, False]])}
    state.fix(sparsifier.pattern.masks(on, state.params), False)
    step(state, 0.0)


def step(state: State, rate: float) -> None:
    """Steps along gradients of 1, removed weights included."""
    for leaf in state.optimiser.leaves.values():
        leaf.grad = torch.ones_like(leaf)
    state.optimiser.step(rate, 100.0)


def test_rigl_swaps_the_smallest_weights_for_the_largest_gradients_and_new_ones_start_afresh() -> None:
    graph, params, first, last = two_layers()
    sparsifier, state = small("rigl", params, graph, sparse={"drop": 0.8, "freeze": 0.6})
    with_masks(sparsifier, state, first, last)
    # Epoch 2 of 6: f = 0.4 (1 + cos(π/3)) = 0.6, so ⌊0.6 · 4⌋ = 2 of the first and ⌊0.6 · 2⌋ = 1 of the last layer go.
    assert sparsifier.share(at(sparsifier, 2)) == pytest.approx(0.4 * (1 + cos(pi / 3)))  # type: ignore[attr-defined]
    gradients = {
        # Among the dropped −0.1 and −0.2 the latter comes back; 5.0 belongs to a kept weight and counts for nothing.
        first: torch.tensor([[5.0, 0.2, 0.1, -3.0], [1.0, -2.0, 0.5, 0.0]]),
        last: torch.tensor([[9.0, 0.1], [0.2, -0.3]]),
    }
    tools = Given(gradients)
    sparsifier.begin_epoch(state, at(sparsifier, 2), tools)
    assert tools.asked == [(GROWTH_BATCHES, None)]
    assert state.masks[first].tolist() == [[True, False, True, True], [False, True, False, False]]
    assert state.masks[last].tolist() == [[True, False], [False, True]]
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
        mask = state.masks[first]
        assert int(mask.sum()) == 4
        assert bool(mask[0, 0])
        assert bool(mask[0, 2])
        assert torch.equal(state.params[first][1], torch.zeros(4))
        chosen.add(tuple(mask.flatten().tolist()))
    assert len(chosen) > 3


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_the_mask_of_drop_and_grow_moves_and_freezes_and_holds_in_every_step(tmp_path: Path, method: str) -> None:
    trainer = Trainer(recipe(method, epochs=8, sparse={"thickening_length": 2}), SPLITS, tmp_path, True)
    seen: list[dict[str, Tensor]] = []
    after = trainer.sparsifier.after_step

    def checked(state: State) -> None:
        after(state)
        assert all(not bool(state.params[name][~mask].any()) for name, mask in state.masks.items())

    trainer.sparsifier.after_step = checked  # type: ignore[method-assign]
    while not trainer.finished:
        trainer.run_epoch()
        seen.append({name: mask.clone() for name, mask in trainer.state.masks.items()})
        assert trainer.density() == pytest.approx(seen[0] and trainer.history[0]["density"])
    changed = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(seen)]
    assert changed == [False, True, False, True, False, False, False]  # before epochs 2 and 4; frozen from 5 on


def test_sparsevlr_prunes_to_the_budget_and_thickens_by_the_gradient() -> None:
    graph, params, first, last = two_layers()
    sparsifier, state = small("sparsevlr", params, graph, sparse={"drop": 0.5, "freeze": 0.6})
    sparsifier.begin_epoch(state, at(sparsifier, 0), Given())
    assert [int(state.masks[name].sum()) for name in (first, last)] == [4, 2]
    assert not state.fixed
    started = {name: mask.clone() for name, mask in state.masks.items()}
    step(state, 0.0)
    state.params[first].data.copy_(torch.tensor([[0.5, -0.1, 0.3, -0.2], [0.4, 0.05, -0.6, 0.7]]))
    state.params[last].data.copy_(torch.tensor([[1.0, -0.5], [0.25, 2.0]]))
    gradients = {
        first: torch.tensor([[0.0, 0.3, 1.0, -2.0], [0.0, -3.0, 0.0, 0.0]]),
        last: torch.tensor([[0.0, 0.1], [-0.2, 0.0]]),
    }
    sparsifier.begin_epoch(state, at(sparsifier, 2), Given(gradients))
    # f = 0.25 (1 + cos(π/3)) = 0.375: ⌈1.5⌉ = 2 more than .5 .4 −.6 .7, and ⌈0.75⌉ = 1 more than 1 and 2.
    assert state.masks[first].tolist() == [[True, False, False, True], [True, True, True, True]]
    assert state.masks[last].tolist() == [[True, False], [True, True]]
    torch.testing.assert_close(state.params[first].detach(), torch.tensor([[0.5, 0, 0, 0], [0.4, 0, -0.6, 0.7]]))
    moments = state.optimiser.moments()["exp_avg"][first]
    grown = state.masks[first] & ~started[first]
    assert bool((moments[grown] == 0).all())
    assert bool((moments[~grown] > 0).all())
    # A step moves what is active, old or new, and nothing else, whatever moments are left from before.
    for leaf in state.optimiser.leaves.values():
        leaf.grad = torch.ones_like(leaf)
    sparsifier.before_step(state)
    assert state.optimiser.step(0.01, 100.0) == pytest.approx(sqrt(6 + 3 + 4))  # both weights' active entries, and the biases
    assert not torch.equal(state.params[first] != 0, state.masks[first])
    sparsifier.after_step(state)
    assert torch.equal(state.params[first] != 0, state.masks[first])
    sparsifier.begin_epoch(state, at(sparsifier, 6), Given())
    assert state.fixed
    assert [int(state.masks[name].sum()) for name in (first, last)] == [4, 2]


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
    assert state.masks[f"units:{group}"].tolist() == [True, True, False, True]
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
    assert torch.equal(state.masks[first], found[first] != 0)
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


def test_hydra_changes_its_mask_where_the_loss_wants_it(tmp_path: Path) -> None:
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
    wanted = {name: mask.clone() for name, mask in state.masks.items()}
    state.begin(tuned.phase)
    sparsifier.begin_epoch(state, Moment(tuned.epoch, 2, tuned.phase, 0, True), Given())
    assert state.fixed
    assert not state.extras
    assert all(torch.equal(mask, wanted[name]) for name, mask in state.masks.items())
    assert torch.equal(state.params[first], before[first] * wanted[first])


def test_hydra_without_fine_tuning_gives_the_pruned_network(tmp_path: Path) -> None:
    for granularity in ("element", "channel"):
        wanted = recipe("hydra", granularity, sparse={"finetune_epochs": 0})
        trainer = Trainer(wanted, SPLITS, tmp_path / granularity, True)
        while not trainer.finished:
            trainer.run_epoch()
        result = trainer.result()
        assert [row["phase"] for row in result.history] == ["train"] * 5 + ["prune"] * 2
        trained = trainer.state.params
        for name, mask in result.masks.items():
            assert np.array_equal(result.graph.params[name], np.where(mask, trained[name].detach().numpy(), np.float32(0)))
        assert sum(int(mask.sum()) for mask in result.masks.values()) <= 0.4 * sum(mask.size for mask in result.masks.values()) + 1


def test_scaled_scores_and_the_straight_through_mask_at_their_edges() -> None:
    assert torch.equal(scaled_scores(torch.zeros(2, 3)), torch.zeros(2, 3))
    score = torch.tensor([-1e30, 3.0, 0.1, 1e-20], requires_grad=True)
    mask = torch.tensor([True, False, True, False])
    assert straight_through(mask, score).tolist() == [1, 0, 1, 0]
    straight_through(mask, score).sum().backward()
    assert score.grad is not None
    assert score.grad.tolist() == [-1, 1, 1, 1]


def recorded(wanted: Recipe, directory: Path) -> tuple[Trainer, list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Trains to the end; returns the full-size parameters and the masks with which each epoch began."""
    trainer = Trainer(wanted, SPLITS, directory, True)
    begin = trainer.sparsifier.begin_epoch
    params: list[dict[str, Tensor]] = []
    masks: list[dict[str, Tensor]] = []

    def kept(state: State, now: Moment, tools: Any) -> None:
        begin(state, now, tools)
        params.append({name: value.detach().clone() for name, value in state.unpacked(state.params).items()})
        masks.append({name: mask.clone() for name, mask in state.masks.items()})

    trainer.sparsifier.begin_epoch = kept  # type: ignore[method-assign]
    while not trainer.finished:
        trainer.run_epoch()
    return trainer, params, masks


def agrees(found: dict[str, Tensor], wanted: dict[str, Tensor], masks: dict[str, Tensor]) -> bool:
    return all(
        torch.equal(value, wanted[name] * masks[name] if name in masks else wanted[name]) or name.endswith("variance")
        for name, value in found.items()
    )


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_lottery_tickets_start_from_the_bits_that_the_arm_says(tmp_path: Path, granularity: str) -> None:
    runs = {
        arm: recorded(recipe("lottery", granularity, sparse={"rewind": arm, "rewind_epoch": 2}), tmp_path / arm)
        for arm in ("initial", "early", "random", "continue")
    }
    for arm, (trainer, params, masks) in runs.items():
        for start in (5, 10):
            source = {"initial": params[0], "early": params[2], "random": params[0]}.get(arm)
            if arm == "continue" or (arm, start) == ("random", 10):
                assert not agrees(params[start], params[0], masks[start])
                continue
            assert source is not None
            assert agrees(params[start], source, masks[start])
        assert not trainer.state.extras  # nothing is kept once the last round has begun
    # The control has the tickets' masks, on weights drawn anew as the first ones were.
    for name, mask in runs["initial"][2][10].items():
        assert torch.equal(mask, runs["random"][2][10][name])
    trainer, params, masks = runs["random"]
    fresh = {name: torch.from_numpy(value.copy()) for name, value in trainer.state.full.params.items()}
    initialise(trainer.state.full, fresh, generator(0, 10, CHOICES))
    assert agrees(params[10], fresh, masks[10])


@pytest.mark.parametrize("method", ["magnitude", "lottery"])
def test_rounds_keep_the_same_share_each_and_never_take_back_what_was_removed(tmp_path: Path, method: str) -> None:
    wanted = recipe(method, sparse={"rounds": 3, "finetune_epochs": 1}, epochs=3, sparsity=0.8)
    trainer, params, masks = recorded(wanted, tmp_path)
    assert [row["density"] for row in trainer.history] == pytest.approx([1, 1, 1, 0.2 ** (1 / 3), 0.2 ** (2 / 3), 0.2], abs=0.002)
    for earlier, later in pairwise(masks[3:]):
        assert all(bool((earlier[name] | ~later[name]).all()) for name in later)
    # What goes is smallest in magnitude: nothing removed is larger than what stays of its layer.
    if method == "magnitude":
        for name, mask in masks[3].items():
            assert torch.equal(params[3][name] != 0, mask)


def test_one_shot_magnitude_removes_the_smallest_weights() -> None:
    graph, params, first, last = two_layers()
    sparsifier, state = small("magnitude", params, graph)
    sparsifier.begin_epoch(state, at(sparsifier, 0), Given())
    assert not state.masks
    begin = at(sparsifier, 10)
    assert (begin.phase.name, begin.phase.ramp, begin.inside, begin.last) == ("fine-tune 1", False, 0, True)
    state.begin(begin.phase)
    sparsifier.begin_epoch(state, begin, Given())
    assert state.fixed
    assert torch.equal(state.params[first].detach(), torch.tensor([[0.5, 0, 0, 0], [0.4, 0, -0.6, 0.7]]))
    assert torch.equal(state.params[last].detach(), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))


# What the trainer lends, and what is refused.


def test_gradients_are_those_of_the_loss_at_the_share_asked_for_and_leave_no_trace(tmp_path: Path) -> None:
    trainer = Trainer(recipe("snip"), SPLITS, tmp_path, True)
    start = moment(trainer.phases, 0)
    before = {name: value.detach().clone() for name, value in trainer.state.params.items()}
    whole = trainer.gradients(start, 3, 1.0)  # 90 samples in batches of 30: all of them
    name = next(iter(whole))
    assert torch.equal(whole[name], trainer.gradients(start, 3, 1.0)[name])
    assert not torch.allclose(whole[name], trainer.gradients(start, 1, 1.0)[name])
    assert not torch.allclose(whole[name], trainer.gradients(start, 3, None)[name])  # no radius yet
    assert all(torch.equal(value, before[key]) for key, value in trainer.state.params.items())
    assert all(value.grad is None for value in trainer.state.params.values())
    # Against a difference quotient of the loss on all samples.
    place = torch.unravel_index(whole[name].abs().argmax(), whole[name].shape)

    def value(step: float) -> float:
        with torch.no_grad():
            trainer.state.params[name].copy_(before[name])
            trainer.state.params[name][place] += step
            batch = trainer._batch(
                Schedule(trainer.spec, start.phase), 1.0, trainer.train.inputs(torch.arange(90)), trainer.train.labels, torch.Generator()
            )
            return float(trainer.stepper.loss(batch, 1.0)[0])

    quotient = (value(1e-2) - value(-1e-2)) / 2e-2
    assert float(whole[name][place]) == pytest.approx(quotient, rel=0.05)


def test_removed_weights_have_no_part_in_the_norm_that_clips() -> None:
    graph, params, first, _ = two_layers()
    sparsifier, state = small("snip", params, graph)
    sparsifier.begin_epoch(state, at(sparsifier, 0), Given({name: torch.ones_like(value) for name, value in params.items()}))
    for leaf in state.optimiser.leaves.values():
        leaf.grad = torch.ones_like(leaf)
    sparsifier.before_step(state)
    alive = sum(int(mask.sum()) for mask in state.masks.values()) + 4  # and the biases
    assert state.optimiser.step(0.1, 100.0) == pytest.approx(sqrt(alive))
    assert torch.equal(state.params[first] != 0, state.masks[first])


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("magnitude", {"sparse": {"finetune_epochs": 0}}, r"finetune_epochs is 0.*at least 1"),
        ("lottery", {"sparse": {"rewind": "early", "rewind_epoch": 5}}, r"rewind_epoch is 5.*5 epochs.*below train\.epochs"),
        ("hydra", {"objective": "crown-ibp", "engine": "auto_lirpa"}, r'hydra.*auto_LiRPA.*engine = "vsparse"'),
        ("rigl", {"sparsity": 0.9999}, r"layer .* cannot be met|less than one"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(tmp_path: Path, method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Trainer(recipe(method, **settings), SPLITS, tmp_path, True)
    assert "\n" not in str(caught.value)


def test_one_epoch_and_long_periods_are_enough(tmp_path: Path) -> None:
    for method in METHODS:
        settings: dict[str, Any] = {"thickening_length": 7, "finetune_epochs": 1, "prune_epochs": 1, "rounds": 1}
        result = train(recipe(method, sparse=settings, epochs=1), SPLITS, tmp_path / method, sparse=True)
        kept, total = sum(int(mask.sum()) for mask in result.masks.values()), sum(mask.size for mask in result.masks.values())
        assert kept == int(0.4 * total + 1e-9)
        assert ceil(0.39 * total) < kept
