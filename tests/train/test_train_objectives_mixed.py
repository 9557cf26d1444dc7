"""SABR, TAPS, STAPS, CC-IBP, MTL-IBP, Exp-IBP: their limits, where their boxes and points lie, and their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vsparse.errors import InputError
from vsparse.graph import from_torch, run
from vsparse.graph.ir import Conv, Gemm, Graph, Relu
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Margins, training_box
from vsparse.stages.train.objectives import Objective, TrainingBatch, make_objective
from vsparse.stages.train.objectives.exp_ibp import GeometricLossesObjective
from vsparse.stages.train.objectives.mtl_ibp import CombinedLossesObjective
from vsparse.stages.train.objectives.sabr import small_box
from vsparse.stages.train.objectives.taps import LatentAttackObjective, attacked_part, connect, scale_gradient

# What the order of sums may change.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
MIXED = ("sabr", "taps", "staps", "cc-ibp", "mtl-ibp", "exp-ibp")


def network(name: str = "cnn4", seed: int = 0) -> tuple[Graph, dict[str, Tensor]]:
    graph = from_torch(make(Network(architecture=name, width=0.25), (1, 8, 8), 5, seed=seed), (1, 8, 8))
    return graph, graph.tensors()


def batch(
    epsilon: float = 0.1, kappa: float = 0.0, *, size: int = 6, seed: int = 0, enclosure: bool = False, most: float = -1
) -> TrainingBatch:
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(size, 1, 8, 8, generator=draws)
    labels = torch.randint(0, 5, (size,), generator=draws)
    return TrainingBatch(x, labels, epsilon, epsilon if most < 0 else most, kappa, enclosure, draws)


def spec(objective: str, **loss: Any) -> Train:
    return Train.model_validate({"objective": objective, "loss": loss})


def value(name: str, graph: Graph, params: dict[str, Tensor], given: TrainingBatch, **loss: Any) -> Tensor:
    return make_objective(spec(name, **loss), graph, params)(params, given).value


# Limits.


@pytest.mark.parametrize("name", ["cc-ibp", "mtl-ibp", "exp-ibp"])
@pytest.mark.parametrize("kappa", [0.0, 0.3])
def test_alpha_1_is_the_interval_loss_and_alpha_0_the_adversarial_one(name: str, kappa: float) -> None:
    for architecture in ("cnn4", "cnn5"):  # without and with batch norm
        graph, params = network(architecture)
        torch.testing.assert_close(
            value(name, graph, params, batch(kappa=kappa), alpha=1.0), value("ibp", graph, params, batch(kappa=kappa)), **ROUNDING
        )
        adversarial = value("pgd", graph, params, batch(kappa=kappa))
        torch.testing.assert_close(value(name, graph, params, batch(kappa=kappa), alpha=0.0), adversarial)
        between = float(value(name, graph, params, batch(kappa=kappa), alpha=0.5))
        assert float(adversarial) < between < float(value("ibp", graph, params, batch(kappa=kappa)))


def test_cc_ibp_and_mtl_ibp_by_their_definitions() -> None:
    graph, params = network()
    given = batch()
    bounds = -Margins(graph).lower(params, Margins(graph).enclosure(params, training_box(given.x, 0.1)), given.labels)
    # One sample has one attack for both: the same draws.
    adversarial = float(value("pgd", graph, params, batch()))
    mtl = 0.7 * adversarial + 0.3 * float(F.cross_entropy(bounds, given.labels))
    assert float(value("mtl-ibp", graph, params, batch(), alpha=0.3)) == pytest.approx(mtl, rel=1e-5)
    # The cross-entropy is convex in the margins, so mixing these first never costs more.
    assert float(value("cc-ibp", graph, params, batch(), alpha=0.3)) < mtl


def test_exp_ibp_is_the_weighted_geometric_mean_of_both_losses() -> None:
    labels = torch.tensor([0, 2])
    margins, bounds = torch.tensor([[0.0, 1.0, 3.0], [2.0, 1.0, 0.0]]), torch.tensor([[0.0, -1.0, 0.5], [-2.0, 0.0, 0.0]])
    adversarial, interval = (F.cross_entropy(-one, labels, reduction="none") for one in (margins, bounds))
    found = GeometricLossesObjective.combination(margins, bounds, labels, 0.3)
    torch.testing.assert_close(found, (adversarial**0.7 * interval**0.3).mean())
    # Nowhere above the arithmetic mean of MTL-IBP.
    assert float(found) < float(CombinedLossesObjective.combination(margins, bounds, labels, 0.3))


def test_exp_ibp_has_finite_gradients_where_a_loss_rounds_to_zero() -> None:
    labels = torch.tensor([0])
    margins = torch.tensor([[0.0, 40.0]], requires_grad=True)
    bounds = torch.tensor([[0.0, -1.0]], requires_grad=True)
    assert float(F.cross_entropy(-margins.detach(), labels)) == 0
    GeometricLossesObjective.combination(margins, bounds, labels, 0.5).backward()
    assert margins.grad is not None
    assert bounds.grad is not None
    assert torch.isfinite(margins.grad).all()
    assert 0 < float(bounds.grad.abs().max()) < 1


def test_shrink_1_is_the_interval_loss_and_smaller_boxes_cost_less() -> None:
    for architecture in ("cnn4", "cnn5"):
        graph, params = network(architecture)
        found = [value("sabr", graph, params, batch(), shrink=shrink) for shrink in (1.0, 0.4, 1e-5)]
        torch.testing.assert_close(found[0], value("ibp", graph, params, batch()), **ROUNDING)
        assert float(found[0]) > float(found[1]) > float(found[2])
        # A box of almost no size about the attacked point has the attacked point's loss.
        assert float(found[2]) == pytest.approx(float(value("pgd", graph, params, batch())), rel=1e-2)
        for both in ("taps", "staps"):  # while the radius grows, they train on bounds alone
            ramp = batch(most=0.2)
            expected = value("ibp" if both == "taps" else "sabr", graph, params, ramp, shrink=0.4)
            torch.testing.assert_close(value(both, graph, params, batch(most=0.2), shrink=0.4), expected)


@pytest.mark.parametrize("name", MIXED)
def test_epsilon_0_is_the_clean_loss(name: str) -> None:
    for architecture in ("cnn4", "cnn5"):
        graph, params = network(architecture)
        expected = value("natural", graph, params, batch(0.0))
        for kappa in (0.0, 0.4, 1.0):
            found = make_objective(spec(name), graph, params)(params, batch(0.0, kappa, most=0.1))
            torch.testing.assert_close(found.value, expected, rtol=1e-4, atol=1e-4)
            assert bool(found.statistics) == (architecture == "cnn5")
        if "taps" in name:  # at its full radius the product of two equal losses
            found = make_objective(spec(name), graph, params)(params, batch(0.0))
            torch.testing.assert_close(found.value, expected**2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MIXED)
def test_the_enclosure_is_returned_where_it_is_asked_for_and_the_draws_decide_the_result(name: str) -> None:
    graph, params = network("cnn5")
    objective = make_objective(spec(name, attack_restarts=2), graph, params)
    loss = objective(params, batch(kappa=1.0, enclosure=True))
    assert loss.enclosure is not None
    lower, upper = loss.enclosure[graph.input]
    x = batch().x
    assert bool((lower >= x - 0.1001).all() & (upper <= x + 0.1001).all() & (lower <= upper).all())
    assert torch.equal(loss.value, value("natural", graph, params, batch()))
    assert objective(params, batch(kappa=1.0)).enclosure is None
    first, again = (objective(params, batch(seed=3)) for _ in range(2))
    assert torch.equal(first.value, again.value)
    assert first.enclosure is not None
    assert bool(first.statistics)


# SABR's box.


@settings(max_examples=300, deadline=None)
@given(
    x=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    towards=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    epsilon=st.floats(0, 0.5),
    shrink=st.floats(0.01, 1),
)
def test_the_small_box_lies_in_the_large_one_and_is_as_large_as_said(
    x: list[float], towards: list[float], epsilon: float, shrink: float
) -> None:
    point, target = torch.tensor(x), torch.tensor(towards)
    lower, upper = training_box(point, epsilon)
    attacked = lower + target * (upper - lower)
    small = small_box(point, attacked, epsilon, shrink)
    assert bool((small[0] >= lower).all() & (small[1] <= upper).all() & (small[0] <= small[1]).all())
    # Where the data range does not cut it, its width is 2 · shrink · ε, and it holds the point or touches the large box on its side.
    tau = shrink * epsilon
    inside = (small[0] > 0) & (small[1] < 1)
    assert bool((((small[1] - small[0]) - 2 * tau).abs() <= 1e-5)[inside].all())
    off = torch.maximum(small[0] - attacked, attacked - small[1]).clamp(min=0)
    assert float(off.max()) <= tau + 1e-5  # moved inward by no more than its own radius
    touches = (small[0] <= lower + 1e-5) | (small[1] >= upper - 1e-5)
    assert bool((touches | (off <= 1e-6)).all())


def test_shrink_1_gives_the_large_box() -> None:
    x = torch.rand(50)
    for one, other in zip(small_box(x, (x + 0.1).clamp(max=1), 0.1, 1.0), training_box(x, 0.1), strict=True):
        torch.testing.assert_close(one, other)


# TAPS.


def two_hidden() -> tuple[Graph, dict[str, Tensor]]:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5))
    graph = from_torch(module, (1, 8, 8))
    return graph, graph.tensors()


def test_the_attacked_part_begins_behind_the_activation_before_and_computes_the_rest() -> None:
    graph, params = two_hidden()
    values = run(graph, params, batch().x, keep=True)
    for block, kinds in ((0, [Gemm]), (1, [Gemm, Relu, Gemm]), (2, None)):
        part = attacked_part(graph, block)
        assert sum(isinstance(node, Relu) for node in part.nodes) == block
        if kinds is not None:
            assert [type(node) for node in part.nodes] == kinds
        torch.testing.assert_close(run(part, params, values[part.input]), values[graph.output])
    assert attacked_part(graph, 2).input == graph.input


class Skip(nn.Module):
    """One ReLU, then two inside of a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 7), nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 5)])

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.layers[0](x.flatten(1)))
        result: Tensor = self.layers[3](first + torch.relu(self.layers[2](torch.relu(self.layers[1](first)))))
        return result


