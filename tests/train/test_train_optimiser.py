"""Adam and SGD by hand: momentum, Nesterov, weight decay on weights alone, clipping, moments that come back."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch

from vsparse.recipe import Train
from vsparse.stages.train.optimiser import Optimiser


def made(leaves: dict[str, torch.Tensor], **settings: Any) -> Optimiser:
    return Optimiser(Train.model_validate({"optimizer": "sgd", "momentum": 0.0, **settings}), leaves)


def step(optimiser: Optimiser, gradients: dict[str, list[float]], rate: float = 0.1, clip: float = 1e9) -> float:
    optimiser.clear()
    for name, gradient in gradients.items():
        optimiser.leaves[name].grad = torch.tensor(gradient).view_as(optimiser.leaves[name])
    return optimiser.step(rate, clip)


def matrix(*values: float) -> torch.Tensor:
    return torch.tensor([list(values)])


def test_momentum_by_hand() -> None:
    w = matrix(1.0)
    sgd = made({"w": w}, momentum=0.5)
    # v = 2, w = 1 − 0.1 · 2; then v = 0.5 · 2 + 1 = 2, w = 0.8 − 0.2.
    step(sgd, {"w": [2.0]})
    assert w.item() == pytest.approx(0.8)
    step(sgd, {"w": [1.0]})
    assert w.item() == pytest.approx(0.6)


def test_nesterov_by_hand() -> None:
    w = matrix(1.0)
    sgd = made({"w": w}, momentum=0.5, nesterov=True)
    # v = 2, step g + 0.5 v = 3; then v = 2, step 1 + 1 = 2.
    step(sgd, {"w": [2.0]})
    assert w.item() == pytest.approx(0.7)
    step(sgd, {"w": [1.0]})
    assert w.item() == pytest.approx(0.5)


def test_adam_by_hand() -> None:
    w = matrix(1.0)
    adam = made({"w": w}, optimizer="adam")
    step(adam, {"w": [2.0]})
    assert w.item() == pytest.approx(0.9)  # the first step has the length of the rate
    step(adam, {"w": [1.0]})
    # m = 0.9 · 0.2 + 0.1 = 0.28, v = 0.999 · 0.004 + 0.001 = 0.004996; both divided by 1 − β².
    assert w.item() == pytest.approx(0.9 - 0.1 * (0.28 / 0.19) / sqrt(0.004996 / 0.001999), rel=1e-5)


def test_weight_decay_is_on_weights_and_not_on_vectors() -> None:
    leaves = {"w": matrix(2.0), "kernel": torch.full((1, 1, 2, 2), 2.0), "bias": torch.tensor([2.0]), "scale": torch.tensor([2.0])}
    sgd = made(leaves, weight_decay=0.5)
    step(sgd, {})
    assert leaves["w"].item() == pytest.approx(1.9)  # 2 − 0.1 · 0.5 · 2
    assert leaves["kernel"].flatten().tolist() == pytest.approx([1.9] * 4)
    assert (leaves["bias"].item(), leaves["scale"].item()) == (2.0, 2.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weight_decay_does_not_move_a_weight_that_is_zero(optimizer: str) -> None:
    w = matrix(0.0, 3.0)
    optimiser = made({"w": w}, optimizer=optimizer, momentum=0.9, nesterov=True, weight_decay=0.1)
    for _ in range(5):
        step(optimiser, {"w": [0.0, 1.0]})
    assert w[0, 0].item() == 0
    assert w[0, 1].item() < 2.9


def test_clipping_scales_all_gradients_together_and_the_norm_is_that_before() -> None:
    w, bias = matrix(0.0), torch.tensor([0.0])
    sgd = made({"w": w, "bias": bias})
    assert step(sgd, {"w": [3.0], "bias": [4.0]}, rate=1.0, clip=1.0) == pytest.approx(5)
    assert (w.item(), bias.item()) == pytest.approx((-0.6, -0.8), rel=1e-4)
    assert step(sgd, {"w": [0.3], "bias": [0.4]}, rate=1.0, clip=1.0) == pytest.approx(0.5)
    assert (w.item(), bias.item()) == pytest.approx((-0.9, -1.2), rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_move_nothing(bad: float) -> None:
    w = matrix(1.0)
    sgd = made({"w": w}, momentum=0.9)
    norm = step(sgd, {"w": [bad]})
    assert norm != norm or norm == float("inf")
    assert w.item() == 1
    assert sgd.steps == 0


@pytest.mark.parametrize("settings", [{"optimizer": "adam"}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.0}])
def test_moments_bring_back_the_very_optimiser_even_of_leaves_without_gradients(settings: dict[str, Any]) -> None:
    start = {"w": matrix(1.0, -2.0), "bias": torch.tensor([0.5])}
    one = made({name: value.clone() for name, value in start.items()}, weight_decay=0.01, **settings)
    gradients: list[dict[str, list[float]]] = [{"w": [1.0, 2.0]}, {"w": [0.5, 0.1]}, {"w": [0.2, 0.3], "bias": [1.0]}, {"bias": [0.7]}]
    for each in gradients[:2]:
        step(one, each)
    spec = Train.model_validate({"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.01, **settings})
    copies = {name: value.detach().clone() for name, value in one.leaves.items()}
    other = Optimiser(spec, copies, {kind: dict(kept) for kind, kept in one.moments().items()}, one.steps)
    for each in gradients[2:]:
        assert step(one, each) == step(other, each)
        assert all(torch.equal(value, other.leaves[name]) for name, value in one.leaves.items())
