"""Objectives on a network small enough to be bounded by hand, and their relations to each other."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor, nn

from vsparse import second_opinion
from vsparse.bounds import interval
from vsparse.errors import InputError
from vsparse.graph import from_torch, run
from vsparse.graph.ir import Graph, Relu
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Margins, training_box
from vsparse.stages.train.objectives import make_objective
from vsparse.stages.train.objectives.crown_ibp_lirpa import LirpaCrownObjective
from vsparse.stages.train.objectives.ibp import IntervalObjective, certified
from vsparse.stages.train.objectives.loss import Objective, TrainingBatch
from vsparse.stages.train.terms import ExtraTerms
from vsparse.stages.train.terms.warm_up import warm_up_regulariser

needs_lirpa = pytest.mark.skipif(not second_opinion.is_available(), reason="auto_LiRPA is not installed")


def tiny() -> tuple[Graph, dict[str, Tensor]]:
    """x ∈ R² → relu(x₁ + x₂ − 0.5), relu(x₁ − x₂) → two logits (a − b, 2b + 0.1)."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        module[1].bias.copy_(torch.tensor([-0.5, 0.0]))
        module[3].weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
        module[3].bias.copy_(torch.tensor([0.0, 0.1]))
    graph = from_torch(module, (1, 1, 2))
    return graph, graph.tensors()


def random_net(name: str = "cnn4", seed: int = 0) -> tuple[Graph, dict[str, Tensor]]:
    graph = from_torch(make(Network(architecture=name, width=0.25), (1, 8, 8), 5, seed=seed), (1, 8, 8))
    return graph, graph.tensors()


def batch_of(
    x: Tensor, labels: Tensor, epsilon: float, kappa: float = 0.0, epsilon_max: float = 0.2, enclosure: bool = False
) -> TrainingBatch:
    return TrainingBatch(x, labels, epsilon, epsilon_max, kappa, enclosure, torch.Generator().manual_seed(0))


def value_of(objective: Objective, params: dict[str, Tensor], x: Tensor, labels: Tensor, epsilon: float, kappa: float) -> Tensor:
    return objective(params, batch_of(x, labels, epsilon, kappa)).value


def test_margins_and_loss_by_hand() -> None:
    # x = (0.5, 0.4), ε = 0.1: x₁ ∈ [0.4, 0.6], x₂ ∈ [0.3, 0.5].
    # First layer: a' ∈ [0.2, 0.6], b' ∈ [-0.1, 0.3]; after ReLU a ∈ [0.2, 0.6], b ∈ [0, 0.3].
    # Margin of label 0 over 1: a − b − 2b − 0.1 = a − 3b − 0.1 ≥ 0.2 − 0.9 − 0.1 = −0.8; un-elided: (0.2 − 0.3) − (0.6 + 0.1) = −0.8.
    graph, params = tiny()
    x, label = torch.tensor([[[[0.5, 0.4]]]]), torch.tensor([0])
    margins = Margins(graph)
    enclosure = margins.enclosure(params, training_box(x, 0.1))
    torch.testing.assert_close(margins.lower(params, enclosure, label), torch.tensor([[0.0, -0.8]]))
    worst = log(1 + exp(0.8))
    clean = log(1 + exp(0.3 - 0.3))  # logits (0.4 − 0.1, 0.2 + 0.1)
    objective = IntervalObjective(Train(), graph, params)
    assert float(value_of(objective, params, x, label, 0.1, 0.0)) == pytest.approx(worst, abs=1e-6)
    assert float(value_of(objective, params, x, label, 0.1, 1.0)) == pytest.approx(clean, abs=1e-6)
    assert float(value_of(objective, params, x, label, 0.1, 0.25)) == pytest.approx(0.25 * clean + 0.75 * worst, abs=1e-6)
    assert not bool(certified(margins, params, x, label, 0.1))
    # At ε = 0.001: a ≥ 0.4 − 0.002, b ≤ 0.1 + 0.002; a − 3b − 0.1 ≥ −0.008, so not even there.
    assert not bool(certified(margins, params, x, label, 0.001))
    # Label 1 at x = (0.9, 0.1), ε = 0.05: a ≤ 0.6, b ≥ 0.7: 3b − a + 0.1 ≥ 1.6.
    assert bool(certified(margins, params, torch.tensor([[[[0.9, 0.1]]]]), torch.tensor([1]), 0.05))


def test_the_box_is_clipped_to_the_data_range() -> None:
    lower, upper = training_box(torch.tensor([0.0, 0.05, 1.0]), 0.1)
    torch.testing.assert_close(lower, torch.tensor([0.0, 0.0, 0.9]))
    torch.testing.assert_close(upper, torch.tensor([0.1, 0.15, 1.0]))