def test_a_cut_inside_of_a_residual_block_is_refused_with_those_that_can_be_had() -> None:
    graph = from_torch(Skip(), (1, 8, 8))
    values = run(graph, graph.tensors(), batch().x, keep=True)
    for block in (0, 2, 3):
        part = attacked_part(graph, block)
        torch.testing.assert_close(run(part, graph.tensors(), values[part.input]), values[graph.output])
    for block in (1, 4):
        with pytest.raises(InputError, match=f"block = {block}: .*choose one of 2, 3$"):
            make_objective(spec("taps", block=block), graph, graph.tensors())
    with pytest.raises(InputError, match="no ReLU"):
        attacked_part(from_torch(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), (1, 8, 8)), 1)


def test_residual_networks_are_cut_between_blocks_or_before_the_relu_behind_an_addition() -> None:
    graph, params = network("resnet-small")
    values = run(graph, params, batch().x, keep=True)
    for block in range(1, sum(isinstance(node, Relu) for node in graph.nodes) + 1):
        part = attacked_part(graph, block)
        assert sum(isinstance(node, Relu) for node in part.nodes) == block
        torch.testing.assert_close(run(part, params, values[part.input]), values[graph.output])


@pytest.mark.parametrize("asked", [False, True])
def test_every_cut_has_a_latent_box(asked: bool) -> None:
    for graph, blocks in (
        (from_torch(Skip(), (1, 8, 8)), (2, 3)),
        (network("resnet-small")[0], range(1, 7)),
        (network("mobile")[0], (1, 2, 4)),
    ):
        values = [
            float(value("taps", graph, graph.tensors(), batch(0.005, enclosure=asked), block=block, attack_steps=2)) for block in blocks
        ]
        # The more is attacked instead of bounded, the less the product can be; attacks are not exact, so nearly.
        assert all(later <= 1.05 * earlier for earlier, later in pairwise(values))


