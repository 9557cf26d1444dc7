"""Averages: by hand, with batch norm, masks and packing, and back from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from group_member import SPLITS, recipe

from vsparse.graph import run
from vsparse.recipe import Recipe
from vsparse.stages.train.averaging import Average, make_average, with_statistics
from vsparse.stages.train.state import weights
from vsparse.stages.train.trainer import Trainer


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


def spec_of(average: str, **settings: Any) -> Average:
    made = make_average(wanted(average=average, **settings).train)
    assert made is not None
    return made


def test_averages_by_hand() -> None:
    ema, swa = spec_of("ema", average_decay=0.5, average_from=0.5), spec_of("swa", average_from=0.5)
    for position, value in ((4.9, 100.0), (5.0, 8.0), (5.5, 4.0), (6.0, 0.0)):
        for average in (ema, swa):
            average.update({"w": torch.tensor([value, 0.0])}, position, 10)
    # 8 → (8 + 4) / 2 = 6 → (6 + 0) / 2 = 3; and the mean of 8, 4 and 0. What came before half the epochs is not in it.
    assert ema.values["w"].tolist() == [3.0, 0.0]
    assert swa.values["w"].tolist() == pytest.approx([4.0, 0.0])
    assert make_average(wanted(average="none").train) is None


def test_batch_norm_gets_the_statistics_of_the_averaged_weights(tmp_path: Path) -> None:
    graph = Trainer(wanted("cnn5"), SPLITS, tmp_path, False).state.graph
    params = graph.tensors()
    x = torch.rand(12, 1, 4, 4)
    whole: dict[str, torch.Tensor] = {}
    run(graph, params, x, batch_statistics=whole)
    found = with_statistics(graph, params, [x])
    assert whole
    for name, value in params.items():
        torch.testing.assert_close(found[name], whole.get(name, value))
    # The first layer's mean over unequal batches is the mean over all samples.
    parted = with_statistics(graph, params, [x[:3], x[3:]])
    first = next(iter(whole))
    torch.testing.assert_close(parted[first], whole[first])


@pytest.mark.parametrize("architecture", ["cnn4", "cnn5"])
@pytest.mark.parametrize("average", ["ema", "swa"])
def test_the_average_of_a_packed_network_is_of_its_last_steps_and_comes_back_to_the_bit(
    tmp_path: Path, architecture: str, average: str
) -> None:
    settings = wanted(architecture, average=average, average_from=0.0, average_decay=0.9, sparsity=0.6, sparse={"freeze": 0.5})
    trainer = Trainer(settings, SPLITS, tmp_path / "whole", True)
    assert trainer.average is not None
    seen: list[dict[str, torch.Tensor]] = []
    after = trainer.sparsifier.after_step

    def note(state: Any) -> None:
        after(state)
        if state.fixed:
            seen.append({name: state.params[name].detach().clone() for name in weights(state.graph)})

    trainer.sparsifier.after_step = note  # type: ignore[method-assign]
    while not trainer.finished:
        trainer.run_epoch()
    assert trainer.state.packing is not None
    assert trainer.average.count == len(seen) == 9  # three batches in each of three epochs
    for name in seen[0]:
        mean = seen[0][name]
        for later in seen[1:]:
            mean = 0.9 * mean + 0.1 * later[name] if average == "ema" else mean
        mean = mean if average == "ema" else torch.stack([one[name] for one in seen]).mean(0)
        torch.testing.assert_close(trainer.average.values[name], mean, rtol=1e-5, atol=1e-6)
        assert tuple(trainer.average.values[name].shape) == tuple(trainer.state.graph.params[name].shape)
    part = Trainer(settings, SPLITS, tmp_path, True)
    for _ in range(5):
        part.run_epoch()
    part.save()
    resumed = Trainer(settings, SPLITS, tmp_path, True)
    assert equal(tensors(resumed), tensors(part))
    resumed.run_epoch()
    assert equal(tensors(resumed), tensors(trainer))


def test_the_average_of_masked_weights_is_exactly_zero_where_they_are(tmp_path: Path) -> None:
    sparse = {"granularity": "element", "freeze": 0.5}
    settings = wanted(average="swa", average_from=0.0, sparsity=0.7, sparse=sparse, optimizer="sgd", weight_decay=0.01)
    trainer = Trainer(settings, SPLITS, tmp_path, True)
    while not trainer.finished:
        trainer.run_epoch()
    assert trainer.average is not None
    assert trainer.average.count == 9
    for name, mask in trainer.state.masks.entries.items():
        assert not bool(trainer.average.values[name][~mask].any())
        assert not bool(trainer.state.params[name][~mask].any())
        assert bool(trainer.state.params[name][mask].any())