@pytest.mark.parametrize("name", ["cnn4", "mlp", "resnet-small"])
def test_margins_are_those_of_the_last_layer_folded_and_never_looser(name: str) -> None:
    graph, params = random_net(name)
    params = {key: value.double() for key, value in params.items()}
    x, labels = torch.rand(6, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    margins = Margins(graph)
    box = training_box(x, 0.05)
    elided = margins.lower(params, margins.enclosure(params, box), labels)
    full = interval(graph, params, box)
    hidden_lower, hidden_upper = full[margins.trunk.output]
    weight, bias = params["logits.weight"] if "logits.weight" in params else params["fc.weight"], params["logits.bias"]
    for row, label in enumerate(labels.tolist()):
        folded, offset = weight[label] - weight, bias[label] - bias
        expected = folded.clamp(min=0) @ hidden_lower[row] + folded.clamp(max=0) @ hidden_upper[row] + offset
        torch.testing.assert_close(elided[row], expected)
        plain = full[graph.output][0][row, label] - full[graph.output][1][row]
        plain[label] = 0
        assert bool((elided[row] >= plain - 1e-12).all())


def test_a_point_box_makes_the_worst_case_the_clean_case() -> None:
    graph, params = random_net()
    x, labels = torch.rand(4, 1, 8, 8), torch.tensor([1, 0, 4, 2])
    objective = IntervalObjective(Train(), graph, params)
    torch.testing.assert_close(value_of(objective, params, x, labels, 0.0, 0.0), value_of(objective, params, x, labels, 0.0, 1.0))


def test_margins_hold_at_random_points_and_corners() -> None:
    graph, params = random_net()
    params = {key: value.double() for key, value in params.items()}
    x, labels = torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.tensor([1, 3, 0])
    margins = Margins(graph)
    lower, upper = training_box(x, 0.08)
    bound = margins.lower(params, margins.enclosure(params, (lower, upper)), labels)
    for attempt in range(200):
        share = torch.rand_like(x) if attempt % 2 else torch.randint(0, 2, x.shape).double()
        logits = run(graph, params, lower + share * (upper - lower))
        assert bool((logits.gather(1, labels[:, None]) - logits >= bound - 1e-10).all())


def test_a_network_that_does_not_end_in_a_linear_layer_uses_bounds_of_its_logits() -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten())
    graph = from_torch(module, (1, 2, 2))
    params = graph.tensors()
    margins = Margins(graph)
    x, labels = torch.rand(2, 1, 2, 2), torch.tensor([2, 0])
    lower, upper = interval(graph, params, training_box(x, 0.1))[graph.output]
    found = margins.lower(params, margins.enclosure(params, training_box(x, 0.1)), labels)
    assert float(found[0, 1]) == pytest.approx(float(lower[0, 2] - upper[0, 1]))
    assert float(found[0, 2]) == 0


def test_nan_never_certifies() -> None:
    graph, params = tiny()
    params["3.weight" if "3.weight" in params else next(iter(params))][0, 0] = float("nan")
    assert not bool(certified(Margins(graph), params, torch.tensor([[[[0.9, 0.1]]]]), torch.tensor([1]), 0.05))


def test_batch_norm_uses_the_clean_batch_for_both_passes() -> None:
    graph, params = random_net("cnn5")
    x, labels = torch.rand(8, 1, 8, 8), torch.randint(0, 5, (8,))
    loss = IntervalObjective(Train(), graph, params)(params, batch_of(x, labels, 0.0))
    assert loss.statistics
    statistics: dict[str, Tensor] = {}
    clean = nn.functional.cross_entropy(run(graph, params, x, batch_statistics=statistics), labels)
    torch.testing.assert_close(loss.value, clean, rtol=1e-4, atol=1e-5)


def test_regulariser_by_hand() -> None:
    # The network of `tiny`, x = (0.5, 0.4), ε = 0.1: input width 0.2; pre-activation boxes [0.2, 0.6] and [-0.1, 0.3], width 0.4.
    # Tightness: relu(0.5 − 0.2/0.4) = 0. One neuron active, none inactive: no balance.
    graph, params = tiny()
    margins = Margins(graph)
    x = torch.tensor([[[[0.5, 0.4]]]])
    assert float(warm_up_regulariser(margins.trunk, margins.enclosure(params, training_box(x, 0.1)))) == pytest.approx(0, abs=1e-6)
    # Weights and bias doubled: width 0.8, (0.5 − 0.25)/0.5 = 0.5.
    doubled = {name: value * 2 if name.startswith("1") or value.shape == (2, 2) else value for name, value in params.items()}
    found = float(warm_up_regulariser(margins.trunk, margins.enclosure(doubled, training_box(x, 0.1))))
    assert found == pytest.approx(0.5, abs=1e-5)
    # Bias (−0.5, −0.4): the second box is [−0.5, −0.1]; centres 0.4 and −0.3, mean 0.05, both (±0.35)² from it.
    # Mean ratio 0.15/0.2 = 0.75 and variance ratio 1: both above τ, no balance term; with bias (−0.5, −1.9), centres 0.4 and −1.8:
    # mean ratio 0.4/1.8, (0.5 − 0.2222)/0.5 = 0.5556; variances are equal.
    biased = {
        name: torch.tensor([-0.5, -1.9]) if value.shape == (2,) and float(value[0]) == -0.5 else value for name, value in params.items()
    }
    found = float(warm_up_regulariser(margins.trunk, margins.enclosure(biased, training_box(x, 0.1))))
    assert found == pytest.approx((0.5 - 0.4 / 1.8) / 0.5, abs=1e-5)