class Spy(LatentAttackObjective):
    """Keeps the boxes and points of the attack."""

    def attack(
        self, params: Mapping[str, Tensor], latent: tuple[Tensor, Tensor], labels: Tensor, others: Tensor, given: TrainingBatch
    ) -> Tensor:
        points = super().attack(params, latent, labels, others, given)
        self.latent, self.points = latent, points
        return points


@pytest.mark.parametrize("name", ["cnn4", "cnn5", "resnet-small"])
def test_latent_points_lie_in_the_latent_box_and_attack_their_own_margin(name: str) -> None:
    graph, params = network(name)
    given = batch(enclosure=True)
    objective = Spy(spec("taps", attack_restarts=2), graph, params)
    loss = objective(params, given)
    lower, upper = objective.latent
    assert bool((objective.points >= lower).all() & (objective.points <= upper).all())
    assert len(objective.points) == 4 * len(given.x)  # one for each other class
    # Estimated margins lie between what random latent points reach and what intervals bound.
    values = {**params, **loss.statistics}
    assert loss.enclosure is not None
    bounds = Margins(graph).lower(values, loss.enclosure, given.labels)
    margins = objective.estimate(values, loss.enclosure[objective.attacked_part.input], batch())
    assert bool((margins >= bounds - 1e-4).all())
    assert bool((margins.gather(1, given.labels[:, None]) == 0).all())
    low, high = loss.enclosure[objective.attacked_part.input]
    draws = torch.Generator().manual_seed(5)
    logits = [run(objective.attacked_part, values, low + torch.rand(low.shape, generator=draws) * (high - low)) for _ in range(20)]
    reached = torch.stack([one.gather(1, given.labels[:, None]) - one for one in logits]).amin(0)
    assert float((margins <= reached + 1e-4).float().mean()) > 0.97
    ibp, estimated = F.cross_entropy(-bounds, given.labels), float(F.cross_entropy(-margins, given.labels))
    assert float(ibp) > estimated
    assert float(loss.value.detach()) == pytest.approx(float(ibp) * estimated, rel=0.02)


