"""Our CROWN-IBP with loss fusion: sound, equal to the rules of `bounds`, and what auto_LiRPA computes."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsparse import second_opinion
from vsparse.bounds import crown, interval
from vsparse.bounds.ball import Box
from vsparse.graph import from_torch, run
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.ir import Conv, Graph
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.fast_interval import fast_interval
from vsparse.stages.train.bounds.linear_pass import row_lower
from vsparse.stages.train.bounds.margins import Margins, training_box
from vsparse.stages.train.objectives import TrainingBatch, make_objective
from vsparse.stages.train.objectives.crown_ibp import CrownIntervalObjective, crown_weight, fused_bound, mixed
from vsparse.stages.train.objectives.ibp import IntervalObjective


def net(name: str, side: int = 8, channels: int = 1, width: float = 0.2) -> Graph:
    return from_torch(make(Network(architecture=name, width=width), (channels, side, side), 5, seed=1), (channels, side, side))


class Pooled(nn.Module):
    """Two convolutions of one shape, a residual addition, both pools and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.again, self.shared = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.mean, self.last = nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = self.pool(F.relu(self.shared(F.relu(self.again(x))) + x))
        result: Tensor = self.last(self.mean(x).flatten(1))
        return result


def pooled() -> Graph:
    """Returns the network above, whose second and third convolution share their weights."""
    torch.manual_seed(0)
    graph = from_torch(Pooled(), (2, 8, 8))
    second, third = [node for node in graph.nodes if isinstance(node, Conv)][1:]
    nodes = tuple(replace(node, weight=second.weight, bias=second.bias) if node is third else node for node in graph.nodes)
    return replace(graph, nodes=nodes)


def loss_bound(graph: Graph, params: dict[str, Tensor], box: Box, labels: Tensor) -> Tensor:
    margins = Margins(graph)
    enclosure = margins.enclosure(params, box)
    lower, upper = margins.both(params, enclosure, labels)
    return fused_bound(graph, params, box, enclosure, (-upper, -lower), labels)


def batch_of(x: Tensor, labels: Tensor, epsilon: float, kappa: float = 0.0, epsilon_max: float = 0.1) -> TrainingBatch:
    return TrainingBatch(x, labels, epsilon, epsilon_max, kappa, False, torch.Generator().manual_seed(0))


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["cnn4", "mlp", "resnet-small", "cnn5", "pooled"])
def test_the_bound_holds_under_random_points_corners_and_projected_gradient(name: str) -> None:
    graph = pooled() if name == "pooled" else net(name, channels=2)
    params = graph.tensors()
    x, labels = seeded(4, *graph.input_shape), torch.tensor([0, 1, 4, 2])
    for epsilon in (0.005, 0.05):
        lower, upper = training_box(x, epsilon)
        bound = loss_bound(graph, params, (lower, upper), labels)
        worst = torch.zeros(4)
        for attempt in range(20):
            share = torch.rand_like(x) if attempt % 2 else torch.randint(0, 2, x.shape).float()
            worst = torch.maximum(worst, F.cross_entropy(run(graph, params, lower + share * (upper - lower)), labels, reduction="none"))
        point = (lower + upper) / 2
        for _ in range(20):
            point = point.detach().requires_grad_(True)
            loss = F.cross_entropy(run(graph, params, point), labels, reduction="none")
            worst = torch.maximum(worst, loss.detach())
            (gradient,) = torch.autograd.grad(loss.sum(), point)
            point = (point + epsilon / 4 * gradient.sign()).clamp(lower, upper)
        assert bool((worst <= bound + 1e-4).all())
        assert bool((worst > 0).all())


