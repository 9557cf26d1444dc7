"""Keys that published trainings need: each against its formula written out, off at its default, and refused where it says nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attack_nets import batch, data, objective, small
from published_nets import SPLITS, wanted
from torch import Tensor, nn

from vsparse.errors import InputError
from vsparse.graph import from_torch, run
from vsparse.graph.ir import Relu
from vsparse.recipe import load_recipe
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.fast_interval import fast_interval, shrunk
from vsparse.stages.train.bounds.margins import Margins, training_box
from vsparse.stages.train.checks import objection
from vsparse.stages.train.objectives.mixtrain import MixTrainObjective
from vsparse.stages.train.objectives.sabr import propagated_box
from vsparse.stages.train.phases import Phase
from vsparse.stages.train.schedule import Schedule
from vsparse.stages.train.terms.certainty import AdversarialCertainty
from vsparse.stages.train.trainer import Trainer

# The attack's own radius.


@pytest.mark.parametrize("name", ["mtl-ibp", "cc-ibp", "exp-ibp"])
def test_the_attack_goes_as_far_as_its_radius_and_the_bounds_do_not(name: str) -> None:
    _, graph, params = small()
    x, labels = data()
    given = {"attack_steps": 3, "attack_step": 1.0, "alpha": 0.0}
    # Attacks alone: at 2 ε they are those at ε of twice the radius, with steps that are as long.
    further = objective(name, graph, params, attack_radius=2.0, **given)(params, batch(x, labels, 0.05)).value
    torch.testing.assert_close(
        further, objective(name, graph, params, **{**given, "attack_step": 0.5})(params, batch(x, labels, 0.1)).value
    )
    assert float(further) > float(objective(name, graph, params, **given)(params, batch(x, labels, 0.05)).value)
    # Bounds alone: whatever the attack's radius.
    bounds = [objective(name, graph, params, alpha=1.0, attack_radius=r)(params, batch(x, labels, 0.05)).value for r in (1.0, 2.1)]
    torch.testing.assert_close(bounds[0], bounds[1])
    torch.testing.assert_close(bounds[0], objective("ibp", graph, params)(params, batch(x, labels, 0.05)).value)


def test_mtl_ibp_with_an_attack_at_twice_the_radius_by_its_definition() -> None:
    _, graph, params = small()
    x, labels = data()
    loss = {"attack_steps": 1, "attack_step": 2.0, "attack_radius": 2.0}
    given = batch(x, labels, 0.05)
    low, high = training_box(x, 0.1)
    start = low + torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5)) * (high - low)
    start.requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(run(graph, params, start), labels, reduction="sum"), start)
    point = (start.detach() + 2.0 * 0.05 * gradient.sign()).clamp(low, high)
    adversarial = F.cross_entropy(run(graph, params, point), labels)
    interval = objective("ibp", graph, params)(params, batch(x, labels, 0.05)).value
    found = objective("mtl-ibp", graph, params, alpha=0.3, **loss)(params, given).value
    torch.testing.assert_close(found, 0.7 * adversarial + 0.3 * interval)


# SABR's ReLU shrinkage.


def plain_shrunk(module: nn.Sequential, lower: Tensor, upper: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Interval arithmetic by centre and radius, the upper ends of boxes about 0 before a ReLU times the factor; all layers but the last."""
    for layer in list(module)[:-1]:
        centre, radius = (lower + upper) / 2, (upper - lower) / 2
        if isinstance(layer, nn.Conv2d):
            lower, upper = layer(centre) - F.conv2d(radius, layer.weight.abs()), layer(centre) + F.conv2d(radius, layer.weight.abs())
        elif isinstance(layer, nn.Linear):
            lower, upper = layer(centre) - F.linear(radius, layer.weight.abs()), layer(centre) + F.linear(radius, layer.weight.abs())
        elif isinstance(layer, nn.ReLU):
            crossing = (lower < 0) & (upper > 0)
            assert bool(crossing.any())
            lower, upper = lower.relu(), torch.where(crossing, upper * factor, upper).relu()
        else:
            lower, upper = layer(lower), layer(upper)
    return lower, upper


