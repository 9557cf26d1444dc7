"""Further terms: NRSLoss by hand, weight perturbations that are as large as said, and which terms exclude each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import tanh
from typing import Any

import numpy as np
import pytest
import torch
from term_nets import batch, network, spec
from torch import Tensor, nn

from vsparse.graph import from_torch
from vsparse.graph.ir import Affine, BatchNorm, Graph, Relu
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Margins, training_box
from vsparse.stages.train.objectives import make_objective
from vsparse.stages.train.terms import ExtraTerms
from vsparse.stages.train.terms.nrs import nrs_loss
from vsparse.stages.train.terms.weight_perturbation import WeightPerturbation

# NRSLoss.


def neurons(norm: float | None = None) -> tuple[Graph, dict[str, Tensor], str]:
    """Three neurons and a ReLU; with `norm` a batch norm of that scale between. Returns the name of what the ReLU reads as well."""
    layers = [nn.Flatten(), nn.Linear(2, 3), *([nn.BatchNorm1d(3)] if norm is not None else []), nn.ReLU(), nn.Linear(3, 2)]
    graph = from_torch(nn.Sequential(*layers), (1, 1, 2))
    params = graph.tensors()
    for node in graph.nodes:
        if isinstance(node, BatchNorm) and norm is not None:
            params[node.scale] = torch.full((3,), norm)
    return graph, params, next(node.inputs[0] for node in graph.nodes if isinstance(node, Relu))


def test_nrs_by_hand() -> None:
    graph, params, name = neurons()
    lower = torch.tensor([[-2.0, 0.0, 1.0], [-1.0, -3.0, 2.0]])
    upper = torch.tensor([[1.0, 1.0, 3.0], [2.0, -1.0, 2.0]])
    # Products −2, 0, 3 and −2, 3, 4; channels count once each.
    for scale in (1.0, 2.0):
        expected = -np.mean([np.mean([tanh(1 + product / scale**2) for product in pair]) for pair in ((-2, -2), (0, 3), (3, 4))])
        assert float(nrs_loss(graph, params, {name: (lower, upper)}, scale)) == pytest.approx(float(expected), abs=1e-6)


def test_nrs_at_its_limits() -> None:
    graph, params, name = neurons()

    def value(lower: float, upper: float) -> float:
        return float(nrs_loss(graph, params, {name: (torch.full((4, 3), lower), torch.full((4, 3), upper))}, 1.0))

    assert value(-9, 9) == pytest.approx(1, abs=1e-6)
    assert value(5, 9) == pytest.approx(-1, abs=1e-6)
    assert value(-9, -5) == pytest.approx(-1, abs=1e-6)
    assert value(0, 9) == value(-9, 0) == pytest.approx(-tanh(1), abs=1e-6)
    assert value(-0.1, 0.1) < value(-0.5, 0.5) < value(-1, 1)


def test_nrs_pushes_the_nearer_end_across_zero() -> None:
    graph, params, name = neurons()
    lower, upper = torch.full((1, 3), -0.2, requires_grad=True), torch.full((1, 3), 1.0, requires_grad=True)
    to_lower, to_upper = torch.autograd.grad(nrs_loss(graph, params, {name: (lower, upper)}, 1.0), [lower, upper])
    assert bool((to_lower < 0).all())  # descent raises the lower end
    assert bool((to_upper > 0).all())
    assert bool((to_lower.abs() > to_upper.abs()).all())


def test_nrs_is_relative_to_the_scale_of_the_batch_norm_and_gives_it_no_gradient() -> None:
    graph, params, name = neurons(norm=3.0)
    plain, other, before = neurons()
    scale = next(params[node.scale] for node in graph.nodes if isinstance(node, BatchNorm)).requires_grad_()
    lower, upper = torch.full((2, 3), -1.0, requires_grad=True), torch.full((2, 3), 2.0)
    found = nrs_loss(graph, params, {name: (lower, upper)}, 2.0)
    torch.testing.assert_close(found, nrs_loss(plain, other, {before: (lower, upper)}, 6.0))
    assert torch.autograd.grad(found, scale, allow_unused=True) == (None,)


def test_a_channel_of_a_map_counts_as_a_neuron_of_a_layer() -> None:
    graph, params = network("cnn4")
    margins = Margins(graph)
    enclosure = margins.enclosure(params, training_box(batch().x, 0.1))
    values = []
    for node in graph.nodes:
        if isinstance(node, Relu):
            lower, upper = enclosure[node.inputs[0]]
            values += [-torch.tanh(1 + lower[:, channel] * upper[:, channel]).mean() for channel in range(lower.shape[1])]
    torch.testing.assert_close(nrs_loss(margins.trunk, params, enclosure, 1.0), torch.stack(values).mean())


@pytest.mark.parametrize("name", ["ibp", "pgd"])  # one bounds the network anyway, the other does not
def test_extra_terms_add_nrs_while_the_radius_is_not_zero(name: str) -> None:
    graph, params = network("cnn5")
    terms = ExtraTerms(spec(name, nrs=0.3), graph)
    assert terms.wants_enclosure(0.5)
    assert not terms.wants_enclosure(0.0)
    assert not ExtraTerms(spec(name), graph).wants_enclosure(0.5)
    loss = make_objective(spec(name), graph, params)(params, batch(enclosure=True))
    assert torch.equal(terms(params, batch(), loss, 0.0), loss.value)
    values = {**params, **loss.statistics}
    expected = 0.3 * nrs_loss(graph, values, Margins(graph).enclosure(values, training_box(batch().x, 0.05)), 1.0)
    assert float(expected) > 0.01
    torch.testing.assert_close(terms(params, batch(), loss, 0.5) - loss.value, expected, rtol=1e-4, atol=1e-5)


# Adversarial weight perturbation.


@pytest.mark.parametrize("name", ["cnn4", "cnn5"])
def test_perturbed_weights_have_the_size_asked_for_and_a_larger_loss(name: str) -> None:
    graph, params = network(name)
    objective = make_objective(spec("ibp"), graph, params)

    def loss_of(values: Mapping[str, Tensor]) -> Tensor:
        return objective(values, batch()).value

    before = float(loss_of(params))
    weights = {node.weight for node in graph.nodes if isinstance(node, Affine)}
    values = [before]
    for size in (1e-3, 5e-3, 2e-2):
        kept = {key: value.clone() for key, value in params.items()}
        moved = WeightPerturbation(size, graph)(params, loss_of)
        assert all(torch.equal(params[key], kept[key]) for key in params)
        for key, value in moved.items():
            if key in weights:
                assert float((value - params[key]).norm() / params[key].norm()) == pytest.approx(size, rel=1e-3)
                assert bool((value[params[key] == 0] == 0).all())
            else:
                assert torch.equal(value, params[key])
        values.append(float(loss_of(moved)))
    assert values == sorted(values)
    # To first order the loss rises by γ Σ ‖w‖‖∇‖ (over what is not pruned).
    leaves = {key: params[key].clone().requires_grad_() for key in weights}
    found = torch.autograd.grad(loss_of({**params, **leaves}), list(leaves.values()))
    pairs = [(leaf.detach(), gradient) for leaf, gradient in zip(leaves.values(), found, strict=True)]
    rise = sum(float(weight.norm() * (gradient * (weight != 0)).norm()) for weight, gradient in pairs)
    assert values[1] - before == pytest.approx(1e-3 * rise, rel=0.1)


def test_no_random_direction_of_the_same_size_is_worse() -> None:
    graph, params = network()
    objective = make_objective(spec("natural"), graph, params)

    def loss_of(values: Mapping[str, Tensor]) -> Tensor:
        return objective(values, batch()).value

    worst = float(loss_of(WeightPerturbation(1e-3, graph)(params, loss_of)))
    draws = torch.Generator().manual_seed(2)
    for _ in range(50):
        other = dict(params)
        for node in graph.nodes:
            if isinstance(node, Affine):
                weight = params[node.weight]
                step = torch.randn(weight.shape, generator=draws) * (weight != 0)
                other[node.weight] = weight + step * (1e-3 * weight.norm() / step.norm())
        assert float(loss_of(other)) <= worst


def test_gradients_pass_the_perturbation_to_the_weights_and_dead_layers_stay() -> None:
    graph, params = network()
    first = next(node for node in graph.nodes if isinstance(node, Affine))
    params[first.weight] = torch.zeros_like(params[first.weight])
    leaves = {key: value.requires_grad_() for key, value in params.items()}
    objective = make_objective(spec("natural"), graph, leaves)

    def loss_of(values: Mapping[str, Tensor]) -> Tensor:
        return objective(values, batch()).value

    moved = WeightPerturbation(0.01, graph)(leaves, loss_of)
    assert torch.equal(moved[first.weight], leaves[first.weight])  # nothing to perturb, and no NaN
    constant = {key: value.detach().clone().requires_grad_() for key, value in moved.items()}
    names = [node.weight for node in graph.nodes if isinstance(node, Affine)]
    direct = torch.autograd.grad(loss_of(constant), [constant[key] for key in names])
    passed = torch.autograd.grad(loss_of(moved), [leaves[key] for key in names])
    for one, other in zip(direct, passed, strict=True):
        torch.testing.assert_close(one, other)


def test_processes_that_train_together_perturb_by_the_gradient_of_all() -> None:
    graph, params = network()
    objective = make_objective(spec("natural"), graph, params)
    given = batch(size=8)
    halves = [replace(given, x=given.x[part], labels=given.labels[part]) for part in (slice(0, 4), slice(4, 8))]
    whole = WeightPerturbation(0.01, graph)(params, lambda values: objective(values, given).value)
    taken: list[list[Tensor]] = []

    def other_half(gradients: list[Tensor]) -> None:
        taken.append([one.clone() for one in gradients])

    alone = [WeightPerturbation(0.01, graph)(params, lambda v, half=half: objective(v, half).value, other_half) for half in halves]

    def average(gradients: list[Tensor]) -> None:
        for one, first, second in zip(gradients, *taken, strict=True):
            one.copy_((first + second) / 2)

    together = WeightPerturbation(0.01, graph)(params, lambda values: objective(values, halves[0]).value, average)
    for key, value in whole.items():
        torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(alone[0][key], value, atol=1e-5) for key, value in whole.items())


@pytest.mark.parametrize(
    "document",
    [
        {"objective": "crown-ibp", "engine": "auto_lirpa", "terms": {"fake_quantisation": True}},
        {"objective": "crown-ibp", "engine": "auto_lirpa", "terms": {"weight_perturbation": 0.01}},
        {"objective": "pgd", "amp": True, "terms": {"fake_quantisation": True}},
    ],
)
def test_terms_that_cannot_be_combined_are_refused_with_the_way_out(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"train\.terms\.fake_quantisation .*set train\.(engine|amp)"):
        Train.model_validate(document)