def test_with_nothing_to_attack_the_estimate_is_the_interval_bound() -> None:
    graph, params = two_hidden()
    given = batch()
    asked = spec("taps", attack_step=2.0, attack_steps=2)
    objective = LatentAttackObjective(asked.model_copy(update={"loss": asked.loss.model_copy(update={"block": 0})}), graph, params)
    margins = Margins(graph)
    enclosure = margins.enclosure(params, training_box(given.x, given.epsilon))
    bounds = margins.lower(params, enclosure, given.labels)
    found = objective.estimate(params, enclosure[objective.attacked_part.input], given)
    torch.testing.assert_close(found, bounds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(objective(params, batch()).value, value("ibp", graph, params, batch()) ** 2, rtol=1e-4, atol=1e-5)


def test_alpha_weighs_the_gradients_of_the_product() -> None:
    graph, params = two_hidden()
    leaves = {name: tensor.requires_grad_() for name, tensor in params.items()}

    def gradient(alpha: float) -> tuple[float, Tensor]:
        loss = value("taps", graph, leaves, batch(), alpha=alpha)
        return float(loss.detach()), torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(leaves.values()))])

    (at, only_bounds), (same, only_attack), (_, half), (_, published) = (gradient(alpha) for alpha in (0.0, 1.0, 0.5, 5 / 6))
    assert at == same  # the value does not depend on it
    torch.testing.assert_close(half, (only_bounds + only_attack) / 2)
    torch.testing.assert_close(published, only_bounds / 6 + only_attack * 5 / 6)
    # Bounds alone: 2 · L_TAPS · ∇L_IBP, in the direction of the interval loss.
    interval = value("ibp", graph, leaves, batch())
    direction = torch.cat([one.flatten() for one in torch.autograd.grad(interval, list(leaves.values()))])
    assert float(F.cosine_similarity(direction, only_bounds, dim=0)) == pytest.approx(1, abs=1e-5)
    assert float(F.cosine_similarity(direction, only_attack, dim=0)) < 0.9999