@pytest.mark.parametrize("factor", [0.8, 0.3])
def test_upper_ends_of_boxes_that_cross_zero_shrink_before_each_relu(factor: float) -> None:
    module, graph, params = small()
    x, _ = data()
    box = training_box(x, 0.1)
    expected = plain_shrunk(module, *box, factor)
    trunk = Margins(graph).trunk
    for wanted_boxes in ("relu", "output", "all"):
        found = fast_interval(trunk, params, box, wanted_boxes, factor)[trunk.output]  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected)
    low, high = shrunk((torch.tensor([0.0, 1.0, 0.0]), torch.tensor([4.0, 4.0, 0.0])), 0.5)
    assert low.tolist() == [0.0, 1.0, 0.0]
    assert high.tolist() == [2.0, 4.0, 0.0]


def test_sabr_takes_its_loss_on_shrunk_boxes_and_gradients_pass() -> None:
    _, graph, params = small()
    x, labels = data()
    made = Train.model_validate({"objective": "sabr", "loss": {"shrink": 0.4, "relu_shrink": 0.8}})
    box = propagated_box(graph, params, batch(x, labels), made)
    margins = Margins(graph)
    lower = margins.lower(params, margins.enclosure(params, box, "output", 0.8), labels)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    values = {}
    for shrink in (1.0, 0.8):
        value = objective("sabr", graph, leaves, shrink=0.4, relu_shrink=shrink)(leaves, batch(x, labels)).value
        assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(value, list(leaves.values())))
        values[shrink] = float(value.detach())
    assert values[0.8] == pytest.approx(float(F.cross_entropy(-lower, labels)))
    assert values[0.8] < values[1.0]
    # A whole box, shrunk by nothing, is interval training.
    torch.testing.assert_close(
        objective("sabr", graph, params, shrink=1.0)(params, batch(x, labels)).value,
        objective("ibp", graph, params)(params, batch(x, labels)).value,
    )


def test_staps_shrinks_the_latent_box() -> None:
    _, graph, params = small()
    x, labels = data()
    found = [objective("staps", graph, params, relu_shrink=s, attack_steps=2)(params, batch(x, labels)).value for s in (1.0, 0.5)]
    assert float(found[1]) < float(found[0])


# MixTrain as HYDRA has it.


def test_mixtrain_gives_the_robust_loss_a_growing_weight_beside_the_whole_clean_one() -> None:
    _, graph, params = small()
    x, labels = data()
    clean = float(objective("natural", graph, params)(params, batch(x, labels)).value)
    robust = float(objective("ibp", graph, params)(params, batch(x, labels)).value)
    made = objective("mixtrain", graph, params, mix=1.0, mix_weight=0.1, mix_growth=2.5**0.2)
    for epoch in (0.0, 5.0, 12.5):
        given = replace(batch(x, labels), epoch=epoch)
        assert float(made(params, given).value) == pytest.approx(clean + 0.1 * 2.5 ** (epoch / 5) * robust)


def test_mixtrain_takes_the_robust_loss_in_the_wanted_fraction_of_batches() -> None:
    _, graph, params = small()
    x, labels = data()
    clean = float(objective("natural", graph, params)(params, batch(x, labels)).value)
    spec = Train.model_validate({"objective": "mixtrain", "loss": {"mix": 1.0, "alpha": 0.8, "mix_probability": 0.8}})
    made = MixTrainObjective(spec, graph, params)
    given = replace(batch(x, labels), generator=torch.Generator().manual_seed(0))
    shares = [made.shares(given) for _ in range(2000)]
    # Five standard deviations of a binomial with p = 0.8.
    assert abs(sum(share == (pytest.approx(0.2), 0.8) for share in shares) - 1600) < 90
    assert set(shares) == {(1.0, 0.0), (1 - 0.8, 0.8)}
    values = {round(float(made(params, given).value), 9) for _ in range(40)}
    assert len(values) == 2  # all samples are chosen, so the loss is one of two numbers
    assert min(values) == pytest.approx(clean)


