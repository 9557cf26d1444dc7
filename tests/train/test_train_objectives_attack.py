"""Objectives by attack, noise and samples of a batch: against exact optima of linear networks and plain torch written out in full."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import exp, log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsparse.graph import from_torch, run
from vsparse.graph.ir import BatchNorm, Graph
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe_train import Loss as LossSpec
from vsparse.recipe_train import Train
from vsparse.stages.train.evaluation import attacked
from vsparse.stages.train.objectives import Batch, Loss, make_objective
from vsparse.stages.train.objectives.attack import ascend, cross_entropy_value, divergence_value, fgsm, near, pgd, random_point
from vsparse.stages.train.objectives.divergence import divergence
from vsparse.stages.train.objectives.ibp import certified
from vsparse.stages.train.objectives.margins import Margins, training_box
from vsparse.stages.train.objectives.mixtrain import MixTrainObjective
from vsparse.stages.train.objectives.precision import forward

NAMES = ["natural", "fgsm", "pgd", "trades", "mixtrain", "smoothing"]
ATTACKS = ["fgsm", "pgd", "trades"]

Net = tuple[Graph, dict[str, Tensor]]


def linear() -> Net:
    """x ∈ R² → logits (x₁ + 2 x₂, 3 x₁ − x₂): logit 0 less logit 1 is 3 x₂ − 2 x₁."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
    graph = from_torch(module, (1, 1, 2))
    return graph, graph.tensors()


def point(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 2)