def test_the_gradient_connector_by_hand() -> None:
    lower, upper = torch.zeros(6, requires_grad=True), torch.ones(6, requires_grad=True)
    point = torch.tensor([0.0, 0.125, 0.5, 0.75, 1.0, 0.875])
    connected = connect(point, lower, upper)
    assert torch.equal(connected, point)
    (connected * torch.arange(1.0, 7)).sum().backward()
    assert lower.grad is not None
    assert upper.grad is not None
    torch.testing.assert_close(lower.grad, torch.tensor([1, 0.75, 0, 0, 0, 0]) * torch.arange(1.0, 7))
    torch.testing.assert_close(upper.grad, torch.tensor([0, 0, 0, 0.5, 1, 0.75]) * torch.arange(1.0, 7))
    # A box without width moves as one.
    low, high = torch.full((2,), 0.3, requires_grad=True), torch.full((2,), 0.3, requires_grad=True)
    connect(torch.full((2,), 0.3), low, high).sum().backward()
    assert low.grad is not None
    assert high.grad is not None
    torch.testing.assert_close(low.grad + high.grad, torch.ones(2))


def test_scaled_gradients() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    scaled = scale_gradient(x**2, 0.25)
    assert float(scaled.detach()) == 9
    scaled.backward()
    assert x.grad is not None
    assert float(x.grad) == pytest.approx(1.5)


def test_staps_bounds_from_the_small_box() -> None:
    graph, params = network()
    full, small = (make_objective(spec(name, shrink=0.3), graph, params)(params, batch()) for name in ("taps", "staps"))
    assert full.enclosure is not None
    assert small.enclosure is not None
    name = graph.nodes[-2].name
    widths = [float((lower_upper[1] - lower_upper[0]).mean()) for lower_upper in (small.enclosure[name], full.enclosure[name])]
    assert float(small.value) < float(full.value)
    assert widths[0] < widths[1]
    same = make_objective(spec("staps", shrink=1.0), graph, params)(params, batch())
    assert torch.equal(same.value, full.value)


# Gradients.


@pytest.mark.parametrize("name", MIXED)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    # The attack is held: where its points lie is no part of the gradient. One step from a fixed seed ends at the same corner after a
    # small change of the parameters, as only the sign of its gradient counts and the step is longer than the box. Corners of a latent box
    # move with its ends, so that the connector's gradient is the true one, as is that of the product at α = 1/2.
    graph, params = two_hidden()
    params = {key: tensor.double().requires_grad_() for key, tensor in params.items()}
    objective = make_objective(spec(name, attack_steps=1, attack_step=4.0, alpha=0.5, shrink=0.5), graph, params)

    def evaluate(values: Mapping[str, Tensor]) -> Tensor:
        given = batch(0.05, 0.2, size=4)
        return objective(
            values, TrainingBatch(given.x.double(), given.labels, 0.05, 0.05, 0.2, False, torch.Generator().manual_seed(0))
        ).value

    gradients = dict(zip(params, torch.autograd.grad(evaluate(params), list(params.values())), strict=True))
    draws = np.random.default_rng(0)
    for key, tensor in params.items():
        for _ in range(4):
            where = tuple(int(draws.integers(size)) for size in tensor.shape)
            ends = []
            for sign in (-1, 1):
                moved = tensor.detach().clone()
                moved[where] += sign * 1e-6
                ends.append(float(evaluate({**{k: v.detach() for k, v in params.items()}, key: moved})))
            assert (ends[1] - ends[0]) / 2e-6 == pytest.approx(float(gradients[key][where]), rel=1e-3, abs=1e-6), (key, where)


@pytest.mark.parametrize("name", MIXED)
def test_a_few_steps_lower_the_loss_and_every_weight_gets_a_gradient(name: str) -> None:
    graph, params = network("cnn5")
    weights = [node.weight for node in graph.nodes if isinstance(node, Conv | Gemm)]
    leaves = {key: params[key].requires_grad_() for key in weights}
    objective: Objective = make_objective(spec(name, attack_steps=3), graph, params)
    optimiser = torch.optim.Adam(leaves.values(), lr=2e-3)
    history = []
    for _ in range(12):
        loss = objective(params, batch(0.02, size=16)).value
        optimiser.zero_grad()
        loss.backward()
        assert all(leaf.grad is not None and float(leaf.grad.abs().sum()) > 0 for leaf in leaves.values())
        optimiser.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.8 * history[0]
