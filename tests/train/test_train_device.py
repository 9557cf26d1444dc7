"""Training on an accelerator that is simulated: no step waits for it, and what is trained is what the processor trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_cases import Case, cases, covering, recipe, trained

from simulated_device import simulated_device
from vsparse.stages.train import validation
from vsparse.stages.train.result import TrainResult


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "ATTACK_STEPS", 2)


def alike(a: TrainResult, b: TrainResult) -> None:
    """The simulated device computes with the processor's kernels, so that only orders of sums may differ."""
    assert a.graph.nodes == b.graph.nodes
    for name, mask in a.masks.items():
        assert np.array_equal(mask, b.masks[name])
    for name, value in a.graph.params.items():
        np.testing.assert_allclose(value, b.graph.params[name], rtol=1e-4, atol=1e-6)
    for row, other in zip(a.history, b.history, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert [row[key] for key in ("clean", "certified", "density")] == [other[key] for key in ("clean", "certified", "density")]


def both(folder: Path, *choices: str, **settings: Any) -> None:
    here = trained(recipe(*choices, device="cpu", **settings), folder / "cpu")
    with simulated_device(uploads_wait=True):
        there = trained(recipe(*choices, device="cuda", **settings), folder / "cuda")
    alike(here, there)


@pytest.mark.parametrize("case", covering(), ids="-".join)
def test_a_device_trains_what_the_processor_trains_and_is_not_waited_for(case: Case, tmp_path: Path) -> None:
    both(tmp_path, *case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in cases() if case not in covering()], ids="-".join)
def test_so_does_every_other_combination(case: Case, tmp_path: Path) -> None:
    both(tmp_path, *case)