def test_the_regulariser_is_added_with_the_share_of_the_radius_that_is_still_to_come() -> None:
    graph, params = random_net()
    spec = Train(regulariser=0.5)
    terms, objective = ExtraTerms(spec, graph), IntervalObjective(spec, graph, params)
    x, labels = torch.rand(6, 1, 8, 8), torch.randint(0, 5, (6,))
    batch = batch_of(x, labels, 0.05, enclosure=terms.wants_enclosure(0.25))
    assert batch.enclosure
    loss = objective(params, batch)
    assert loss.enclosure is not None
    margins = Margins(graph)
    full = interval(margins.trunk, params, training_box(x, 0.05))
    expected = loss.value + 0.5 * 0.75 * warm_up_regulariser(margins.trunk, full)
    torch.testing.assert_close(terms(params, batch, loss, 0.25), expected)
    assert not terms.wants_enclosure(1.0)
    torch.testing.assert_close(terms(params, batch, loss, 1.0), loss.value)


def test_bounds_for_a_term_are_those_of_the_box_even_where_the_clean_loss_alone_counts() -> None:
    graph, params = random_net("cnn5")
    x, labels = torch.rand(6, 1, 8, 8), torch.randint(0, 5, (6,))
    loss = IntervalObjective(Train(), graph, params)(params, batch_of(x, labels, 0.05, 1.0, enclosure=True))
    assert loss.enclosure is not None
    full = interval(graph, {**params, **loss.statistics}, training_box(x, 0.05))
    relus = [node.inputs[0] for node in graph.nodes if isinstance(node, Relu)]
    assert set(relus) <= set(loss.enclosure)
    for name in relus:
        torch.testing.assert_close(loss.enclosure[name], full[name], rtol=1e-4, atol=1e-4)


@needs_lirpa
def test_crown_ibp_of_auto_lirpa_with_weight_zero_is_ibp() -> None:
    graph, params = random_net()
    x, labels = torch.rand(6, 1, 8, 8), torch.randint(0, 5, (6,))
    expected = value_of(IntervalObjective(Train(), graph, params), params, x, labels, 0.2, 0.0)
    torch.testing.assert_close(value_of(lirpa(graph, params), params, x, labels, 0.2, 0.0), expected)


@needs_lirpa
def test_fused_crown_loss_of_auto_lirpa_bounds_the_loss_at_every_point_and_has_gradients_for_every_tensor() -> None:
    graph, params = random_net()
    objective = lirpa(graph, params)
    for count in (5, 3):  # the batch size may change from step to step
        x, labels = torch.rand(count, 1, 8, 8), torch.randint(0, 5, (count,))
        box = training_box(x, 0.02)
        bound = objective.crown(x, box, labels)
        for _ in range(30):
            point = box[0] + torch.rand_like(x) * (box[1] - box[0])
            loss = nn.functional.cross_entropy(run(graph, params, point), labels, reduction="none")
            assert bool((loss <= bound + 1e-4).all())
        value = value_of(objective, params, x, labels, 0.02, 0.0)
        value.backward()
        assert all(params[name].grad is not None and bool(params[name].grad.abs().sum() > 0) for name in ("conv1.weight", "logits.weight"))


@needs_lirpa
def test_fused_crown_of_auto_lirpa_of_a_point_is_the_cross_entropy() -> None:
    graph, params = random_net()
    x, labels = torch.rand(4, 1, 8, 8), torch.randint(0, 5, (4,))
    clean = nn.functional.cross_entropy(run(graph, params, x), labels)
    torch.testing.assert_close(value_of(lirpa(graph, params), params, x, labels, 0.0, 0.0), clean, rtol=1e-4, atol=1e-4)


@needs_lirpa
def test_crown_ibp_of_auto_lirpa_refuses_batch_norm() -> None:
    graph, params = random_net("cnn5")
    with pytest.raises(InputError, match="without batch norm"):
        lirpa(graph, params)


def lirpa(graph: Graph, params: dict[str, Tensor]) -> LirpaCrownObjective:
    made = make_objective(Train(objective="crown-ibp", engine="auto_lirpa"), graph, params)
    assert isinstance(made, LirpaCrownObjective)
    return made
