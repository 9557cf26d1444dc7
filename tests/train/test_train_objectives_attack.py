"""Objectives by attack, by noise and on a part of the batch: their equations in plain torch, their limits, randomness and precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attack_nets import batch, data, objective, plain_loss, small
from torch import Tensor

from vsparse.graph import from_torch, run
from vsparse.graph.ir import BatchNorm
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe_train import LossSpec, Train
from vsparse.stages.train.bounds.margins import training_box
from vsparse.stages.train.objectives import make_objective
from vsparse.stages.train.objectives.attack import divergence_value, random_point
from vsparse.stages.train.objectives.mixtrain import MixTrainObjective
from vsparse.stages.train.objectives.precision import forward

NAMES = ["natural", "fgsm", "pgd", "trades", "mixtrain", "smoothing"]


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("kappa", [0.0, 0.3])
@pytest.mark.parametrize("name", [*NAMES, "fgsm from a random point"])
def test_losses_and_gradients_are_those_of_the_equations(name: str, kappa: float, norm: bool) -> None:
    module, graph, params = small(norm)
    name, _, random = name.partition(" ")
    spec = LossSpec(attack_steps=3, attack_step=0.7, beta=2.5, sigma=0.4, alpha=0.7, mix=0.5, random_start=bool(random))
    x, labels = data()
    norms = {key for node in graph.nodes if isinstance(node, BatchNorm) for key in (node.mean, node.variance)}
    names = [key for key in params if key not in norms]
    for key in names:
        params[key].requires_grad_()
    loss = make_objective(Train(objective=name, loss=spec), graph, params)(params, batch(x, labels, 0.1, kappa))  # type: ignore[arg-type]
    expected = plain_loss(name, module, batch(x, labels, 0.1, kappa), spec)
    torch.testing.assert_close(loss.value, expected)
    leaves = [*module.parameters()]
    assert len(leaves) == len(names)
    ours = torch.autograd.grad(loss.value, [params[key] for key in names])
    theirs = dict(zip((name for name, _ in module.named_parameters()), torch.autograd.grad(expected, leaves), strict=True))
    for key, gradient in zip(names, ours, strict=True):
        (match,) = [other for own, other in theirs.items() if torch.equal(module.get_parameter(own), params[key])]
        torch.testing.assert_close(gradient, match)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in ours)


# Limits and relations between them.


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "trades", "mixtrain"])
def test_at_radius_zero_the_loss_is_natural_and_nothing_is_drawn(name: str, kappa: float, norm: bool) -> None:
    _, graph, params = small(norm)
    x, labels = data()
    given = batch(x, labels, 0.0, kappa)
    before = given.generator.get_state()
    loss = objective(name, graph, params)(params, given)
    natural = objective("natural", graph, params)(params, batch(x, labels, 0.0, kappa))
    assert torch.equal(loss.value, natural.value)
    assert sorted(loss.statistics) == sorted(natural.statistics)
    assert torch.equal(given.generator.get_state(), before)


@pytest.mark.parametrize("name", ["trades", "smoothing"])
def test_the_divergence_counts_beta_times(name: str) -> None:
    _, graph, params = small()
    x, labels = data()
    found = [float(objective(name, graph, params, beta=beta)(params, batch(x, labels)).value) for beta in (0.0, 1.0, 3.0)]
    assert found[0] == float(objective("natural", graph, params)(params, batch(x, labels)).value)
    assert found[1] > found[0] + 1e-4
    assert found[2] - found[0] == pytest.approx(3 * (found[1] - found[0]))


def test_trades_attacks_better_than_noise_does() -> None:
    _, graph, params = small()
    x, labels = data(16)
    clean = run(graph, params, x)
    value = divergence_value(graph, params, clean)
    natural = float(F.cross_entropy(clean, labels))
    trades = float(objective("trades", graph, params, beta=1.0)(params, batch(x, labels, 0.2)).value) - natural
    draws = torch.Generator().manual_seed(0)
    for _ in range(50):
        assert float(value(random_point(training_box(x, 0.2), draws)).mean()) < trades


def test_smoothing_tends_to_natural_with_the_square_of_its_noise() -> None:
    _, graph, params = small()
    x, labels = data()
    natural = float(objective("natural", graph, params)(params, batch(x, labels)).value)
    extra = [float(objective("smoothing", graph, params, sigma=sigma)(params, batch(x, labels)).value) - natural for sigma in (1e-3, 1e-4)]
    assert extra[0] > 0
    assert extra[0] / extra[1] == pytest.approx(100, rel=0.05)
    # The radius and κ are of no account.
    same = [float(objective("smoothing", graph, params)(params, batch(x, labels, e, k)).value) for e, k in ((0.0, 1.0), (0.3, 0.0))]
    assert same[0] == same[1]


def test_mixtrain_bounds_its_share_of_the_batch() -> None:
    _, graph, params = small()
    x, labels = data(8)
    box = torch.stack(training_box(x, 0.1))
    for mix, count in ((0.25, 2), (0.5, 4), (0.01, 1), (1.0, 8)):
        loss = objective("mixtrain", graph, params, mix=mix)(params, batch(x, labels))
        assert loss.enclosure is not None
        rows = torch.stack(loss.enclosure[graph.input])
        assert rows.shape[1] == count
        matches = [[i for i in range(8) if torch.equal(rows[:, row], box[:, i])] for row in range(count)]
        assert len({match[0] for match in matches}) == count


def test_mixtrain_draws_every_sample_equally_often() -> None:
    _, graph, params = small()
    made = MixTrainObjective(Train(objective="mixtrain", loss=LossSpec(mix=0.3)), graph, params)
    draws = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.cat([made.sample(10, draws, torch.device("cpu")) for _ in range(2000)]), minlength=10)
    assert int(counts.sum()) == 6000
    assert bool(((counts - 600).abs() < 103).all())  # five standard deviations of a binomial with p = 0.3


def test_mixtrain_lies_between_natural_and_interval_training() -> None:
    _, graph, params = small(norm=True)
    x, labels = data()
    natural = objective("natural", graph, params)(params, batch(x, labels)).value
    interval = objective("ibp", graph, params)(params, batch(x, labels)).value
    for alpha in (0.0, 0.2, 1.0):
        mixed = objective("mixtrain", graph, params, alpha=alpha, mix=1.0)(params, batch(x, labels)).value
        torch.testing.assert_close(mixed, (1 - alpha) * natural + alpha * interval)
    assert float(interval) > float(natural) + 0.1


# Randomness, batch norm, precision.


@pytest.mark.parametrize("name", ["pgd", "trades", "mixtrain", "smoothing", "fgsm from a random point"])
def test_random_numbers_come_from_the_generator_alone(name: str) -> None:
    _, graph, params = small()
    name, _, random = name.partition(" ")
    x, labels = data()
    made = objective(name, graph, params, random_start=bool(random), attack_steps=2, attack_step=0.3)

    def value(seed: int, world: int) -> float:
        torch.manual_seed(world)
        state = torch.get_rng_state()
        found = float(made(params, batch(x, labels, seed=seed)).value)
        assert torch.equal(torch.get_rng_state(), state)
        return found

    assert value(1, 10) == value(1, 11)
    assert len({value(seed, 10) for seed in range(6)}) > 1


def test_fgsm_from_the_input_draws_nothing() -> None:
    _, graph, params = small()
    given = batch(*data())
    before = given.generator.get_state()
    objective("fgsm", graph, params)(params, given)
    assert torch.equal(given.generator.get_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_uses_and_returns_the_statistics_of_the_clean_pass(name: str) -> None:
    _, graph, params = small(norm=True)
    x, labels = data()
    statistics: dict[str, Tensor] = {}
    run(graph, params, x, batch_statistics=statistics)
    loss = objective(name, graph, params)(params, batch(x, labels, kappa=0.0))
    assert len(loss.statistics) == 2
    for key, value in statistics.items():
        torch.testing.assert_close(loss.statistics[key], value)
    # The running statistics of `params` have no part in the loss.
    others = {key: value + 3 if key in statistics else value for key, value in params.items()}
    assert float(objective(name, graph, others)(others, batch(x, labels, kappa=0.0)).value) == float(loss.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mixtrain"])
def test_mixed_precision_changes_the_passes_and_neither_loss_nor_statistics(name: str) -> None:
    graph = from_torch(make(Network(architecture="cnn5", width=0.25), (1, 8, 8), 5, seed=1), (1, 8, 8))
    params = {key: value.requires_grad_() for key, value in graph.tensors().items()}
    x, labels = data(16, torch.float32, 8, 5)
    full, half = (objective(name, graph, params, amp)(params, batch(x, labels, 0.05, 0.5)) for amp in (False, True))
    assert half.value.dtype == torch.float32
    assert half.statistics
    assert all(value.dtype == torch.float32 for value in half.statistics.values())
    assert float(half.value.detach()) == pytest.approx(float(full.value.detach()), rel=0.1)
    assert float(half.value.detach()) != float(full.value.detach())
    half.value.backward()  # type: ignore[no-untyped-call]
    trained = [value.grad for key, value in params.items() if key not in half.statistics]
    assert all(value is not None and value.dtype == torch.float32 and bool(value.isfinite().all()) for value in trained)


def test_a_pass_in_bfloat16_returns_the_dtype_of_its_input() -> None:
    _, graph, params = small()
    params = {key: value.float() for key, value in params.items()}
    x, _ = data(4, torch.float32)
    exact, rough = forward(graph, params, x), forward(graph, params, x, amp=True)
    assert rough.dtype == exact.dtype == torch.float32
    assert torch.equal(rough, rough.bfloat16().float())
    assert not torch.equal(exact, exact.bfloat16().float())
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)
