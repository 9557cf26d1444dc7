"""The loop: same seed same bits, resumption at every epoch, masks that hold, budgets in the result, and errors of one sentence."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blob_data import blobs
from safetensors.torch import save_file

from vsparse.data import Splits
from vsparse.errors import GateError, InputError
from vsparse.graph import run
from vsparse.graph.ir import Affine, BatchNorm
from vsparse.recipe import Recipe
from vsparse.stages.train import EpochReport, TrainResult, checkpoint, train
from vsparse.stages.train import loop as loop_module
from vsparse.stages.train.checkpoint import NAME, read_checkpoint
from vsparse.stages.train.result import BatchReport
from vsparse.stages.train.schedule import Schedule
from vsparse.stages.train.sparsifiers.dynamic import Dynamic
from vsparse.stages.train.trainer import Trainer
from vsparse.stages.train.units import groups_of


@pytest.fixture(autouse=True)
def _checkpoint_after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "DURABLE_SECONDS", 0.0)


SPLITS = Splits(blobs(90, 0), blobs(30, 1), blobs(30, 2), "blobs", "0" * 64)


def recipe(architecture: str = "cnn4", width: float = 0.25, **settings: Any) -> Recipe:
    base = {
        "epochs": 6,
        "batch_size": 32,
        "learning_rate": 0.01,
        "warmup": 0.1,
        "ramp": 0.4,
        "sparsity": 0.6,
        "sparse": {"allocation": "uniform", "conv_share": 1.0, "freeze": 0.5},
    }
    train_settings = {**base, **settings}
    return Recipe.model_validate(
        {"name": "t", "network": {"architecture": architecture, "width": width}, "property": {"epsilon": "0.05"}, "train": train_settings}
    )


def same(a: TrainResult, b: TrainResult) -> bool:
    return a.graph.nodes == b.graph.nodes and all(np.array_equal(a.graph.params[name], b.graph.params[name]) for name in a.graph.params)


def test_it_learns_to_certify_and_reports_every_epoch(tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    result = train(recipe(epochs=25), SPLITS, tmp_path, sparse=False, progress=reports.append)
    assert [report.epoch for report in reports] == list(range(1, 26))
    assert reports[-1].certified > 0.9
    assert reports[-1].clean >= reports[-1].certified
    assert reports[-1].epsilon == pytest.approx(0.05)
    assert reports[-1].eta_s == 0
    assert all(report.density == 1 for report in reports)
    assert {report.phase for report in reports} == {"train"}
    assert {report.measure for report in reports} == {"interval"}
    assert len(result.history) == 25
    assert json.loads(json.dumps(result.history))[0]["epoch"] == 1
    assert all(mask.all() for mask in result.masks.values())


def test_it_reports_from_inside_an_epoch_at_most_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recipe(epochs=4, warmup=0.0, ramp=0.9)
    batches = -(-len(SPLITS.train) // wanted.train.batch_size)
    inside: list[BatchReport] = []
    monkeypatch.setattr("vsparse.stages.train.trainer.TELL_SECONDS", 0.0)
    result = train(wanted, SPLITS, tmp_path / "a", sparse=False, within=inside.append)
    assert [(one.epoch, one.batch) for one in inside] == [(epoch, batch) for epoch in range(1, 5) for batch in range(1, batches + 1)]
    assert [one.epsilon for one in inside] == sorted(one.epsilon for one in inside)
    assert len({one.epsilon for one in inside if one.epoch == 2}) == batches  # the radius of the moment, not of the epoch
    assert all(one.eta_s >= 0 for one in inside)
    assert inside[-1].eta_s == pytest.approx(0)
    monkeypatch.setattr("vsparse.stages.train.trainer.TELL_SECONDS", 3600.0)
    silent: list[BatchReport] = []
    again = train(wanted, SPLITS, tmp_path / "b", sparse=False, within=silent.append)
    assert silent == []
    assert same(result, again)
    assert result.epoch in range(1, 5)
    assert result.robust_samples == len(SPLITS.validation)


def test_the_result_is_float32_folded_and_computes_what_was_trained(tmp_path: Path) -> None:
    wanted = recipe("cnn5", 0.03)
    trainer = Trainer(wanted, SPLITS, tmp_path, False)
    result = train(wanted, SPLITS, tmp_path, sparse=False, progress=lambda _: None)
    assert not any(isinstance(node, BatchNorm) for node in result.graph.nodes)
    assert all(value.dtype == np.float32 for value in result.graph.params.values())
    found = read_checkpoint(tmp_path, trainer.fingerprint)
    assert found is not None
    trainer.restore(found)
    x = torch.rand(5, 1, 4, 4)
    torch.testing.assert_close(
        run(result.graph, result.graph.tensors(), x), run(trainer.state.full, trainer.best_params, x), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path: Path, sparse: bool) -> None:
    first = train(recipe(), SPLITS, tmp_path / "a", sparse=sparse)
    again = train(recipe(), SPLITS, tmp_path / "b", sparse=sparse)
    other = train(recipe(seed=1), SPLITS, tmp_path / "c", sparse=sparse)
    assert same(first, again)
    assert not same(first, other)


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("architecture", "granularity"), [("cnn4", "channel"), ("mlp", "element"), ("resnet-small", "channel"), ("cnn4", "dense")]
)
def test_interrupted_after_any_epoch_it_ends_in_the_same_bits(tmp_path: Path, architecture: str, granularity: str) -> None:
    sparse = granularity != "dense"
    settings: dict[str, Any] = {}
    if sparse:
        settings["sparse"] = {"allocation": "uniform", "conv_share": 1.0, "freeze": 0.5, "granularity": granularity}
    wanted = recipe(architecture, 0.2, **settings)
    whole = train(wanted, SPLITS, tmp_path / "whole", sparse=sparse)
    for last in range(1, 6):
        directory = tmp_path / str(last)

        def stop(report: EpochReport, last: int = last) -> None:
            if report.epoch == last:
                raise _Killed

        with pytest.raises(_Killed):
            train(wanted, SPLITS, directory, sparse=sparse, progress=stop)
        seen: list[int] = []
        resumed = train(wanted, SPLITS, directory, sparse=sparse, progress=lambda report, seen=seen: seen.append(report.epoch))  # type: ignore[misc]
        assert seen == list(range(last + 1, 7))
        assert same(whole, resumed)
        assert [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.history] == [
            {k: v for k, v in row.items() if k != "seconds"} for row in whole.history
        ]


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    first = train(recipe(), SPLITS, tmp_path, sparse=True)
    again = train(recipe(), SPLITS, tmp_path, sparse=True, progress=lambda _: pytest.fail("it trained again"))
    assert same(first, again)


def test_another_recipe_does_not_take_up_the_checkpoint(tmp_path: Path) -> None:
    train(recipe(), SPLITS, tmp_path, sparse=False)
    epochs: list[int] = []
    train(recipe(learning_rate=0.02), SPLITS, tmp_path, sparse=False, progress=lambda report: epochs.append(report.epoch))
    assert epochs[0] == 1


@pytest.mark.parametrize("architecture", ["cnn4", "mlp", "resnet-small", "cnn5"])
def test_structured_masks_are_whole_units_zero_in_the_result_and_within_the_budget(tmp_path: Path, architecture: str) -> None:
    result = train(recipe(architecture, 0.2), SPLITS, tmp_path, sparse=True)
    total = sum(mask.size for mask in result.masks.values())
    assert sum(int(mask.sum()) for mask in result.masks.values()) <= (1 - 0.6) * total
    for name, mask in result.masks.items():
        assert not result.graph.params[name][~mask].any()
    removed = 0
    for group in groups_of(result.graph):
        dead = np.stack([~result.masks[weight].reshape(group.count, -1).any(1) for weight, _ in group.producers]).all(0)
        removed += int(dead.sum())
        for weight, bias in group.producers:
            assert not result.graph.params[weight][dead].any()
            assert bias is None or not result.graph.params[bias][dead].any()
        for weight, spread in group.consumers:
            assert not result.graph.params[weight][:, np.repeat(dead, spread)].any()
    assert removed > 0


def test_unstructured_masks_keep_exactly_the_budget(tmp_path: Path) -> None:
    wanted = recipe("mlp", 0.2, sparse={"granularity": "element", "conv_share": 1.0, "freeze": 0.5})
    result = train(wanted, SPLITS, tmp_path, sparse=True)
    total = sum(mask.size for mask in result.masks.values())
    assert sum(int(mask.sum()) for mask in result.masks.values()) == int(0.4 * total + 1e-9)
    assert sum(int((result.graph.params[name] != 0).sum()) for name in result.masks) <= int(0.4 * total + 1e-9)


def test_the_mask_moves_before_the_freeze_and_not_after(tmp_path: Path) -> None:
    wanted = recipe("mlp", 0.2, sparse={"granularity": "element", "conv_share": 1.0, "freeze": 0.5}, epochs=8)
    trainer = Trainer(wanted, SPLITS, tmp_path, True)
    seen = []
    for _ in range(8):
        trainer.run_epoch()
        seen.append({name: mask.clone() for name, mask in trainer.state.masks.entries.items()})
        if trainer.epoch > 4:
            for name, mask in trainer.state.masks.entries.items():
                assert not bool(trainer.state.params[name][~mask].any())
    changed = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(seen)]
    assert changed[0]
    assert changed[4:] == [False] * len(changed[4:])


def test_deactivated_units_grow_back_between_moments(tmp_path: Path) -> None:
    trainer = Trainer(recipe("mlp", 0.2), SPLITS, tmp_path, True)
    trainer.run_epoch()
    for group in groups_of(trainer.state.full):
        keep = trainer.state.masks.groups[group.name]
        for weight, mask in group.columns(keep, trainer.state.params).items():
            assert bool(trainer.state.params[weight][~mask].any())


def test_sparsity_zero_trains_dense(tmp_path: Path) -> None:
    result = train(recipe(sparsity=0.0), SPLITS, tmp_path, sparse=True)
    assert all(mask.all() for mask in result.masks.values())


def test_the_best_epoch_is_one_at_full_radius_with_the_final_mask(tmp_path: Path) -> None:
    trainer = Trainer(recipe(epochs=8), SPLITS, tmp_path, True)
    while trainer.epoch < 8:
        trainer.run_epoch()
    assert isinstance(trainer.sparsifier, Dynamic)
    ready = max(Schedule(trainer.spec, trainer.phases[0]).full_from, trainer.sparsifier.freeze_from)
    eligible = trainer.history[ready:]
    assert trainer.best["epoch"] > ready
    assert trainer.best["certified"] == max(row["certified"] for row in eligible)


def test_a_loss_that_is_not_finite_names_the_epoch_the_setting_and_the_checkpoint(tmp_path: Path) -> None:
    # A regulariser this heavy sends the loss over float32's range in the first steps in which it acts.
    with pytest.raises(GateError, match=r"diverged in epoch 1 of 6.*train\.learning_rate.*no checkpoint was written"):
        train(recipe(regulariser=1e39), SPLITS, tmp_path, sparse=False)


def test_divergence_after_a_good_epoch_names_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(recipe(), SPLITS, tmp_path, False)
    trainer.run_epoch()
    trainer.save()
    trainer.state.params["conv1.weight"].data[0, 0, 0, 0] = float("nan")
    with pytest.raises(GateError, match=r"diverged in epoch 2.*of epoch 1, is .*checkpoint\.safetensors") as caught:
        trainer.run_epoch()
    assert "\n" not in str(caught.value)


def test_damaged_checkpoints_are_one_sentence(tmp_path: Path) -> None:
    wanted = recipe()
    train(wanted, SPLITS, tmp_path, sparse=True)
    path = tmp_path / NAME
    good = path.read_bytes()
    for damaged in (b"", good[:7], good[: len(good) // 2], b"\xff" * 100, good[:20] + b"?" + good[21:], bytes(8) + good[8:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged"):
            train(wanted, SPLITS, tmp_path, sparse=True)


@pytest.mark.parametrize(
    "state", ["{}", "not json", '{"epoch": 6}', '{"epoch":6,"steps":1,"seconds":1,"history":[],"best":{}}', "[]", '{"epoch":"x"}']
)
def test_a_checkpoint_whose_content_is_wrong_is_one_sentence(tmp_path: Path, state: str) -> None:
    wanted = recipe()
    fingerprint = Trainer(wanted, SPLITS, tmp_path, True).fingerprint
    save_file({"param/x": torch.zeros(1)}, tmp_path / NAME, {"version": checkpoint._VERSION, "fingerprint": fingerprint, "state": state})
    with pytest.raises(InputError, match="is damaged"):
        train(wanted, SPLITS, tmp_path, sparse=True)


@pytest.mark.parametrize(("method", "epochs", "kept"), [("lottery", 1, "rewind/"), ("hydra", 4, "scores/")])
def test_a_checkpoint_without_what_the_method_goes_back_to_is_one_sentence(tmp_path: Path, method: str, epochs: int, kept: str) -> None:
    wanted = recipe(epochs=3, sparse={"method": method, "prune_epochs": 3, "finetune_epochs": 2})
    trainer = Trainer(wanted, SPLITS, tmp_path, True)
    for _ in range(epochs):
        trainer.run_epoch()
    trainer.save()
    assert Trainer(wanted, SPLITS, tmp_path, True).epoch == epochs
    assert all(name.startswith(kept) for name in trainer.state.extras)
    for damaged in ({}, {name: value[:1] for name, value in trainer.state.extras.items()}):
        trainer.state.extras = damaged
        trainer.save()
        with pytest.raises(InputError, match="is damaged"):
            Trainer(wanted, SPLITS, tmp_path, True)


def test_augmentation_is_used_and_deterministic(tmp_path: Path) -> None:
    plain = recipe()
    shifted = plain.model_copy(update={"data": plain.data.model_copy(update={"shift": 1})})
    first, again = (train(shifted, SPLITS, tmp_path / name, sparse=False) for name in "ab")
    assert same(first, again)
    assert not same(first, train(plain, SPLITS, tmp_path / "c", sparse=False))


def test_l1_makes_weights_smaller(tmp_path: Path) -> None:
    sizes = [
        sum(float(np.abs(result.graph.params[node.weight]).sum()) for node in result.graph.nodes if isinstance(node, Affine))
        for result in (train(recipe(l1=l1), SPLITS, tmp_path / str(l1), sparse=False) for l1 in (0.0, 0.01))
    ]
    assert sizes[1] < 0.9 * sizes[0]


def test_settings_of_torch_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    train(recipe(epochs=1), SPLITS, tmp_path, sparse=False)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
