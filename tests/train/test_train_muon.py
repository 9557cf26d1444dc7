"""Muon: orthogonal steps of matrices, Adam's steps of the rest, weights that shrink, and masks that it cannot fill."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from group_member import SPLITS, recipe

from vsparse.recipe import Train
from vsparse.stages.train.muon import is_matrix, orthogonalised
from vsparse.stages.train.optimiser import Optimiser
from vsparse.stages.train.state import weights
from vsparse.stages.train.trainer import Trainer


def made(leaves: dict[str, torch.Tensor], **settings: Any) -> Optimiser:
    return Optimiser(Train.model_validate({"optimizer": "muon", **settings}), leaves)


def step(optimiser: Optimiser, gradients: dict[str, torch.Tensor], rate: float = 0.1) -> None:
    optimiser.clear()
    for name, gradient in gradients.items():
        optimiser.leaves[name].grad = gradient.clone()
    optimiser.step(rate, 1e9)


@pytest.mark.parametrize("shape", [(5, 5), (3, 40), (40, 3)])
def test_orthogonalised_keeps_the_singular_vectors_and_levels_the_values(shape: tuple[int, int]) -> None:
    left, values, right = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(1)).double(), full_matrices=False)
    values = torch.linspace(1.0, 0.1, len(values), dtype=values.dtype)
    levelled = left.T @ orthogonalised(left @ torch.diag(values) @ right) @ right.T
    assert (levelled - torch.diag(levelled.diagonal())).abs().max() < 1e-9
    assert levelled.diagonal().min() > 0.6
    assert levelled.diagonal().max() < 1.3


def test_orthogonalised_does_not_depend_on_scale_and_leaves_zero_alone() -> None:
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(orthogonalised(matrix * 1e-6), orthogonalised(matrix), atol=1e-5)
    assert torch.equal(orthogonalised(torch.zeros(3, 2)), torch.zeros(3, 2))


def test_what_counts_as_a_matrix() -> None:
    assert is_matrix(torch.zeros(2, 3))
    assert is_matrix(torch.zeros(2, 1, 3, 3))
    assert not is_matrix(torch.zeros(4))  # a bias
    assert not is_matrix(torch.zeros(4, 1, 1, 1))  # a scale of each channel
    assert not is_matrix(torch.zeros(1, 4))  # one row


def test_the_first_step_by_hand() -> None:
    kernel, bias = torch.zeros(2, 1, 1, 2), torch.tensor([1.0, 1.0])
    optimiser = made({"kernel": kernel, "bias": bias})
    step(optimiser, {"kernel": torch.tensor([[3.0, 0.0], [0.0, -3.0]]).view(2, 1, 1, 2), "bias": torch.tensor([2.0, 0.0])})
    # A gradient that is orthogonal already but for its scale goes through the quintic of one number, 1/√2, five times.
    value = sqrt(0.5)
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    moved = 0.1 * 0.2 * sqrt(2) * value
    assert kernel.flatten().tolist() == pytest.approx([-moved, 0, 0, moved], rel=1e-5)
    assert bias.tolist() == pytest.approx([0.9, 1.0])  # Adam's first step has the length of the rate


def test_vectors_take_the_very_steps_of_adam() -> None:
    start, draws = torch.randn(7, generator=torch.Generator().manual_seed(3)), torch.Generator().manual_seed(4)
    one, two = start.clone(), start.clone()
    muon, adam = made({"b": one}), made({"b": two}, optimizer="adam")
    for _ in range(5):
        gradient = torch.randn(7, generator=draws)
        step(muon, {"b": gradient})
        step(adam, {"b": gradient})
    assert torch.allclose(one, two, rtol=1e-5)


def test_the_second_moment_is_that_of_adam_for_matrices_too() -> None:
    draws = torch.Generator().manual_seed(5)
    muon, adam = made({"w": torch.zeros(3, 4)}), made({"w": torch.zeros(3, 4)}, optimizer="adam")
    for _ in range(4):
        gradient = torch.randn(3, 4, generator=draws)
        step(muon, {"w": gradient})
        step(adam, {"w": gradient})
    assert torch.allclose(muon.moments()["exp_avg_sq"]["w"], adam.moments()["exp_avg_sq"]["w"], rtol=1e-5)


def test_weight_decay_shrinks_weights_and_not_vectors() -> None:
    leaves = {"w": torch.eye(2) * 2, "bias": torch.tensor([2.0])}
    step(made(leaves, weight_decay=0.5), {})
    assert torch.allclose(leaves["w"], torch.eye(2) * 1.9)  # 2 · (1 − 0.1 · 0.5)
    assert leaves["bias"].item() == 2


def test_moments_bring_back_the_very_optimiser() -> None:
    draws = torch.Generator().manual_seed(6)
    start = {"w": torch.randn(3, 4, generator=draws), "bias": torch.randn(3, generator=draws)}
    gradients = [{name: torch.randn(value.shape, generator=draws) for name, value in start.items()} for _ in range(4)]
    one = made({name: value.clone() for name, value in start.items()}, weight_decay=0.01)
    for each in gradients[:2]:
        step(one, each)
    copies = {name: value.detach().clone() for name, value in one.leaves.items()}
    spec = Train.model_validate({"optimizer": "muon", "weight_decay": 0.01})
    other = Optimiser(spec, copies, {kind: dict(kept) for kind, kept in one.moments().items()}, one.steps)
    for each in gradients[2:]:
        step(one, each)
        step(other, each)
        assert all(torch.equal(value, other.leaves[name]) for name, value in one.leaves.items())


@pytest.mark.parametrize(
    "sparse", [{"method": "gradual", "importance": "sensitivity"}, {"method": "rigl"}, {"method": "hydra", "finetune_epochs": 2}]
)
def test_what_the_masks_leave_out_is_zero_to_the_last_and_what_they_keep_is_trained(tmp_path: Path, sparse: dict[str, Any]) -> None:
    settings = {"optimizer": "muon", "processes": 1, "epochs": 4, "sparsity": 0.6}
    trainer = Trainer(recipe("mlp", **settings, sparse={"granularity": "element", "freeze": 0.5, **sparse}), SPLITS, tmp_path, True)
    before = {name: trainer.state.params[name].clone() for name in weights(trainer.state.full)}
    while not trainer.finished:
        trainer.run_epoch()
    assert trainer.density() == pytest.approx(0.4, abs=0.01)
    for name, value in trainer.state.params.items():
        if name in trainer.state.masks.entries:
            mask = trainer.state.masks.entries[name]
            assert not value[~mask].any()
            assert (value[mask] != before[name][mask]).float().mean() > 0.9  # a unit may have died


def test_channels_are_dropped_while_training_goes_on(tmp_path: Path) -> None:
    trainer = Trainer(recipe("cnn4", optimizer="muon", processes=1, epochs=4), SPLITS, tmp_path, True)
    while not trainer.finished:
        trainer.run_epoch()
    assert trainer.state.packing is not None
    moments = trainer.state.optimiser.moments()
    assert all(moments["exp_avg"][name].shape == leaf.shape for name, leaf in trainer.state.optimiser.leaves.items())
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]