def small(norm: bool = False) -> tuple[nn.Sequential, Graph, dict[str, Tensor]]:
    """A convolution, batch norm if asked for, and two linear layers, in float64; parameters that require gradients."""
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(1, 3, 2), *([nn.BatchNorm2d(3)] if norm else []), nn.ReLU(), nn.Flatten(), nn.Linear(27, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(2.0)
    graph = from_torch(module.eval(), (1, 4, 4))
    return module.double(), graph, graph.tensors(torch.float64)


def data(count: int = 6, dtype: torch.dtype = torch.float64, side: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Random inputs, a third of whose pixels are 0 or 1, where the box is clipped; random labels."""
    draws = torch.Generator().manual_seed(7)
    x = (torch.rand(count, 1, side, side, dtype=dtype, generator=draws) * 1.5 - 0.25).clamp(0, 1)
    return x, torch.randint(0, classes, (count,), generator=draws)


def batch(x: Tensor, labels: Tensor, epsilon: float = 0.1, kappa: float = 0.0, seed: int = 5, enclosure: bool = False) -> Batch:
    return Batch(x, labels, epsilon, epsilon, kappa, enclosure, torch.Generator().manual_seed(seed))


def objective(name: str, graph: Graph, params: dict[str, Tensor], amp: bool = False, **loss: Any) -> Callable[..., Loss]:
    return make_objective(Train(objective=name, amp=amp, loss=LossSpec(**loss)), graph, params)  # type: ignore[arg-type]


# The attacks.


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


# The objectives, against the same written in plain torch.


def plain_forward(module: nn.Sequential, x: Tensor, statistics: tuple[Tensor, Tensor] | None) -> Tensor:
    """Runs the layers one by one; batch norm written out, on the statistics given."""
    for layer in module:
        if isinstance(layer, nn.BatchNorm2d):
            assert statistics is not None
            mean, variance = (value.view(1, -1, 1, 1) for value in statistics)
            scale, shift = layer.weight.view(1, -1, 1, 1), layer.bias.view(1, -1, 1, 1)
            x = (x - mean) / (variance + layer.eps).sqrt() * scale + shift
        else:
            x = layer(x)
    return x


def plain_bounds(module: nn.Sequential, box: tuple[Tensor, Tensor], statistics: tuple[Tensor, Tensor] | None, labels: Tensor) -> Tensor:
    """Returns the worst-case logits by interval arithmetic with positive and negative weights apart, the last layer folded."""
    lower, upper = box
    layers = list(module)
    for layer in layers[:-1]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
            product_of: Callable[[Tensor, Tensor], Tensor] = F.conv2d if isinstance(layer, nn.Conv2d) else F.linear
            bias = layer.bias.view(1, -1, 1, 1) if isinstance(layer, nn.Conv2d) else layer.bias
            lower, upper = product_of(lower, up) + product_of(upper, down) + bias, product_of(upper, up) + product_of(lower, down) + bias
        elif isinstance(layer, nn.BatchNorm2d):
            assert statistics is not None
            scale = (layer.weight / (statistics[1] + layer.eps).sqrt()).view(1, -1, 1, 1)
            shift = (layer.bias - statistics[0] * scale.flatten()).view(1, -1, 1, 1)
            ends = lower * scale + shift, upper * scale + shift
            lower, upper = torch.minimum(*ends), torch.maximum(*ends)
        else:
            lower, upper = layer(lower), layer(upper)
    last = layers[-1]
    rows = last.weight[None] - last.weight[labels][:, None]
    worst = (rows.clamp(min=0) * upper[:, None]).sum(2) + (rows.clamp(max=0) * lower[:, None]).sum(2)
    return worst + last.bias[None] - last.bias[labels][:, None]


def plain_loss(name: str, module: nn.Sequential, b: Batch, spec: LossSpec) -> Tensor:
    """The loss of a batch, each paper's equation step by step, with its random numbers in the order in which they are drawn."""
    statistics = None
    if isinstance(module[1], nn.BatchNorm2d):
        hidden = module[0](b.x)
        statistics = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), unbiased=False)
    fixed = None if statistics is None else (statistics[0].detach(), statistics[1].detach())
    low, high = (b.x - b.epsilon).clamp(0, 1), (b.x + b.epsilon).clamp(0, 1)
    logits = plain_forward(module, b.x, statistics)
    clean = F.cross_entropy(logits, b.labels)
    p = logits.softmax(1)

    def kl(first: Tensor, other: Tensor) -> Tensor:
        return (first * (first.log() - other.softmax(1).log())).sum(1)

    def uphill(x: Tensor, length: float, rise: Callable[[Tensor], Tensor]) -> Tensor:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(rise(plain_forward(module, x, fixed)), x)
        return torch.max(torch.min(x.detach() + length * gradient.sign(), high), low)

    def drawn() -> Tensor:
        return low + torch.rand(b.x.shape, dtype=b.x.dtype, generator=b.generator) * (high - low)

    def against(out: Tensor) -> Tensor:
        return F.cross_entropy(out, b.labels)

    if name == "natural":
        return clean
    if name == "fgsm":
        start, length = (drawn(), 1.25 * b.epsilon) if spec.random_start else (b.x, b.epsilon)
        return b.kappa * clean + (1 - b.kappa) * against(plain_forward(module, uphill(start, length, against), statistics))
    if name == "pgd":
        at = drawn()
        for _ in range(spec.attack_steps):
            at = uphill(at, spec.attack_step * b.epsilon, against)
        return b.kappa * clean + (1 - b.kappa) * against(plain_forward(module, at, statistics))
    if name == "trades":
        at = torch.max(torch.min(b.x + 0.001 * torch.randn(b.x.shape, dtype=b.x.dtype, generator=b.generator), high), low)
        for _ in range(spec.attack_steps):
            at = uphill(at, spec.attack_step * b.epsilon, lambda out: kl(p.detach(), out).sum())
        return clean + spec.beta * kl(p, plain_forward(module, at, statistics)).mean()
    if name == "smoothing":
        noise = torch.randn(b.x.shape, dtype=b.x.dtype, generator=b.generator)
        return clean + spec.beta * kl(p, plain_forward(module, b.x + spec.sigma * noise, statistics)).mean()
    assert name == "mixtrain"
    chosen = torch.randperm(len(b.x), generator=b.generator)[: round(spec.mix * len(b.x))]
    worst = plain_bounds(module, (low[chosen], high[chosen]), statistics, b.labels[chosen])
    return (1 - spec.alpha) * clean + spec.alpha * F.cross_entropy(worst, b.labels[chosen])


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
    counts = torch.bincount(torch.cat([made.sample(10, draws) for _ in range(2000)]), minlength=10)
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


