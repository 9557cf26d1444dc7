"""The loop's features: early stopping, interrupts, a full disk, divergence by phase, terms that change the step, amp."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from group_member import SPLITS, recipe

from vsparse.data import Splits
from vsparse.errors import GateError, InputError
from vsparse.graph import run
from vsparse.graph.ir import Affine
from vsparse.recipe import Recipe
from vsparse.recipe_train import Train
from vsparse.stages.train import EpochReport, train
from vsparse.stages.train.checkpoint import NAME, read_checkpoint
from vsparse.stages.train.checks import objection
from vsparse.stages.train.schedule import Schedule
from vsparse.stages.train.state import weights
from vsparse.stages.train.trainer import Trainer
from vsparse.stages.train.validation import Quality, Validation


def wanted(architecture: str = "mlp", **settings: Any) -> Recipe:
    return recipe(architecture, **{"processes": 1, "epochs": 6, "sparsity": 0, **settings})


def tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Returns all that the next epoch depends on."""
    state = trainer.state
    found = {f"param/{name}": value.detach().clone() for name, value in state.params.items()}
    found |= {f"{kind}/{name}": value.clone() for kind, kept in state.optimiser.moments().items() for name, value in kept.items()}
    found |= {f"best/{name}": value.clone() for name, value in trainer.best_params.items()}
    average = trainer.average
    return found if average is None else found | {f"average/{name}": value.clone() for name, value in average.values.items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# Early stopping and the test split.


def scripted(trainer: Trainer, robust: list[float]) -> None:
    """Makes validation answer with these shares, epoch after epoch; clean accuracy rises all the time."""
    told = iter(enumerate(robust))

    class Scripted(Validation):
        def __call__(self, graph: object, params: object, thorough: bool = True) -> Quality:
            index, share = next(told)
            return Quality(0.5 + 0.01 * index, share, self.measure)

    trainer.validation = Scripted(trainer.train, 0.05, "interval", 32)


@pytest.mark.parametrize(
    ("robust", "stops", "best"),
    [
        ([0.9, 0.9, 0.9, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 7, 7),  # the epochs of the ramp do not count; equal is no better
        ([0.0, 0.0, 0.0, 0.4, 0.3, 0.5, 0.4, 0.6, 0.1, 0.2], 10, 8),
        ([0.0, 0.0, 0.0, 0.4, 0.3, 0.2, 0.9, 0.9, 0.9, 0.9], 6, 4),
    ],
)
def test_it_stops_after_so_many_epochs_without_more_certified(tmp_path: Path, robust: list[float], stops: int, best: int) -> None:
    # 10 epochs, the full radius from epoch 4 on.
    trainer = Trainer(wanted(epochs=10, warmup=0.1, ramp=0.2, early_stop=2), SPLITS, tmp_path, False)
    scripted(trainer, robust)
    while not trainer.finished:
        trainer.run_epoch()
    assert trainer.epoch == stops
    assert trainer.best["epoch"] == best


def test_without_early_stop_every_epoch_runs_and_a_resumed_training_knows_how_long_it_waited(tmp_path: Path) -> None:
    robust = [0.0, 0.0, 0.0, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    whole = Trainer(wanted(epochs=10, warmup=0.1, ramp=0.2), SPLITS, tmp_path / "whole", False)
    scripted(whole, robust)
    while not whole.finished:
        whole.run_epoch()
    assert whole.epoch == 10
    settings = wanted(epochs=10, warmup=0.1, ramp=0.2, early_stop=3)
    first = Trainer(settings, SPLITS, tmp_path, False)
    scripted(first, robust)
    for _ in range(5):
        first.run_epoch()
    first.save()
    second = Trainer(settings, SPLITS, tmp_path, False)
    scripted(second, robust[5:])
    while not second.finished:
        second.run_epoch()
    assert second.epoch == 7


class Poison:
    """Whoever looks at it fails."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"training read the test split's {name}")

    def __len__(self) -> int:
        raise AssertionError("training counted the test split")


@pytest.mark.parametrize("settings", [{"early_stop": 1, "average": "swa"}, {"objective": "pgd", "sparsity": 0.5}])
def test_the_test_split_is_never_looked_at(tmp_path: Path, settings: dict[str, Any]) -> None:
    poison: Any = Poison()
    splits = Splits(SPLITS.train, SPLITS.validation, poison, "blobs", "0" * 64)
    assert train(wanted(**settings), splits, tmp_path, sparse=True).history


# Interrupts, full disks, divergence.


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "sgd", "nesterov": True, "weight_decay": 1e-3}, {"optimizer": "muon"}, {"terms": {"fake_quantisation": True}}],
)
def test_an_interrupt_inside_an_epoch_loses_that_epoch_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = train(wanted(**settings), SPLITS, tmp_path / "whole", sparse=False)
    for doomed in range(1, 6):
        with pytest.MonkeyPatch.context() as patch:
            steps = iter(range(10**6))
            step = Trainer.run_epoch

            def interrupted(trainer: Trainer, doomed: int = doomed, step: Any = step, steps: Any = steps) -> EpochReport:
                if next(steps) == doomed:
                    inner = trainer.stepper.step
                    calls = iter(range(10))

                    def stopped(*args: Any) -> tuple[float, float]:
                        if next(calls) == 1:
                            raise KeyboardInterrupt
                        return inner(*args)

                    trainer.stepper.step = stopped  # type: ignore[assignment,method-assign]
                report: EpochReport = step(trainer)
                return report

            patch.setattr(Trainer, "run_epoch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(wanted(**settings), SPLITS, tmp_path / str(doomed), sparse=False)
        epochs: list[int] = []
        again = train(wanted(**settings), SPLITS, tmp_path / str(doomed), sparse=False, progress=lambda r, e=epochs: e.append(r.epoch))  # type: ignore[misc]
        assert epochs[0] == doomed + 1
        assert all((again.graph.params[name] == value).all() for name, value in whole.graph.params.items())


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(wanted(), SPLITS, tmp_path, False)
    trainer.run_epoch()
    trainer.save()
    before = (tmp_path / NAME).read_bytes()
    trainer.run_epoch()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors of epoch 2 cannot be written: no space is left in") as caught:
        trainer.save()
    assert "\n" not in str(caught.value)
    assert "the last one is whole" in str(caught.value)
    assert "free space, then run the same command again" in str(caught.value)
    assert (tmp_path / NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    kept = read_checkpoint(tmp_path, trainer.fingerprint)
    assert kept is not None
    assert kept.epoch == 1


@pytest.mark.parametrize(
    ("settings", "epoch", "says"),
    [
        (
            {"optimizer": "sgd"},
            2,
            r"epoch 2 of 6 \(phase train\).*lower train\.learning_rate \(now 0\.01\) or lower train\.epsilon or l",
        ),
        (
            {"objective": "natural", "rate_schedule": "cosine"},
            4,
            r"train\.learning_rate \(now 0\.01, 0\.005 in this epoch\); the last",
        ),
        ({"sparse": {"method": "hydra", "granularity": "element"}}, 8, r"epoch 8 of 20 .*prune_learning_rate \(now 0\.1\)"),
        ({"sparse": {"method": "hydra", "granularity": "element"}}, 12, r"\(phase fine-tune\).*finetune_learning_rate \(now 0\.001\)"),
    ],
)
def test_divergence_names_epoch_phase_rate_and_checkpoint(tmp_path: Path, settings: dict[str, Any], epoch: int, says: str) -> None:
    trainer = Trainer(wanted(sparsity=0.5, **settings), SPLITS, tmp_path, True)
    while trainer.epoch < epoch - 1:
        trainer.run_epoch()
    trainer.save()
    before = (tmp_path / NAME).read_bytes()
    # A weight past float32's range: logits and loss are no numbers.
    name = weights(trainer.state.full)[0]
    trainer.state.params[name].data.flatten()[0] = float("inf")
    with pytest.raises(GateError, match=says) as caught:
        trainer.run_epoch()
    assert "\n" not in str(caught.value)
    assert f"the last good checkpoint, of epoch {epoch - 1}, is {tmp_path / NAME}" in str(caught.value)
    assert (tmp_path / NAME).read_bytes() == before


def test_a_gradient_that_is_not_finite_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    trainer = Trainer(wanted("cnn5", objective="natural"), SPLITS, tmp_path, False)
    trainer.stepper.prepare()
    before = tensors(trainer)
    name = weights(trainer.state.graph)[0]
    trainer.state.params[name].register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
    x = SPLITS.train.inputs(slice(0, 8))
    batch = trainer._batch(_schedule(trainer), 0.0, torch.from_numpy(x), torch.from_numpy(SPLITS.train.labels[:8]), torch.Generator())
    loss, norm = trainer.stepper.step(batch, 0.0, 0.01, 1.0)
    assert loss == loss
    assert norm != norm or norm == float("inf")
    assert equal(tensors(trainer), before)


def _schedule(trainer: Trainer) -> Schedule:
    return Schedule(trainer.spec, trainer.phases[0])


# Terms that change the step, amp.


@pytest.mark.parametrize("terms", [{"weight_perturbation": 0.05}, {"certainty": 0.3}, {"fake_quantisation": True}, {"nrs": 0.5}])
def test_terms_change_what_is_learnt_and_come_back_to_the_bit(tmp_path: Path, terms: dict[str, Any]) -> None:
    plain = train(wanted("cnn4"), SPLITS, tmp_path / "plain", sparse=False)
    whole = train(wanted("cnn4", terms=terms), SPLITS, tmp_path / "whole", sparse=False)
    assert any((plain.graph.params[name] != value).any() for name, value in whole.graph.params.items())
    part = Trainer(wanted("cnn4", terms=terms), SPLITS, tmp_path, False)
    for _ in range(3):
        part.run_epoch()
    part.save()
    resumed = train(wanted("cnn4", terms=terms), SPLITS, tmp_path, sparse=False)
    assert all((resumed.graph.params[name] == value).all() for name, value in whole.graph.params.items())


def test_perturbed_weights_are_where_the_gradient_is_taken_not_where_the_step_starts(tmp_path: Path) -> None:
    trainer = Trainer(
        wanted(objective="natural", optimizer="sgd", momentum=0, gradient_clip=1e9, terms={"weight_perturbation": 0.2}),
        SPLITS,
        tmp_path,
        False,
    )
    trainer.stepper.prepare()
    state = trainer.state
    x, labels = torch.from_numpy(SPLITS.train.inputs(slice(0, 16))), torch.from_numpy(SPLITS.train.labels[:16])
    start = {name: value.detach().clone() for name, value in state.params.items()}

    def gradients(at: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in at.items()}
        loss = torch.nn.functional.cross_entropy(run(state.graph, leaves, x), labels)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))

    up = gradients(start)
    moved = dict(start)
    for node in state.graph.nodes:
        if isinstance(node, Affine):
            moved[node.weight] = start[node.weight] + 0.2 * start[node.weight].norm() * up[node.weight] / up[node.weight].norm()
    down = gradients(moved)
    trainer.stepper.step(trainer._batch(_schedule(trainer), 0.0, x, labels, torch.Generator().manual_seed(0)), 0.0, 0.1, 1.0)
    for name in state.leaves():
        torch.testing.assert_close(state.params[name].detach(), start[name] - 0.1 * down[name], rtol=1e-4, atol=1e-6)


def test_amp_trains_the_attack_objectives_and_is_refused_with_bounds(tmp_path: Path) -> None:
    full = train(wanted("cnn4", objective="pgd", epochs=2), SPLITS, tmp_path / "full", sparse=False)
    half = train(wanted("cnn4", objective="pgd", epochs=2, amp=True), SPLITS, tmp_path / "half", sparse=False)
    assert all(value.dtype == full.graph.params[name].dtype for name, value in half.graph.params.items())
    assert any((full.graph.params[name] != value).any() for name, value in half.graph.params.items())
    for name, value in half.graph.params.items():
        assert abs(full.graph.params[name] - value).max() < 0.1
    for objective in ("ibp", "crown-ibp", "mixtrain", "sabr", "taps", "staps", "cc-ibp", "mtl-ibp", "exp-ibp"):
        reason = objection(Train(objective=objective, amp=True))
        assert reason is not None
        assert f'train.amp would round the bounds of train.objective = "{objective}" to bfloat16' in reason
    with pytest.raises(InputError, match=r"train\.amp would round the bounds"):
        Trainer(wanted(amp=True), SPLITS, tmp_path / "bounds", False)


def test_every_batch_is_trained_once_an_epoch(tmp_path: Path) -> None:
    trainer = Trainer(wanted(), SPLITS, tmp_path, False)
    draws = torch.Generator().manual_seed(0)
    batches = [labels for _, labels in trainer._batches(draws, draws)]
    assert [len(batch) for batch in batches] == [31, 30, 30]
    assert sorted(torch.cat(batches).tolist()) == sorted(SPLITS.train.labels.tolist())