def test_the_trainer_tells_the_objective_the_epoch(tmp_path: Path) -> None:
    trainer = Trainer(wanted(objective="mixtrain", loss={"mix_weight": 0.1, "mix_growth": 2.0}), SPLITS, tmp_path, False)
    seen: list[float] = []
    trainer.stepper.prepare()
    inner = trainer.stepper.objective

    def listening(params: Any, given: Any) -> Any:
        seen.append(given.epoch)
        return inner(params, given)

    listening.restart = inner.restart  # type: ignore[attr-defined]
    trainer.stepper.objective = listening  # type: ignore[assignment]
    trainer.run_epoch()
    trainer.run_epoch()
    assert seen == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])


# EDAC.


def plain_certainty(module: nn.Sequential, x: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """One signed step of 2 ε from a random point, then the mean of the standard deviations, written out."""
    low, high = training_box(x, epsilon)
    start = low + torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5)) * (high - low)
    start.requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(module(start), labels, reduction="sum"), start)
    logits = module((start.detach() + 2 * epsilon * gradient.sign()).clamp(low, high))
    spread = logits - logits.mean(1, keepdim=True)
    return ((spread**2).sum(1) / (logits.shape[1] - 1)).sqrt().mean()


def test_adversarial_certainty_by_its_definition() -> None:
    module, graph, params = small()
    x, labels = data()
    spec = Train.model_validate({"objective": "pgd", "loss": {"attack_steps": 1, "attack_step": 2.0}, "terms": {"certainty": 0.3}})
    found = AdversarialCertainty(spec, graph)(params, batch(x, labels, 0.05))
    torch.testing.assert_close(found, 0.3 * plain_certainty(module, x, labels, 0.05))


def test_certainty_of_one_neuron_by_hand() -> None:
    """f(x) = (w x, 0): the deviation of a sample is |w x'|/√2, and the attack of class 0 moves x to its lower end."""
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[3.0], [0.0]])
    graph = from_torch(nn.Sequential(nn.Flatten(), layer), (1, 1, 1))
    spec = Train.model_validate({"objective": "pgd", "loss": {"attack_steps": 1, "attack_step": 2.0}, "terms": {"certainty": 1.0}})
    given = batch(torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), 0.25)
    assert float(AdversarialCertainty(spec, graph)(graph.tensors(), given)) == pytest.approx(3 * 0.25 / 2**0.5)


def test_the_step_of_edac_comes_before_the_loss_and_with_the_optimisers_momenta(tmp_path: Path) -> None:
    settings = {"objective": "pgd", "optimizer": "sgd", "momentum": 0.5, "gradient_clip": 1e9, "learning_rate": 0.1}
    loss = {"attack_steps": 1, "attack_step": 2.0}
    trainer = Trainer(wanted(**settings, loss=loss, terms={"certainty": 0.3}), SPLITS, tmp_path, False)
    trainer.stepper.prepare()
    state, objective_ = trainer.state, trainer.stepper.objective
    x, labels = torch.from_numpy(SPLITS.train.inputs(slice(0, 16))), torch.from_numpy(SPLITS.train.labels[:16])
    given = replace(batch(x, labels, 0.05), kappa=0.0)
    start = {name: value.detach().clone() for name, value in state.params.items()}
    leaves = list(state.leaves())
    made = AdversarialCertainty(trainer.spec, state.graph)

    def gradients(at: dict[str, Tensor], loss_of: Any) -> dict[str, Tensor]:
        free = {name: value.clone().requires_grad_(name in leaves) for name, value in at.items()}
        found = torch.autograd.grad(loss_of(free), [free[name] for name in leaves], allow_unused=True)
        return {name: torch.zeros_like(at[name]) if one is None else one for name, one in zip(leaves, found, strict=True)}

    own = replace(given, generator=torch.Generator().manual_seed(9))
    first = gradients(start, lambda at: made(at, own))
    between = {**start, **{name: start[name] - 0.1 * first[name] for name in leaves}}
    second = gradients(between, lambda at: objective_(at, own).value)
    assert any(float(value.abs().max()) > 0 for value in first.values())
    trainer.stepper.step(replace(given, generator=torch.Generator().manual_seed(9)), 1.0, 0.1, 1.0)
    for name in leaves:
        expected = between[name] - 0.1 * (0.5 * first[name] + second[name])
        torch.testing.assert_close(state.params[name].detach(), expected, rtol=1e-4, atol=1e-6)