def test_samples_do_not_influence_each_others_attack() -> None:
    _, graph, params = small(norm=True)
    x, labels = data()
    statistics: dict[str, Tensor] = {}
    run(graph, params, x, batch_statistics=statistics)
    params = {**params, **statistics}
    whole = fgsm(cross_entropy_value(graph, params, labels), x, training_box(x, 0.2), 0.2)
    alone = fgsm(cross_entropy_value(graph, params, labels[2:3]), x[2:3], training_box(x[2:3], 0.2), 0.2)
    assert torch.equal(whole[2:3], alone)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_changes_the_passes_and_neither_loss_nor_statistics(name: str) -> None:
    graph = from_torch(make(Network(architecture="cnn5", width=0.25), (1, 8, 8), 5, seed=1), (1, 8, 8))
    params = {key: value.requires_grad_() for key, value in graph.tensors().items()}
    x, labels = data(16, torch.float32, 8, 5)
    full, half = (objective(name, graph, params, amp)(params, batch(x, labels, 0.05, 0.5)) for amp in (False, True))
    assert half.value.dtype == torch.float32
    assert half.statistics
    assert all(value.dtype == torch.float32 for value in half.statistics.values())
    assert float(half.value.detach()) == pytest.approx(float(full.value.detach()), rel=0.1)
    # Those that bound the network do so in float32, and their clean pass with it.
    assert (float(half.value.detach()) == float(full.value.detach())) == (name == "mixtrain")
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


# What is left standing by an attack.


def test_standing_is_exact_on_a_linear_network() -> None:
    graph, params = linear()
    draws = torch.Generator().manual_seed(0)
    x, labels = torch.rand(300, 1, 1, 2, generator=draws), torch.randint(0, 2, (300,), generator=draws)
    lower, upper = (bound.view(-1, 2) for bound in training_box(x, 0.1))
    least = 3 * lower[:, 1] - 2 * upper[:, 0]
    most = 3 * upper[:, 1] - 2 * lower[:, 0]
    expected = torch.where(labels == 0, least, -most) > 0
    found = attacked(graph, params, x, labels, 0.1, 4, torch.Generator().manual_seed(1))
    assert torch.equal(found, expected)
    assert 50 < int(found.sum()) < 250


def test_standing_implies_correct_and_certified_implies_standing() -> None:
    _, graph, params = small()
    x, labels = data(64)
    labels = torch.where(torch.arange(64) % 8 > 0, run(graph, params, x).argmax(1), labels)
    correct = run(graph, params, x).argmax(1) == labels
    margins, seen = Margins(graph), []
    for epsilon in (0.0, 0.003, 0.02, 0.1, 0.4):
        standing = attacked(graph, params, x, labels, epsilon, 5, torch.Generator().manual_seed(1))
        assert bool((correct | ~standing).all())
        assert bool((standing | ~(certified(margins, params, x, labels, epsilon) & correct)).all())
        seen.append(int(standing.sum()))
    assert seen[0] == int(correct.sum())
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0] / 2
    assert bool((attacked(graph, params, x, labels, 0.4, 0, torch.Generator()) == correct).all())


def test_an_attack_breaks_more_than_random_points_do() -> None:
    _, graph, params = small()
    x, _ = data(64)
    labels = run(graph, params, x).argmax(1)
    draws = torch.Generator().manual_seed(0)
    holds = torch.ones(64, dtype=torch.bool)
    for _ in range(20):
        holds &= run(graph, params, random_point(training_box(x, 0.1), draws)).argmax(1) == labels
    standing = attacked(graph, params, x, labels, 0.1, 5, torch.Generator().manual_seed(1))
    assert int(standing.sum()) < int(holds.sum())


def test_standing_is_a_function_of_its_arguments_and_leaves_them_alone() -> None:
    _, graph, params = small(norm=True)
    for value in params.values():
        value.requires_grad_()
    x, _ = data(16)
    labels = run(graph, params, x).argmax(1)
    first = attacked(graph, params, x, labels, 0.05, 2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        again = attacked(graph, params, x, labels, 0.05, 2, torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert all(value.requires_grad and value.grad is None for value in params.values())
    assert not x.requires_grad
    # Its batch norm is that of deployment: one sample by itself is as it is among others.
    alone = [bool(attacked(graph, params, x[i : i + 1], labels[i : i + 1], 0.0, 2, torch.Generator())) for i in range(16)]
    assert alone == attacked(graph, params, x, labels, 0.0, 2, torch.Generator()).tolist()


def test_ties_and_what_is_not_a_number_do_not_stand() -> None:
    graph, params = linear()
    x, labels = point(0.0, 0.0, 0.0, 0.5), torch.tensor([0, 0])
    assert attacked(graph, params, x, labels, 0.0, 1, torch.Generator()).tolist() == [False, True]
    broken = {key: torch.full_like(value, torch.nan) for key, value in params.items()}
    assert attacked(graph, broken, x, labels, 0.1, 3, torch.Generator()).tolist() == [False, False]