@pytest.mark.parametrize("name", ["cnn4", "mlp", "resnet-small", "cnn5", "pooled"])
def test_one_row_is_bounded_as_crown_bounds_it_with_the_same_gradients(name: str) -> None:
    # `bounds.crown` knows no batch norm, so it gets the folded network; gradients are compared where nothing had to be folded.
    graph = pooled() if name == "pooled" else net(name, channels=2)
    folded = fold_batch_norm(graph)
    row = seeded(3, 5, seed=2).double() - 0.5
    x = seeded(3, *graph.input_shape).double()
    found = []
    for one in (graph, folded):
        params = {key: value.double().requires_grad_(True) for key, value in one.tensors().items()}
        box = training_box(x, 0.02)
        if one is graph:
            value = row_lower(one, params, box, row, fast_interval(one, params, box, "relu"))
        else:
            value = crown(one, params, box, row[:, None], interval(one, params, box)).squeeze(1)
        value.square().sum().backward()
        found.append((value.detach(), {key: tensor.grad for key, tensor in params.items()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)  # folding rounds the weights to float32
    if folded.params.keys() == graph.params.keys():
        for key, expected in found[1][1].items():
            torch.testing.assert_close(found[0][1][key], expected, rtol=1e-6, atol=1e-9, msg=key)


def test_gradients_reach_both_ends_of_the_input_box() -> None:
    graph = net("cnn4", side=4, width=0.05)
    params = {name: value.double() for name, value in graph.tensors().items()}
    row = seeded(1, 5).double() - 0.5
    ends = tuple(end.requires_grad_(True) for end in training_box(seeded(1, 1, 4, 4).double(), 0.05))

    def bound(lower: Tensor, upper: Tensor) -> Tensor:
        return row_lower(graph, params, (lower, upper), row, fast_interval(graph, params, (lower, upper), "relu"))

    assert torch.autograd.gradcheck(bound, ends, eps=1e-7, atol=1e-5)


def test_by_hand() -> None:
    # z = x₁ − x₂ over [0, 1]²; ReLU on [−1, 1] has the upper line (z + 1)/2. Logits (0, relu(z)), label 0: margin m in [0, 1].
    # exp(m) <= 1 + (e − 1)·m <= 1 + (e − 1)·(z + 1)/2, at most 1 + (e − 1) = e; the label adds 1: log(1 + e).
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for index, weight in ((1, [[1.0, -1.0]]), (3, [[0.0], [1.0]])):
            module[index].weight.copy_(torch.tensor(weight))
            module[index].bias.zero_()
    graph = from_torch(module, (1, 1, 2))
    box = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    found = loss_bound(graph, graph.tensors(), box, torch.tensor([0]))
    torch.testing.assert_close(found, torch.log1p(torch.tensor([1.0]).exp()))
    # Label 1: margin −m in [−1, 0], chord exp(−1) + (1 − exp(−1))·(1 − m); m >= lower line, slope 1 if u > −l else 0: here u = −l, so 0.
    torch.testing.assert_close(loss_bound(graph, graph.tensors(), box, torch.tensor([1])), torch.log(torch.tensor([2.0])))


def test_a_point_gives_the_cross_entropy_and_its_gradient() -> None:
    graph = net("cnn4")
    x, labels = seeded(4, 1, 8, 8), torch.tensor([0, 1, 2, 4])
    gradients = []
    for bounded in (True, False):
        params = {name: value.requires_grad_(True) for name, value in graph.tensors().items()}
        value = loss_bound(graph, params, (x, x), labels) if bounded else F.cross_entropy(run(graph, params, x), labels, reduction="none")
        value.sum().backward()
        gradients.append((value.detach(), [params[name].grad for name in sorted(params)]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_large_margins_do_not_overflow() -> None:
    graph = net("mlp")
    params = {name: value * (100 if name.endswith("weight") else 1) for name, value in graph.tensors().items()}
    for value in params.values():
        value.requires_grad_(True)
    x, labels = seeded(4, 1, 8, 8), torch.tensor([0, 1, 2, 4])
    bound = loss_bound(graph, params, training_box(x, 0.3), labels)
    assert bool(torch.isfinite(bound).all())
    assert float(bound.detach().max()) > 1000
    bound.mean().backward()
    assert all(bool(torch.isfinite(value.grad).all()) for value in params.values() if value.grad is not None)


def test_the_mixture_moves_from_crown_to_intervals_as_the_radius_grows() -> None:
    assert crown_weight(0.0, 0.1) == 1
    assert crown_weight(0.025, 0.1) == pytest.approx(0.75)
    assert crown_weight(0.1, 0.1) == crown_weight(0.0, 0.0) == 0
    graph = net("cnn4")
    params = graph.tensors()
    objective = CrownIntervalObjective(Train(objective="crown-ibp"), graph, params)
    x, labels = seeded(4, 1, 8, 8), torch.tensor([0, 1, 2, 4])
    interval_loss = IntervalObjective(Train(), graph, params)(params, batch_of(x, labels, 0.1)).value
    torch.testing.assert_close(objective(params, batch_of(x, labels, 0.1)).value, interval_loss)
    box = training_box(x, 0.025)
    bound = loss_bound(graph, params, box, labels)
    margins = Margins(graph)
    worst = F.cross_entropy(-margins.lower(params, margins.enclosure(params, box), labels), labels, reduction="none")
    expected = torch.log(0.75 * bound.exp() + 0.25 * worst.exp()).mean()
    torch.testing.assert_close(objective(params, batch_of(x, labels, 0.025)).value, expected)
    torch.testing.assert_close(mixed(torch.tensor([500.0]), torch.tensor([400.0]), 0.5), torch.tensor([500.0 + 0.0 - 0.6931472]))
    clean = F.cross_entropy(run(graph, params, x), labels)
    torch.testing.assert_close(objective(params, batch_of(x, labels, 0.025, kappa=0.25)).value, 0.25 * clean + 0.75 * expected)


def test_batch_norm_uses_the_statistics_of_the_clean_batch() -> None:
    graph = net("cnn5")
    params = {name: value.requires_grad_(True) for name, value in graph.tensors().items()}
    objective = make_objective(Train(objective="crown-ibp"), graph, params)
    x, labels = seeded(8, 1, 8, 8), torch.arange(8) % 5
    loss = objective(params, batch_of(x, labels, 0.01))
    assert loss.statistics
    box = training_box(x, 0.01)
    point = box[0] + seeded(8, 1, 8, 8, seed=5) * (box[1] - box[0])
    attacked = F.cross_entropy(run(graph, {**params, **loss.statistics}, point), labels)
    assert float(attacked.detach()) <= float(loss.value.detach())
    point_loss = objective(params, batch_of(x, labels, 0.0)).value
    statistics: dict[str, Tensor] = {}
    torch.testing.assert_close(
        point_loss, F.cross_entropy(run(graph, params, x, batch_statistics=statistics), labels), rtol=1e-4, atol=1e-5
    )


def test_our_engine_needs_no_auto_lirpa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    graph = net("cnn4")
    params = graph.tensors()
    objective = make_objective(Train(objective="crown-ibp"), graph, params)
    assert isinstance(objective, CrownIntervalObjective)
    assert bool(torch.isfinite(objective(params, batch_of(seeded(2, 1, 8, 8), torch.tensor([0, 1]), 0.05)).value))


@pytest.mark.skipif(not second_opinion.is_available(), reason="auto_LiRPA is not installed")
@pytest.mark.parametrize("name", ["cnn4", "mlp"])
def test_the_fused_bound_is_that_of_auto_lirpa(name: str) -> None:
    from vsparse.stages.train.objectives.crown_ibp_lirpa import LirpaCrownObjective

    graph = net(name)
    params = graph.tensors()
    theirs = LirpaCrownObjective(Train(objective="crown-ibp", engine="auto_lirpa"), graph, params)
    x, labels = seeded(6, 1, 8, 8), torch.tensor([0, 1, 2, 4, 3, 0])
    for epsilon in (0.01, 0.05):
        box = training_box(x, epsilon)
        # auto_LiRPA folds the last layer into the margins, too.
        torch.testing.assert_close(loss_bound(graph, params, box, labels), theirs.crown(x, box, labels), rtol=1e-4, atol=1e-4)