def test_no_step_of_edac_at_radius_0(tmp_path: Path) -> None:
    ends = []
    for weight in (0.0, 0.3):
        trainer = Trainer(wanted(objective="pgd", terms={"certainty": weight}), SPLITS, tmp_path / str(weight), False)
        trainer.stepper.prepare()
        x, labels = torch.from_numpy(SPLITS.train.inputs(slice(0, 16))), torch.from_numpy(SPLITS.train.labels[:16])
        trainer.stepper.step(batch(x, labels, 0.0, kappa=1.0), 0.0, 0.1, 1.0)
        ends.append({name: value.detach().clone() for name, value in trainer.state.params.items()})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_parts_of_a_batch_lower_the_same_certainty(tmp_path: Path) -> None:
    ends = []
    for parts in (1, 4):
        settings = {"objective": "pgd", "optimizer": "sgd", "momentum": 0, "accumulate": parts, "architecture": "mlp"}
        trainer = Trainer(
            wanted(**settings, loss={"attack_steps": 1, "attack_step": 4.0}, terms={"certainty": 0.3}), SPLITS, tmp_path / str(parts), False
        )
        trainer.stepper.prepare()
        x, labels = torch.from_numpy(SPLITS.train.inputs(slice(0, 16))), torch.from_numpy(SPLITS.train.labels[:16])
        trainer.stepper._less_certain(trainer.stepper.certainty, batch(x, labels, 1e-6), 0.1, 1.0)  # type: ignore[arg-type]
        ends.append({name: value.detach().clone() for name, value in trainer.state.params.items()})
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)


# Schedules.


def test_a_linear_ramp_and_a_cosine_with_adam() -> None:
    spec = Train.model_validate({"epsilon": "0.2", "epochs": 100, "warmup": 0.1, "ramp": 0.4, "ramp_shape": "linear"})
    made = Schedule(spec.model_copy(update={"rate_schedule": "cosine"}), Phase("train", 100, 1e-3))
    assert [made.epsilon(epoch) for epoch in (0, 10, 20, 30, 50, 99.9)] == pytest.approx([0, 0, 0.05, 0.1, 0.2, 0.2])
    assert [made.learning_rate(epoch) for epoch in (0, 50)] == pytest.approx([1e-3, 5e-4])
    assert spec.optimizer == "adam"
    # Without a ramp the radius is full at once, as before.
    jump = Schedule(Train.model_validate({"epsilon": "0.2", "warmup": 0, "ramp": 0, "ramp_shape": "linear"}), Phase("train", 40, 1e-3))
    assert jump.epsilon(0) == pytest.approx(0.2)


