"""Batch norm on the population's statistics, batches computed in parts, and noise on weights: each against its formula written out."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attack_nets import batch, data, objective, plain_forward, small
from published_nets import SPLITS, wanted
from torch import Tensor, nn

from vsparse.graph import from_torch, run
from vsparse.graph.ir import BatchNorm, Graph
from vsparse.stages.train.averaging import with_population_statistics, with_statistics
from vsparse.stages.train.bounds.margins import Margins, training_box
from vsparse.stages.train.schedule import Schedule
from vsparse.stages.train.terms.weight_noise import WeightNoise
from vsparse.stages.train.trainer import Trainer

# Batch norm.


def normed() -> tuple[Graph, dict[str, Tensor]]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    graph = from_torch(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3)).eval(), (1, 8, 8))
    return graph, graph.tensors()


def test_population_statistics_are_those_of_the_whole_set_whatever_the_batches() -> None:
    graph, params = normed()
    x = torch.rand(50, 1, 8, 8) * torch.linspace(0.2, 1, 50).view(-1, 1, 1, 1)  # batches that differ
    whole: dict[str, Tensor] = {}
    run(graph, params, x, batch_statistics=whole)
    for sizes in ([50], [7, 20, 23], [1] * 50):
        found = with_population_statistics(graph, params, lambda sizes=sizes: x.split(sizes))  # type: ignore[misc]
        assert {name: value.dtype for name, value in found.items()} == {name: value.dtype for name, value in params.items()}
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    # The mean over batches, which averaged weights get, is not: it leaves out how batches differ.
    mean = with_statistics(graph, params, x.split(10))
    assert any(not torch.allclose(mean[name], value, rtol=1e-3) for name, value in whole.items())


def test_population_training_bounds_on_the_running_statistics_and_replaces_them_after_an_epoch(tmp_path: Path) -> None:
    module, graph, params = small(norm=True)
    x, labels = data()
    norm = next(node for node in graph.nodes if isinstance(node, BatchNorm))
    params[norm.mean], params[norm.variance] = params[norm.mean] + 0.3, params[norm.variance] * 2
    given = replace(batch(x, labels), population=True)
    loss = objective("pgd", graph, params)(params, given)
    # Attack and attacked pass: as a network in evaluation mode with these statistics; the clean pass still reports its own.
    plain = objective("ibp", graph, params)(params, given)
    assert plain.statistics.keys() == {norm.mean, norm.variance}
    hidden = module[0](x)
    torch.testing.assert_close(plain.statistics[norm.mean], hidden.mean((0, 2, 3)))
    frozen = (params[norm.mean], params[norm.variance])
    margins = Margins(graph)
    bounds = -margins.lower(params, margins.enclosure(params, training_box(x, 0.1)), labels)
    torch.testing.assert_close(plain.value, F.cross_entropy(bounds, labels))
    assert float(loss.value.detach()) >= float(F.cross_entropy(plain_forward(module, x, frozen), labels).detach()) - 1e-6

    trainer = Trainer(wanted("cnn4-bn", objective="ibp", batch_norm="population"), SPLITS, tmp_path, False)
    trainer.run_epoch()
    inputs = trainer.train.inputs(slice(None))  # nothing is augmented
    values = {name: value.detach() for name, value in trainer.state.params.items()}
    whole: dict[str, Tensor] = {}
    run(trainer.state.graph, values, inputs, batch_statistics=whole)
    for name, value in whole.items():
        torch.testing.assert_close(values[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "more", [{"average": "swa", "average_from": 0.1}, {"objective": "mtl-ibp"}, {"regulariser": 0.5}, {"terms": {"nrs": 0.1}}]
)
def test_population_training_resumes_to_the_same_bits(tmp_path: Path, more: dict[str, Any]) -> None:
    recipe = wanted("cnn4-bn", **{"objective": "ibp", "batch_norm": "population", "epochs": 3, **more})
    one, other = Trainer(recipe, SPLITS, tmp_path / "one", False), Trainer(recipe, SPLITS, tmp_path / "other", False)
    while not one.finished:
        one.run_epoch()
    other.run_epoch()
    other.save()
    again = Trainer(recipe, SPLITS, tmp_path / "other", False)
    assert again.epoch == 1
    while not again.finished:
        again.run_epoch()
    assert one.best_params.keys() == again.best_params.keys()
    assert all(torch.equal(value, again.best_params[name]) for name, value in one.best_params.items())


# Parts of a batch, and noise on the weights.


@pytest.mark.parametrize("architecture", ["mlp", "cnn4"])
@pytest.mark.parametrize("count", [2, 3, 30])
def test_a_batch_in_parts_takes_the_step_of_the_whole(tmp_path: Path, architecture: str, count: int) -> None:
    """Without batch norm and draws; 30 samples in parts of 15, 10 and 1."""
    common: dict[str, Any] = {"objective": "ibp", "l1": 1e-3, "optimizer": "sgd", "epochs": 1, "warmup": 0.0, "ramp": 0.5}
    whole = Trainer(wanted(architecture, **common), SPLITS, tmp_path / "whole", False)
    parts = Trainer(wanted(architecture, **common, accumulate=count), SPLITS, tmp_path / "parts", False)
    one, other = whole.run_epoch(), parts.run_epoch()
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    for name, value in whole.state.params.items():
        torch.testing.assert_close(parts.state.params[name], value, rtol=1e-4, atol=1e-6)


def test_parts_of_unequal_size_count_by_their_samples(tmp_path: Path) -> None:
    trainer = Trainer(wanted(accumulate=4), SPLITS, tmp_path, False)
    x, labels = trainer.train.inputs(slice(0, 30)), trainer.train.labels[:30]
    trainer.stepper.prepare()
    given = trainer._batch(Schedule(trainer.spec, trainer.phases[0]), 1.0, x, labels, torch.Generator())
    found = list(trainer.stepper.parts(given))
    assert [len(part.labels) for part, _ in found] == [8, 8, 7, 7]
    assert [share for _, share in found] == pytest.approx([8 / 30, 8 / 30, 7 / 30, 7 / 30])
    assert torch.equal(torch.cat([part.x for part, _ in found]), x)


def test_the_gradient_of_noisy_weights_is_the_mean_over_draws(tmp_path: Path) -> None:
    """SGD at rate 1 without momentum: the step is the gradient, here written out draw by draw."""
    noise = {"weight_noise": 0.05, "weight_noise_samples": 3}
    settings: dict[str, Any] = {"objective": "natural", "optimizer": "sgd", "momentum": 0.0, "gradient_clip": 1e9, "terms": noise}
    trainer = Trainer(wanted(**settings), SPLITS, tmp_path, False)
    state = trainer.state
    start = {name: value.detach().clone() for name, value in state.params.items()}
    x, labels = trainer.train.inputs(slice(0, 30)), trainer.train.labels[:30]
    weights = WeightNoise(0.05, state.graph).weights
    draws = torch.Generator().manual_seed(3)
    expected = {name: torch.zeros_like(start[name]) for name in state.leaves()}
    losses = []
    for _ in range(3):
        leaves = {name: value.clone().requires_grad_() for name, value in start.items()}
        moved = {**leaves, **{name: leaves[name] + 0.05 * torch.randn(leaves[name].shape, generator=draws) for name in weights}}
        loss = F.cross_entropy(run(state.graph, moved, x), labels)
        losses.append(float(loss.detach()))
        for name, gradient in zip(expected, torch.autograd.grad(loss, [leaves[name] for name in expected]), strict=True):
            expected[name] += gradient / 3
    trainer.stepper.prepare()
    given = trainer._batch(Schedule(trainer.spec, trainer.phases[0]), 0.0, x, labels, torch.Generator().manual_seed(3))
    number, _ = trainer.stepper.step(given, 0.0, 1.0, 1.0)
    assert float(number) == pytest.approx(sum(losses) / 3, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(state.params[name].detach(), start[name] - gradient, rtol=1e-4, atol=1e-6)


def test_noise_leaves_what_is_pruned_at_zero(tmp_path: Path) -> None:
    _, graph, params = small()
    made = WeightNoise(0.1, graph)
    name = made.weights[0]
    params[name] = params[name].clone()
    params[name][0] = 0
    moved = made.moved(params, made.draw(params, torch.Generator().manual_seed(0)))
    assert not moved[name][0].any()
    assert bool((moved[name][1:] != params[name][1:]).all())
    sparse = {"method": "gradual", "granularity": "element", "freeze": 0.3, "conv_share": 1.0}
    trainer = Trainer(wanted("cnn4", sparsity=0.5, sparse=sparse, terms={"weight_noise": 0.01}), SPLITS, tmp_path, True)
    while not trainer.finished:
        assert isfinite(trainer.run_epoch().loss)
    assert all(not trainer.state.params[key].detach()[~mask].any() for key, mask in trainer.state.masks.entries.items())


@pytest.mark.parametrize("method", ["hydra", "rigl", "snip"])
def test_sparsifiers_go_on_with_parts_and_noise(tmp_path: Path, method: str) -> None:
    sparse = {"method": method, "granularity": "element", "prune_epochs": 1, "finetune_epochs": 1, "conv_share": 1.0}
    more = {"sparse": sparse, "accumulate": 3, "terms": {"weight_noise": 0.01, "weight_noise_samples": 2}, "batch_norm": "population"}
    trainer = Trainer(wanted("cnn4-bn", sparsity=0.5, epochs=2, **more), SPLITS, tmp_path, True)
    while not trainer.finished:
        assert isfinite(trainer.run_epoch().loss)
    assert trainer.density() <= 0.5
