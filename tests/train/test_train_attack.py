"""Attacks of training: exact optima of linear networks, the box, restarts, and no trace on the parameters."""

from __future__ import annotations

from itertools import product
from math import exp, log

import pytest
import torch
from attack_nets import batch, data, linear, objective, point, small
from torch import Tensor

from vsparse.graph import from_torch, run
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe_train import LossSpec
from vsparse.stages.train.bounds.margins import training_box
from vsparse.stages.train.objectives.attack import ascend, cross_entropy_value, divergence_value, fgsm, near, pgd, random_point
from vsparse.stages.train.objectives.divergence import divergence


def test_fgsm_finds_the_exact_optimum_of_a_linear_network() -> None:
    # Two classes and one linear layer: the worst corner is that of least margin. At (0.5, 0.95), ε = 0.1, the box is
    # [0.4, 0.6] × [0.85, 1.0], clipped at 1. Label 0: 3 · 0.85 − 2 · 0.6 = 1.35 (clean 1.85). Label 1: 2 · 0.4 − 3 · 1 = −2.2.
    graph, params = linear()
    x, labels = point(0.5, 0.95, 0.5, 0.95), torch.tensor([0, 1])
    found = fgsm(cross_entropy_value(graph, params, labels), x, training_box(x, 0.1), 0.1)
    torch.testing.assert_close(found, point(0.6, 0.85, 0.4, 1.0))
    worst, clean = log(1 + exp(-1.35)), log(1 + exp(-1.85))
    for kappa in (0.0, 0.25, 0.5, 1.0):
        loss = objective("fgsm", graph, params)(params, batch(x[:1], labels[:1], kappa=kappa))
        assert float(loss.value) == pytest.approx(kappa * clean + (1 - kappa) * worst, abs=1e-6)
    loss = objective("fgsm", graph, params)(params, batch(x[1:], labels[1:]))
    assert float(loss.value) == pytest.approx(log(1 + exp(2.2)), abs=1e-6)


def test_pgd_reaches_the_same_optimum_from_random_starts() -> None:
    graph, params = linear()
    x, labels = point(*[0.5, 0.95] * 8), torch.tensor([0, 1] * 4)
    value = cross_entropy_value(graph, params, labels)
    found = pgd(value, training_box(x, 0.1), 0.1, LossSpec(attack_steps=8, attack_step=0.25), torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, point(*[0.6, 0.85, 0.4, 1.0] * 4))
    # Two steps of ε/4 from a random start do not cross the box.
    short = pgd(value, training_box(x, 0.1), 0.1, LossSpec(attack_steps=2, attack_step=0.25), torch.Generator().manual_seed(0))
    assert bool((value(short) <= value(found) + 1e-6).all())
    assert bool((value(short) < value(found) - 1e-3).any())


def test_the_divergence_is_driven_into_one_of_the_two_extreme_corners() -> None:
    graph, params = linear()
    x = point(*[0.5, 0.5] * 12)
    clean = run(graph, params, x)
    value = divergence_value(graph, params, clean)
    found = pgd(value, training_box(x, 0.1), 0.1, LossSpec(), torch.Generator().manual_seed(0), near(x))
    # From beside x, uphill is away from the clean margin in either direction: corners (0.6, 0.4) and (0.4, 0.6).
    corners = {(0.6, 0.4), (0.4, 0.6)}
    assert {(round(a, 4), round(b, 4)) for a, b in found.view(-1, 2).tolist()} == corners
    best = max(float(value(point(*corner, *[0.5, 0.5] * 11))[0]) for corner in product((0.4, 0.6), repeat=2))
    assert float(value(found).max()) == pytest.approx(best, abs=1e-6)


def test_divergence_by_hand() -> None:
    # p = (1/2, 1/2), q = (3/4, 1/4): ½ ln(2/3) + ½ ln 2 = ½ ln(4/3); the other way round ¾ ln(3/2) + ¼ ln(1/2).
    even, odd = torch.zeros(1, 2), torch.tensor([[log(3.0), 0.0]])
    assert float(divergence(even, odd)) == pytest.approx(0.5 * log(4 / 3), abs=1e-6)
    assert float(divergence(odd, even)) == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5), abs=1e-6)
    assert float(divergence(odd, odd)) == 0


