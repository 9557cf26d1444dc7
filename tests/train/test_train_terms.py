"""Further terms: NRSLoss by hand, weight perturbations that are as large as said, and training that rounds as the int8 file does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import tanh
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsparse.bounds.interval import propagate
from vsparse.data import Dataset
from vsparse.graph import FakeQuant, fold_batch_norm, from_onnx, from_torch, run
from vsparse.graph.ir import AddConstant, Affine, BatchNorm, Gemm, Graph, MulConstant, Relu
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe_train import Train
from vsparse.stages.export import write_onnx
from vsparse.stages.export.quantise import quantise
from vsparse.stages.train.folding import Folding
from vsparse.stages.train.objectives import Batch, Objective, make_objective
from vsparse.stages.train.objectives.margins import Margins, training_box
from vsparse.stages.train.samples import Samples
from vsparse.stages.train.terms import ExtraTerms
from vsparse.stages.train.terms.fake_quantisation import DECAY, FakeQuantised, TrainingGrid
from vsparse.stages.train.terms.nrs import nrs_loss
from vsparse.stages.train.terms.weight_perturbation import WeightPerturbation
from vsparse.stages.train.validation import Validation

NETWORKS = ("cnn4", "cnn5", "resnet-small", "mlp")


def network(name: str = "cnn4", seed: int = 0) -> tuple[Graph, dict[str, Tensor]]:
    """A small network whose biases, batch norms and statistics are not those of initialisation; some weights are zero."""
    graph = from_torch(make(Network(architecture=name, width=0.25), (1, 8, 8), 5, (0.4,), (0.3,), seed=seed), (1, 8, 8))
    draws = torch.Generator().manual_seed(seed)
    params = graph.tensors()
    for node in graph.nodes:
        if isinstance(node, BatchNorm):
            params[node.scale] = 0.5 + torch.rand(params[node.scale].shape, generator=draws)
            params[node.mean] = 0.1 * torch.randn(params[node.mean].shape, generator=draws)
            params[node.variance] = 0.5 + torch.rand(params[node.variance].shape, generator=draws)
        for bias in [node.bias] if isinstance(node, Affine | BatchNorm) and node.bias is not None else []:
            params[bias] = 0.1 * torch.randn(params[bias].shape, generator=draws)
        if isinstance(node, Affine):
            params[node.weight] = params[node.weight] * (torch.rand(params[node.weight].shape, generator=draws) < 0.8)
    return graph, params


def batch(epsilon: float = 0.05, kappa: float = 0.0, *, size: int = 8, seed: int = 0, enclosure: bool = False) -> Batch:
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(size, 1, 8, 8, generator=draws)
    return Batch(x, torch.randint(0, 5, (size,), generator=draws), epsilon, epsilon, kappa, enclosure, draws)


def spec(objective: str = "ibp", regulariser: float = 0.0, **terms: Any) -> Train:
    return Train.model_validate({"objective": objective, "regulariser": regulariser, "terms": terms})


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


# Folding.


class NormFirst(nn.Module):
    """A batch norm that nothing precedes, one behind a layer that two read, and two in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(1), nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)])
        self.convs = nn.ModuleList([nn.Conv2d(1, 2, 3, bias=False), nn.Conv2d(2, 2, 1)])
        self.last = nn.Linear(72, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = self.convs[0](self.norms[0](x))
        second = torch.relu(self.norms[1](first)) + first
        result: Tensor = self.last(torch.relu(self.norms[3](self.norms[2](self.convs[1](second)))).flatten(1))
        return result


def trained(graph: Graph, params: Mapping[str, Tensor]) -> Graph:
    """The graph with these parameters, its batch norm folded, as a training hands it over."""
    return fold_batch_norm(graph.with_params({name: value.detach().numpy() for name, value in params.items()}))


@pytest.mark.parametrize("name", [*NETWORKS, "norm-first"])
def test_folding_while_training_gives_the_parameters_that_are_exported(name: str) -> None:
    if name == "norm-first":
        torch.manual_seed(0)
        graph = from_torch(NormFirst(), (1, 8, 8))
        params = {key: value + 0.2 * torch.rand(value.shape) for key, value in graph.tensors().items()}
    else:
        graph, params = network(name)
    folding, folded = Folding(graph), trained(graph, params)
    assert not any(isinstance(node, BatchNorm) for node in folding.graph.nodes)
    values = folding.params(params)
    kinds = Affine | MulConstant | AddConstant
    ours, theirs = ([node for node in one.nodes if isinstance(node, kinds)] for one in (folding.graph, folded))
    for one, other in zip(ours, theirs, strict=True):
        assert type(one) is type(other)
        for mine, exported in zip(one.params, other.params, strict=True):
            assert np.array_equal(values[mine].numpy(), folded.params[exported]), one.name
    # Activations keep their names, so that terms of the loss find them.
    before, after = run(graph, params, batch().x, keep=True), run(folding.graph, values, batch().x, keep=True)
    for node in graph.nodes:
        if isinstance(node, Relu):
            torch.testing.assert_close(after[node.inputs[0]], before[node.inputs[0]], rtol=1e-3, atol=1e-4)


def test_networks_with_batch_norm_are_validated_by_linear_bounds() -> None:
    graph, params = network("cnn5")
    given = batch(size=40)
    right = run(graph, params, given.x).argmax(1)  # the labels are what the network says, so that there is something to certify
    pixels = (given.x * 255).round().to(torch.uint8).numpy()
    samples = Samples.of(Dataset(pixels, 255.0, right.numpy(), tuple("abcde"), None))
    found = {measure: Validation(samples, 0.02, measure, 16)(graph, params) for measure in ("crown", "interval")}
    folded = trained(graph, params)
    assert found["crown"] == Validation(samples, 0.02, "crown", 16)(folded, folded.tensors())
    assert 1 >= found["crown"].robust > found["interval"].robust


# Fake quantisation.


def fake(graph: Graph, params: dict[str, Tensor], objective: str = "ibp") -> FakeQuantised:
    made = make_objective(spec(objective, fake_quantisation=True), graph, params)
    assert isinstance(made, FakeQuantised)
    return made


@pytest.mark.parametrize("name", [*NETWORKS, "norm-first"])
@pytest.mark.parametrize("seed", [0, 1])
def test_training_rounds_exactly_as_the_int8_file(name: str, seed: int, tmp_path: Path) -> None:
    if name == "norm-first":
        torch.manual_seed(seed)
        graph = from_torch(NormFirst(), (1, 8, 8))
        params = {key: value + 0.2 * torch.rand(value.shape) for key, value in graph.tensors().items()}
    else:
        graph, params = network(name, seed)
    x = batch(size=40, seed=seed).x
    objective = fake(graph, params)
    objective.observe(objective.folding.params(params), x)
    simulated, rounded = objective.quantised(params)
    write_onnx(quantise(trained(graph, params), x.numpy()), tmp_path / "model.int8.onnx", 17, {})
    exported = from_onnx(tmp_path / "model.int8.onnx")
    assert sum(isinstance(node, FakeQuant) for node in exported.nodes) > 2
    probe = torch.cat([x, batch(size=40, seed=9).x * 1.2 - 0.1])  # the second half leaves the ranges
    ours, theirs = run(simulated, rounded, probe, keep=True), run(exported, exported.tensors(), probe, keep=True)
    assert torch.equal(ours[simulated.output], theirs[exported.output])
    mine = [node for node in simulated.nodes if isinstance(node, FakeQuant)]
    written = [node for node in exported.nodes if isinstance(node, FakeQuant)]
    for one, other in zip(mine, written, strict=True):
        assert (one.scale, one.zero_point, one.lowest, one.highest) == (other.scale, other.zero_point, other.lowest, other.highest)
        assert torch.equal(ours[one.name], theirs[other.name])
    # And it is another function than the float32 network's.
    assert not torch.equal(ours[simulated.output], run(graph, params, probe))


@pytest.mark.parametrize("name", ["cnn5", "resnet-small"])
def test_a_step_folds_the_statistics_of_its_batch_and_returns_them(name: str) -> None:
    graph, params = network(name)
    given = batch(0.0, 1.0, size=16)
    statistics: dict[str, Tensor] = {}
    run(graph, params, given.x, batch_statistics=statistics)
    loss = fake(graph, params, "natural")(params, given)
    assert loss.statistics.keys() == statistics.keys()
    assert all(torch.equal(loss.statistics[key], value) for key, value in statistics.items())
    exported = quantise(trained(graph, {**params, **statistics}), given.x.numpy())
    assert torch.equal(loss.value, F.cross_entropy(run(exported, exported.tensors(), given.x), given.labels))


def test_bounds_enclose_the_rounded_network_and_terms_read_them() -> None:
    graph, params = network("cnn5")
    objective = fake(graph, params)
    loss = objective(params, batch(enclosure=True))
    assert loss.enclosure is not None
    simulated, rounded = objective._rounded(objective.folding.params({**params, **loss.statistics}))
    draws = torch.Generator().manual_seed(1)
    lower, upper = training_box(batch().x, 0.05)
    for _ in range(20):
        values = run(simulated, rounded, lower + torch.rand(lower.shape, generator=draws) * (upper - lower), keep=True)
        for name, (low, high) in loss.enclosure.items():
            assert bool((values[name] >= low - 1e-4).all() & (values[name] <= high + 1e-4).all()), name
    assert all(node.inputs[0] in loss.enclosure for node in graph.nodes if isinstance(node, Relu))
    total = ExtraTerms(spec(regulariser=0.5, nrs=0.1), graph)(params, batch(), loss, 0.5)
    assert abs(float(total - loss.value)) > 0.01


@pytest.mark.parametrize(("objective", "name"), [(one, "cnn4") for one in ("ibp", "sabr", "taps", "mtl-ibp")] + [("pgd", "cnn5")])
def test_gradients_pass_straight_through(objective: str, name: str) -> None:
    graph, params = network(name)
    names = [node.weight for node in graph.nodes if isinstance(node, Affine)]
    found = []
    for rounding in (False, True):
        leaves = {key: value.clone().requires_grad_() if key in names else value for key, value in params.items()}
        made = make_objective(spec(objective, fake_quantisation=rounding), graph, leaves)
        gradients = torch.autograd.grad(made(leaves, batch(0.01, size=16)).value, [leaves[key] for key in names])
        assert all(float(one.abs().sum()) > 0 for one in gradients)
        found.append(torch.cat([one.flatten() for one in gradients]))
    assert float(F.cosine_similarity(found[0], found[1], dim=0)) > 0.95


def test_the_gradient_is_that_at_the_rounded_weights() -> None:
    graph, params = network("cnn4")
    leaves = {key: value.requires_grad_() for key, value in params.items()}
    objective = fake(graph, leaves)
    value = objective(leaves, batch()).value
    simulated, rounded = objective._rounded(objective.folding.params(leaves))
    constant = {key: tensor.detach().clone().requires_grad_() for key, tensor in rounded.items()}
    there = make_objective(spec(), simulated, constant)(constant, batch()).value
    assert torch.equal(value, there)
    for node, other in zip(
        [node for node in graph.nodes if isinstance(node, Affine)],
        [node for node in simulated.nodes if isinstance(node, Affine)],
        strict=True,
    ):
        (passed,) = torch.autograd.grad(value, leaves[node.weight], retain_graph=True)
        (direct,) = torch.autograd.grad(there, constant[other.weight], retain_graph=True)
        assert torch.equal(passed, direct)


def test_bounds_through_a_grid_by_hand() -> None:
    # Steps of 0.5 from −1 to 1: bounds move to the grid, and gradients pass except where the clamp holds the end.
    grid = TrainingGrid(name="q", inputs=("x",), shape=(4,), scale=0.5, zero_point=2, lowest=0, highest=4)
    lower = torch.tensor([[-3.0, -0.7, 0.1, 0.9]], requires_grad=True)
    upper = torch.tensor([[-0.8, 0.2, 0.2, 4.0]], requires_grad=True)
    low, high = propagate(grid, {}, [(lower, upper)])
    torch.testing.assert_close(low, torch.tensor([[-1.0, -0.5, 0.0, 1.0]]))
    torch.testing.assert_close(high, torch.tensor([[-1.0, 0.0, 0.0, 1.0]]))
    to_lower, to_upper = torch.autograd.grad(low.sum() + high.sum(), [lower, upper])
    assert to_lower.tolist() == [[0, 1, 1, 1]]
    assert to_upper.tolist() == [[1, 1, 1, 0]]


def test_ranges_grow_at_once_and_shrink_slowly_and_pass_through_nan() -> None:
    graph, params = network("mlp")
    objective = fake(graph, params)
    assert objective.ranges == {}
    wide, narrow = batch(size=16).x, torch.full((16, 1, 8, 8), 0.5)
    objective.observe(params, wide)
    first = dict(objective.ranges)
    objective.observe(params, narrow)
    name = objective.observed[0]
    middle = float(run(graph, params, narrow, keep=True)[name].flatten()[0])
    least, most = objective.ranges[name]
    assert least == pytest.approx(middle + DECAY * (first[name][0] - middle))
    assert most == pytest.approx(middle + DECAY * (first[name][1] - middle))
    objective.observe(params, wide)
    assert objective.ranges[name] == first[name]
    broken = {key: value.clone() for key, value in params.items()}
    next(value for key, value in broken.items() if key.endswith("weight")).fill_(float("nan"))
    objective.observe(broken, wide)
    assert all(np.isfinite(ends).all() for ends in objective.ranges.values())
    assert not bool(torch.isfinite(fake(graph, params)(broken, batch()).value))  # the loss says so


def test_processes_that_train_together_have_the_ranges_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, params = network("mlp")
    x = batch(size=16).x
    whole, first, second = (fake(graph, params) for _ in range(3))
    whole.observe(params, x)
    sent: list[Tensor] = []

    def exchange(mine: Tensor, operation: object) -> None:
        assert operation == torch.distributed.ReduceOp.MAX
        sent.append(mine.clone())
        mine.copy_(torch.stack(sent).amax(0))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", exchange)
    first.observe(params, x[:5])
    second.observe(params, x[5:])
    assert second.ranges == whole.ranges
    assert first.ranges != whole.ranges


def test_nothing_is_rounded_twice() -> None:
    graph, params = network("cnn4")
    made: list[Graph] = []

    def spy(given: Train, rounded: Graph, values: dict[str, Tensor]) -> Objective:
        made.append(rounded)
        return make_objective(given, rounded, values)

    objective = FakeQuantised(spec(fake_quantisation=True), graph, params, spy)
    assert torch.equal(objective(params, batch()).value, fake(graph, params)(params, batch()).value)
    assert not isinstance(make_objective(objective.spec, *objective.quantised(params)), FakeQuantised)
    assert sum(isinstance(node, FakeQuant) for node in made[-1].nodes) == len(objective.observed)


def test_ranges_are_the_whole_state() -> None:
    graph, params = network("cnn5")
    straight, interrupted = fake(graph, params), fake(graph, params)
    for seed in range(3):
        straight(params, batch(seed=seed))
        interrupted(params, batch(seed=seed))
    resumed = fake(graph, params)
    resumed.ranges = dict(interrupted.ranges)
    assert torch.equal(straight(params, batch(seed=7)).value, resumed(params, batch(seed=7)).value)
    interrupted.restart()
    assert torch.equal(interrupted(params, batch(seed=8)).value, fake(graph, params)(params, batch(seed=8)).value)
    assert not torch.equal(straight(params, batch(seed=7)).value, fake(graph, params)(params, batch(seed=7)).value)


def test_training_on_grids_gives_a_better_int8_network_where_rounding_hurts() -> None:
    # One weight of each neuron is large, on a pixel that is never lit: a step is 1, and what training in float32 finds rounds to zero.
    torch.manual_seed(0)
    graph = from_torch(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5)), (1, 8, 8))
    first = next(node.weight for node in graph.nodes if isinstance(node, Gemm))
    given = batch(0.0, 1.0, size=64)
    given.x[:, 0, 0, 0] = 0
    losses = {}
    for rounding in (False, True):
        leaves = {key: value.requires_grad_() for key, value in graph.tensors().items()}
        leaves[first].data[:, 0] = 64.0
        objective = make_objective(spec("natural", fake_quantisation=rounding), graph, leaves)
        optimiser = torch.optim.Adam(leaves.values(), lr=2e-2)
        for _ in range(60):
            optimiser.zero_grad()
            objective(leaves, given).value.backward()
            optimiser.step()
        exported = quantise(trained(graph, leaves), given.x.numpy())
        losses[rounding] = float(F.cross_entropy(run(exported, exported.tensors(), given.x), given.labels))
    assert losses[True] < 0.7 * losses[False]


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
