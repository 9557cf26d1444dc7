"""Training on an accelerator that is simulated: no step waits for it, and what is trained is what the processor trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_cases import SPLITS, Case, alike, cases, covering, few, recipe, trained
from torch import Tensor

from simulated_device import HiddenTransfer, simulated_device
from vsparse.errors import GateError, InputError, UnavailableError
from vsparse.recipe import Recipe
from vsparse.schema import validate
from vsparse.stages.train import validation
from vsparse.stages.train.bounds import fast_interval
from vsparse.stages.train.checkpoint import NAME
from vsparse.stages.train.findings import GROUP, StepFindings
from vsparse.stages.train.granularity.pattern import largest
from vsparse.stages.train.granularity.two_four import TwoFourPattern
from vsparse.stages.train.loop import train
from vsparse.stages.train.optimiser import Optimiser
from vsparse.stages.train.placement import training_device
from vsparse.stages.train.samples import Samples
from vsparse.stages.train.step import Stepper
from vsparse.stages.train.terms import warm_up
from vsparse.stages.train.trainer import Trainer


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "ATTACK_STEPS", 2)


def both(folder: Path, *choices: str, sparse: bool = True, **settings: Any) -> None:
    here = trained(recipe(*choices, device="cpu", **settings), folder / "cpu", sparse)
    with simulated_device(uploads_wait=True):
        there = trained(recipe(*choices, device="cuda", **settings), folder / "cuda", sparse)
    alike(here, there)


@pytest.mark.parametrize("case", few(), ids="-".join)
def test_a_device_trains_what_the_processor_trains_and_is_not_waited_for(case: Case, tmp_path: Path) -> None:
    both(tmp_path, *case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in cases() if case not in few()], ids="-".join)
def test_so_does_every_other_combination(case: Case, tmp_path: Path) -> None:
    both(tmp_path, *case)


def test_the_cases_cover_what_they_say() -> None:
    assert {case[1:] for case in few()} == {case[1:] for case in cases()}
    assert {case[0] for case in few()} == {case[0] for case in cases()}
    assert {(one[0], one[1]) for one in covering()} == {(one[0], one[1]) for one in cases()}


SETTINGS: dict[str, tuple[Case, dict[str, Any]]] = {
    "batch norm, averages": (("ibp", "gradual", "channel"), {"architecture": "cnn5", "average": "swa", "average_from": 0.0}),
    "batch norm, crown": (("crown-ibp", "rigl", "block"), {"architecture": "cnn5"}),
    "sgd": (("natural", "set", "element"), {"optimizer": "sgd", "weight_decay": 1e-3, "l1": 1e-4, "average": "ema"}),
    "muon": (("pgd", "gradual", "channel"), {"optimizer": "muon", "weight_decay": 1e-3}),
    "terms": (("sabr", "gradual", "element"), {"terms": {"nrs": 0.1, "weight_perturbation": 0.01}}),
    "certainty": (("pgd", "gradual", "element"), {"terms": {"certainty": 0.3}, "loss": {"attack_steps": 2}}),
    "fake quantisation": (("ibp", "magnitude", "element"), {"terms": {"fake_quantisation": True}}),
    "population statistics, parts": (
        ("mtl-ibp", "gradual", "channel"),
        {"architecture": "cnn5", "batch_norm": "population", "accumulate": 3},
    ),
    "noise on weights": (("sabr", "hydra", "element"), {"terms": {"weight_noise": 0.01}, "loss": {"relu_shrink": 0.8, "attack_steps": 2}}),
    "a growing weight": (("mixtrain", "set", "element"), {"loss": {"mix_probability": 0.5, "mix_weight": 0.1, "mix_growth": 1.2}}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_every_kind_work_there(name: str, tmp_path: Path) -> None:
    case, settings = SETTINGS[name]
    both(tmp_path, *case, **settings)


def test_bfloat16_of_an_attack_waits_for_nothing_and_leaves_bounds_as_they_are(tmp_path: Path) -> None:
    # The simulated device has no autocast, so results cannot be compared.
    keys = {"attack_steps": 2, "attack_amp": True}
    with simulated_device(uploads_wait=True):
        trained(recipe("mtl-ibp", "magnitude", "element", device="cuda", loss=keys), tmp_path / "cuda")
    dtypes = set()
    box, bounds = fast_interval.AffineBlock.forward, fast_interval.AffineBlock

    def watched(ctx: Any, node: Any, weight: Tensor, *others: Any) -> Any:
        dtypes.add(weight.dtype)
        return box(ctx, node, weight, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "forward", staticmethod(watched))
        trained(recipe("mtl-ibp", "magnitude", "element", device="cpu", loss=keys), tmp_path / "cpu")
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("allocation", ["global", "lamp"])
def test_items_of_all_layers_are_ranked_alike(allocation: str, tmp_path: Path) -> None:
    wanted = {"method": "magnitude", "granularity": "element", "allocation": allocation, "finetune_epochs": 1}
    both(tmp_path, "natural", "magnitude", "element", sparse_keys=wanted)


def test_a_step_that_looked_at_its_loss_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Stepper.step

    def looks(self: Stepper, *args: Any) -> tuple[Tensor, Tensor]:
        loss, norm = step(self, *args)
        float(loss)
        return loss, norm

    monkeypatch.setattr(Stepper, "step", looks)
    with simulated_device(), pytest.raises(HiddenTransfer, match="_local_scalar_dense"):
        trained(recipe("ibp", "gradual", "channel", device="cuda"), tmp_path / "x")


@pytest.mark.parametrize("optimiser", ["adam", "sgd", "muon"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_optimiser_resumes_to_the_same_bits(optimiser: str, device: str, tmp_path: Path) -> None:
    wanted = recipe("natural", "magnitude", "channel", device=device, optimizer=optimiser)
    with simulated_device(uploads_wait=True):
        whole = trained(wanted, tmp_path / "whole")
        for stop in (1, 3):
            folder = tmp_path / f"{stop}"
            folder.mkdir()
            part = Trainer(wanted, SPLITS, folder, True)
            for _ in range(stop):
                part.run_epoch()
                part.save()
            resumed = trained(wanted, folder)
            assert resumed.graph.nodes == whole.graph.nodes
            assert all(np.array_equal(value, resumed.graph.params[name]) for name, value in whole.graph.params.items())


def test_what_was_begun_on_another_device_is_not_gone_on_with_and_not_lost(tmp_path: Path) -> None:
    with simulated_device():
        begun = Trainer(recipe("ibp", "gradual", "channel", device="cuda"), SPLITS, tmp_path, True)
        begun.run_epoch()
        begun.save()
    kept = (tmp_path / NAME).read_bytes()
    with pytest.raises(InputError, match=r"was trained on cuda \(simulated\), and this training is on cpu.*train\.device") as caught:
        trained(recipe("ibp", "gradual", "channel", device="cpu"), tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / NAME).read_bytes() == kept
    with simulated_device():
        assert Trainer(recipe("ibp", "gradual", "channel", device="auto"), SPLITS, tmp_path, True).epoch == 1


def test_a_loss_that_is_not_finite_is_found_before_the_checkpoint(tmp_path: Path) -> None:
    wanted = recipe("ibp", "gradual", "channel", device="cuda")
    with simulated_device():
        trainer = Trainer(wanted, SPLITS, tmp_path, True)
        trainer.run_epoch()
        trainer.save()
        with torch.no_grad():
            next(iter(trainer.state.leaves().values()))[0, 0] = float("nan")
        with pytest.raises(GateError, match=r"diverged in epoch 2 .*\(loss nan\).*of epoch 1, is .*checkpoint\.safetensors"):
            trainer.run_epoch()


def test_losses_are_summed_up_to_the_first_that_is_not_finite() -> None:
    losses = [0.1 * i for i in range(1, GROUP + 8)]
    on_processor, on_device = StepFindings(), StepFindings()
    with simulated_device():
        for loss in losses:
            assert on_processor.add(torch.tensor(loss), torch.tensor(1.0), 3) is None
            assert on_device.add(torch.full((), loss, device="cuda"), torch.ones((), device="cuda"), 3) is None
        assert on_processor.read() is on_device.read() is None
        assert on_device.total == on_processor.total > 0
        on_device.add(torch.full((), 2.0, device="cuda"), torch.full((), torch.inf, device="cuda"), 3)
        on_device.add(torch.full((), 5.0, device="cuda"), torch.full((), torch.nan, device="cuda"), 3)
        assert on_device.read() == 2.0
        assert on_device.total == on_processor.total


def test_the_largest_scores_are_chosen_alike() -> None:
    draws = torch.Generator().manual_seed(0)
    for number in range(30):
        scores = torch.randint(-3, 4, (5, 8), generator=draws).float()
        scores[0, :2] = torch.nan if number % 2 else torch.inf
        for some in (0, 1, 7, 20, 33, 40):
            with simulated_device():
                assert torch.equal(largest(scores, some), largest(scores.to("cuda"), some).held)  # type: ignore[attr-defined]
                best = TwoFourPattern._best
                here, there = (best(TwoFourPattern, one, some, True) for one in (scores, scores.to("cuda")))  # type: ignore[arg-type]
                assert torch.equal(here, there.held)  # type: ignore[attr-defined]


def test_the_imbalance_of_relus_has_the_same_value_and_gradient() -> None:
    for active, inactive in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.2, 1.0), (1.0, 0.9), (1e-13, 1.0)):
        found = []
        for device in ("cpu", "cuda"):
            with simulated_device():
                ends = [torch.full((), value, device=device, requires_grad=True) for value in (active, inactive)]
                value = warm_up._imbalance(*ends)
                gradients = torch.autograd.grad(value, ends) if value.requires_grad else [torch.zeros(()), torch.zeros(())]
                found.append([float(getattr(one, "held", one)) for one in (value.detach(), *gradients)])
        assert found[0] == found[1]


def test_a_step_that_does_not_fit_names_the_batch_that_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, sizes = Stepper._loss, []

    def full(self: Stepper, params: Any, batch: Any, fraction: float) -> Any:
        sizes.append(len(batch.labels))
        if len(batch.labels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, params, batch, fraction)

    monkeypatch.setattr(Stepper, "_loss", full)
    with simulated_device(), pytest.raises(InputError) as caught:
        trained(recipe("ibp", "gradual", "channel", device="cuda"), tmp_path / "x")
    told = str(caught.value)
    assert told == "train.batch_size = 12 does not fit into the memory of cuda (simulated), and 3 does; set it to 3"
    assert sizes == [12, 6, 3]
    monkeypatch.setattr(Stepper, "_loss", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with simulated_device(), pytest.raises(InputError, match=r"not even a batch of one sample fits.*train\.device"):
        trained(recipe("ibp", "gradual", "channel", device="cuda"), tmp_path / "y")


def test_samples_that_do_not_fit_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Samples, "of", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with simulated_device(), pytest.raises(InputError, match=r"the samples and the network do not fit.*train\.device"):
        trained(recipe("ibp", "gradual", "channel", device="cuda"), tmp_path / "x")


def test_no_such_device_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r'train\.device = "cuda", but .*set train\.device = "cpu"'):
        train(recipe("ibp", "gradual", "channel", device="cuda"), SPLITS, tmp_path, sparse=True)
    assert not list(tmp_path.iterdir())


def test_each_process_has_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = recipe("ibp", "gradual", "channel", device="cuda", processes=2).train
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with simulated_device(count=2):
        assert training_device(spec) == torch.device("cuda", 1)
    with (
        simulated_device(),
        pytest.raises(UnavailableError, match=r"2 processes on this machine share 1 CUDA device.*lower train\.processes to 1"),
    ):
        training_device(spec)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"device": "gpu"}, 'no device "gpu"; there are cpu, cuda, cuda:N'),
        ({"device": "cuda:1", "processes": 2}, 'would share the one card of train.device = "cuda:1"'),
        ({"device": "cuda", "draws": "torch"}, 'set train.draws = "counter"'),
        ({"device": "auto", "engine": "auto_lirpa", "objective": "crown-ibp"}, 'is for train.device = "cpu", not "auto"'),
    ],
)
def test_settings_that_do_not_go_together_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(Recipe, {"name": "x", "train": keys}, "recipe x")
    assert said in str(caught.value)


def test_a_fused_optimiser_resumes_beside_its_tensors() -> None:
    spec = recipe("natural", "gradual", "channel", device="cuda").train
    with simulated_device():
        leaf = torch.ones(3, 2, device="cuda")
        first = Optimiser(spec, {"w": leaf})
        leaf.grad = torch.ones(3, 2, device="cuda")
        first.step(0.1, 10.0)
        again = Optimiser(spec, {"w": leaf.detach().clone()}, first.moments(), first.steps)
        assert [state["step"].device.type for state in again.method.state.values()] == ["cuda"]
        again.leaves["w"].grad = torch.ones(3, 2, device="cuda")
        again.step(0.1, 10.0)