@pytest.mark.parametrize("epsilon", [1e-8, 0.05, 0.3, 1.0])
def test_points_never_leave_the_clipped_box(epsilon: float) -> None:
    graph = from_torch(make(Network(architecture="cnn4", width=0.25), (1, 8, 8), 5, seed=1), (1, 8, 8))
    params = graph.tensors()
    x, labels = data(16, torch.float32, 8, 5)
    lower, upper = training_box(x, epsilon)
    value = cross_entropy_value(graph, params, labels)
    draws = torch.Generator().manual_seed(2)
    spec = LossSpec(attack_steps=5, attack_step=4.0, attack_restarts=2)
    kl = divergence_value(graph, params, run(graph, params, x))
    for found in (
        fgsm(value, x, (lower, upper), epsilon),
        fgsm(value, x, (lower, upper), epsilon, draws),
        pgd(value, (lower, upper), epsilon, spec, draws),
        pgd(kl, (lower, upper), epsilon, spec, draws, near(x)),
        random_point((lower, upper), draws),
        near(x)((lower, upper), draws),
    ):
        assert bool(((found >= lower) & (found <= upper) & (found >= 0) & (found <= 1)).all())
        assert not found.requires_grad


def test_random_points_fill_the_box() -> None:
    box = torch.full((20_000,), 0.2), torch.full((20_000,), 0.6)
    drawn = random_point(box, torch.Generator().manual_seed(0))
    counts = torch.histc(drawn, bins=8, min=0.2, max=0.6)
    assert float(counts.sum()) == 20_000
    assert bool(((counts - 2500).abs() < 250).all())  # five standard deviations


def test_the_last_point_that_can_be_drawn_is_in_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(0)
    lower, upper = training_box(torch.rand(100_000, generator=draws), 0.3)
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 1 - 2.0**-24))  # the largest number that it returns
    last = random_point((lower, upper), draws)
    assert bool((last <= upper).all())
    assert bool((last >= upper - 2.0**-22).all())


def test_more_restarts_never_lower_the_loss_of_a_sample() -> None:
    _, graph, params = small()
    x, labels = data(32)
    value = cross_entropy_value(graph, params, labels)
    before, gained = torch.full((32,), -torch.inf), 0
    for restarts in (1, 2, 3, 6):
        spec = LossSpec(attack_steps=2, attack_restarts=restarts)
        found = pgd(value, training_box(x, 0.3), 0.3, spec, torch.Generator().manual_seed(4))
        after = value(found).detach()
        assert bool((after >= before).all())
        gained += int((after > before).sum()) if restarts > 1 else 0
        before = after
    assert gained > 0


def test_an_attack_leaves_no_trace_on_the_parameters() -> None:
    _, graph, params = small()
    leaves = [value.requires_grad_() for value in params.values()]
    x, labels = data()
    values = cross_entropy_value(graph, params, labels), divergence_value(graph, params, run(graph, params, x))
    for value in values:
        at = x.clone().requires_grad_()
        found = torch.autograd.grad(value(at).sum(), [at, *leaves], allow_unused=True)
        assert found[0] is not None
        assert all(gradient is None for gradient in found[1:])
    with torch.no_grad():  # callers need not turn gradients on
        start = x.clone()
        assert not torch.equal(ascend(values[0], start, training_box(x, 0.1), 1, 0.1), x)
        assert torch.equal(start, x)
    assert all(leaf.grad is None and leaf.requires_grad for leaf in leaves)


def test_samples_do_not_influence_each_others_attack() -> None:
    _, graph, params = small(norm=True)
    x, labels = data()
    statistics: dict[str, Tensor] = {}
    run(graph, params, x, batch_statistics=statistics)
    params = {**params, **statistics}
    whole = fgsm(cross_entropy_value(graph, params, labels), x, training_box(x, 0.2), 0.2)
    alone = fgsm(cross_entropy_value(graph, params, labels[2:3]), x[2:3], training_box(x[2:3], 0.2), 0.2)
    assert torch.equal(whole[2:3], alone)
