"""Fake quantisation: training rounds as the int8 file does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from term_nets import NETWORKS, NormFirst, batch, network, spec, trained
from torch import Tensor, nn

from vsparse.bounds.interval import propagate
from vsparse.graph import FakeQuant, from_onnx, from_torch, run
from vsparse.graph.ir import Affine, Gemm, Graph, Relu
from vsparse.recipe_train import Train
from vsparse.stages.export import write_onnx
from vsparse.stages.export.quantise import quantise
from vsparse.stages.train.bounds.margins import training_box
from vsparse.stages.train.objectives import Objective, make_objective
from vsparse.stages.train.objectives.fake_quantisation import DECAY, FakeQuantised, TrainingGrid
from vsparse.stages.train.terms import ExtraTerms


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
