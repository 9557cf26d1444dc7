"""Sparsifiers in whole trainings: budgets met, masks that hold, phases, resumption after every epoch, rewinding to the bit."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blob_data import blobs
from torch import Tensor

from vsparse.data import Splits
from vsparse.errors import InputError
from vsparse.recipe import Recipe
from vsparse.stages.train import EpochReport, TrainResult, train
from vsparse.stages.train.determinism import generator
from vsparse.stages.train.initialisation import initial_kind, initialise
from vsparse.stages.train.phases import EpochPosition, epoch_position
from vsparse.stages.train.schedule import Schedule
from vsparse.stages.train.sparsifiers import METHODS, sparsifier_class
from vsparse.stages.train.state import TrainingState
from vsparse.stages.train.trainer import CHOICES, Trainer

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


def removes_channels(method: str) -> bool:
    """Whether a sparsifier says that it works on channels too."""
    return sparsifier_class(recipe(method).train).removes_channels


CASES = [
    *((method, "element") for method in METHODS),
    *((method, "channel") for method in METHODS if removes_channels(method)),
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
        ("gradual", [3, 4]),
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
    assert [epoch for epoch in range(trainer.epochs) if trainer.ready(epoch_position(trainer.phases, epoch))] == expected


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
    for method, first in (("magnitude", 7), ("lottery", 10), ("hydra", 7), ("sparsevlr", 3), ("vericompress", 3), ("gradual", 3)):
        trainer = Trainer(recipe(method, "channel", "cnn4"), SPLITS, tmp_path / method, True)
        packed = []
        while not trainer.finished:
            trainer.run_epoch()
            packed.append(trainer.state.packing is not None)
        assert packed == [epoch >= first for epoch in range(trainer.epochs)]
        assert sum(value.numel() for value in trainer.state.params.values()) < 0.5 * sum(
            value.size for value in trainer.state.full.params.values()
        )


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_the_mask_of_drop_and_grow_moves_and_freezes_and_holds_in_every_step(tmp_path: Path, method: str) -> None:
    trainer = Trainer(recipe(method, epochs=8, sparse={"thickening_length": 2}), SPLITS, tmp_path, True)
    seen: list[dict[str, Tensor]] = []
    after = trainer.sparsifier.after_step

    def checked(state: TrainingState) -> None:
        after(state)
        assert all(not bool(state.params[name][~mask].any()) for name, mask in state.masks.entries.items())

    trainer.sparsifier.after_step = checked  # type: ignore[method-assign]
    while not trainer.finished:
        trainer.run_epoch()
        seen.append({name: mask.clone() for name, mask in trainer.state.masks.entries.items()})
        assert trainer.density() == pytest.approx(seen[0] and trainer.history[0]["density"])
    changed = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(seen)]
    assert changed == [False, True, False, True, False, False, False]  # before epochs 2 and 4; frozen from 5 on


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


def recorded(wanted: Recipe, directory: Path) -> tuple[Trainer, list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Trains to the end; returns the full-size parameters and the masks with which each epoch began."""
    trainer = Trainer(wanted, SPLITS, directory, True)
    begin = trainer.sparsifier.begin_epoch
    params: list[dict[str, Tensor]] = []
    masks: list[dict[str, Tensor]] = []

    def kept(state: TrainingState, now: EpochPosition, tools: Any) -> None:
        begin(state, now, tools)
        params.append({name: value.detach().clone() for name, value in state.unpacked(state.params).items()})
        masks.append({name: mask.clone() for name, mask in state.masks.entries.items()})

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
    initialise(trainer.state.full, fresh, generator(0, 10, CHOICES), initial_kind(trainer.spec))
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


# What the trainer lends, and what is refused.


def test_gradients_are_those_of_the_loss_at_the_share_asked_for_and_leave_no_trace(tmp_path: Path) -> None:
    trainer = Trainer(recipe("snip"), SPLITS, tmp_path, True)
    start = epoch_position(trainer.phases, 0)
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


@pytest.mark.parametrize("method", [method for method in METHODS if not removes_channels(method)])
def test_what_removes_no_channels_refuses_them(method: str) -> None:
    with pytest.raises(InputError, match=f'"{method}" works on weights'):
        sparsifier_class(recipe(method).train).require(recipe(method, "channel").train)


def test_one_epoch_and_long_periods_are_enough(tmp_path: Path) -> None:
    for method in METHODS:
        settings: dict[str, Any] = {"thickening_length": 7, "finetune_epochs": 1, "prune_epochs": 1, "rounds": 1}
        result = train(recipe(method, sparse=settings, epochs=1), SPLITS, tmp_path / method, sparse=True)
        kept, total = sum(int(mask.sum()) for mask in result.masks.values()), sum(mask.size for mask in result.masks.values())
        assert kept == int(0.4 * total + 1e-9)
        assert ceil(0.39 * total) < kept


def test_gradual_pruning_follows_the_cubic_schedule(tmp_path: Path) -> None:
    result = train(recipe("gradual", epochs=10, sparse={"freeze": 0.5}), SPLITS, tmp_path, sparse=True)
    wanted = [1.0] + [0.4 + 0.6 * (1 - epoch / 5) ** 3 for epoch in range(1, 5)] + [0.4] * 5
    assert [row["density"] for row in result.history] == pytest.approx(wanted, abs=0.01)