def test_without_clean_loss_the_radius_grows_from_the_clean_loss_itself(tmp_path: Path) -> None:
    """kappa_start = kappa_end = 0: at radius 0 the robust loss is the clean one, so nothing else is needed."""
    _, graph, params = small()
    x, labels = data()
    clean = objective("natural", graph, params)(params, batch(x, labels)).value
    for name in ("ibp", "crown-ibp"):
        torch.testing.assert_close(objective(name, graph, params)(params, batch(x, labels, 0.0, kappa=0.0)).value, clean)
    spec = load_recipe("digits", ["train.kappa_start=0", "train.kappa_end=0"]).train
    assert {Schedule(spec, Phase("train", 10, 1e-3)).kappa(fraction) for fraction in (0, 0.5, 1)} == {0}


# Refused by name, before training.

REFUSED = {
    "an attack's radius without attack": (["train.objective=ibp", "train.loss.attack_radius=2.1"], "train.loss.attack_radius says nothing"),
    "the same, of sabr": (["train.objective=sabr", "train.loss.attack_radius=2.1"], "mtl-ibp, cc-ibp or exp-ibp"),
    "shrinkage of whole boxes": (["train.objective=mtl-ibp", "train.loss.relu_shrink=0.8"], "sabr or staps"),
    "taps has no small box": (["train.objective=taps", "train.loss.relu_shrink=0.8"], "sabr or staps"),
    "a probability of another objective": (["train.loss.mix_probability=0.8"], "set objective to mixtrain"),
    "a weight of another objective": (["train.loss.mix_weight=0.1"], "set objective to mixtrain"),
}


@pytest.mark.parametrize(("settings", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_keys_that_an_objective_does_not_read_are_refused(settings: list[str], reason: str, tmp_path: Path) -> None:
    recipe = load_recipe("digits", settings)
    found = objection(recipe.train)
    assert found is not None
    assert reason in found
    with pytest.raises(InputError, match=r"train\.loss\."):
        Trainer(recipe, SPLITS, tmp_path, False)


BAD = {
    "growth of nothing": (["train.objective=mixtrain", "train.loss.mix_growth=1.2"], "mix_weight, which is 0"),
    "draws of no noise": (["train.terms.weight_noise_samples=4"], "weight_noise, which is 0"),
    "two places for the weights": (["train.terms.weight_noise=0.1", "train.terms.weight_perturbation=0.1"], "set one of them to 0"),
    "perturbed by parts": (["train.accumulate=2", "train.terms.weight_perturbation=0.1"], "set accumulate to 1"),
    "certainty of numbers": (["train.objective=regression", "train.terms.certainty=0.3"], "set certainty to 0"),
    "certainty of auto_LiRPA's weights": (
        ["train.objective=crown-ibp", "train.engine=auto_lirpa", "train.terms.certainty=0.3"],
        "set certainty to 0",
    ),
    "certainty of rounded weights": (["train.terms.certainty=0.3", "train.terms.fake_quantisation=true"], "set certainty to 0"),
    "certainty below 0": (["train.terms.certainty=-1"], "greater than or equal to 0"),
    "more parts than samples": (["train.batch_size=8", "train.accumulate=16"], "lower accumulate"),
    "parts of shares": (["train.batch_size=8", "train.accumulate=4", "train.processes=4"], "lower accumulate"),
    "noise that auto_LiRPA does not see": (
        ["train.objective=crown-ibp", "train.engine=auto_lirpa", "train.terms.weight_noise=0.1"],
        "auto_LiRPA bounds its own",
    ),
}


@pytest.mark.parametrize(("settings", "reason"), BAD.values(), ids=BAD.keys())
def test_wrong_combinations_are_refused_when_read(settings: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load_recipe("digits", settings)


def test_relus_alone_are_shrunk() -> None:
    """Of a network without ReLU nothing is."""
    graph = from_torch(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)), (1, 2, 2))
    assert not any(isinstance(node, Relu) for node in graph.nodes)
    box = training_box(torch.rand(3, 1, 2, 2), 0.1)
    one, other = (fast_interval(graph, graph.tensors(), box, "output", factor)[graph.output] for factor in (1.0, 0.5))
    torch.testing.assert_close(one, other)
