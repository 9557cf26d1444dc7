"""Validation looks at as many samples as it may cost, and the warm-up regulariser's statistics are what they are defined to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vsparse.data import Dataset
from vsparse.graph import from_torch, run
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe_train import Train
from vsparse.stages.train.objectives import objective_class
from vsparse.stages.train.samples import Samples
from vsparse.stages.train.terms.warm_up import _Statistics
from vsparse.stages.train.validation import CROWN_ROWS, CROWN_SAMPLES, Validation


def samples(count: int, classes: int) -> Samples:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8)
    return Samples.of(Dataset(pixels, 255.0, rng.integers(0, classes, count), tuple(map(str, range(classes))), None))


@pytest.mark.parametrize(("classes", "measure", "least", "most"), [(3, "crown", 900, CROWN_SAMPLES), (40, "crown", 200, CROWN_ROWS // 39)])
def test_robustness_is_looked_at_on_a_part_and_at_a_glance_on_less(classes: int, measure: str, least: int, most: int) -> None:
    graph = from_torch(make(Network(architecture="mlp", width=0.05), (1, 4, 4), classes), (1, 4, 4))
    params = graph.tensors()
    seen: list[int] = []

    class Counting(Validation):
        def _robust(self, *arguments: Tensor) -> Tensor:  # type: ignore[override]
            seen.append(len(arguments[4]))
            return super()._robust(*arguments)  # type: ignore[arg-type]

    given = samples(1900, classes)
    validation = Counting(given, 0.01, measure, 128)
    quality = validation(graph, params)
    assert least <= sum(seen) <= most
    thorough = sum(seen)
    seen.clear()
    validation(graph, params, thorough=False)
    assert sum(seen) < thorough / 3
    # The clean share is of all samples, whatever the other is of.
    x, labels = given.inputs(slice(0, 1900)), given.labels
    assert quality.clean == pytest.approx(float((run(graph, params, x).argmax(1) == labels).float().mean()))


def test_robust_shares_fall_with_the_radius_and_crown_sees_no_less_than_intervals() -> None:
    graph = from_torch(make(Network(architecture="mlp", width=0.2), (1, 4, 4), 2), (1, 4, 4))
    params = {name: value * 3 for name, value in graph.tensors().items()}
    given = samples(300, 2)
    shares = {
        measure: [Validation(given, radius, measure, 64)(graph, params).robust for radius in (0.0, 0.01, 0.05, 0.5)]
        for measure in ("interval", "crown")
    }
    for found in shares.values():
        assert found == sorted(found, reverse=True)
        assert found[0] > found[-1]
    assert all(crown >= interval for interval, crown in zip(shares["interval"], shares["crown"], strict=True))


def test_networks_are_chosen_by_what_their_objective_makes_provable() -> None:
    names = ("ibp", "crown-ibp", "mtl-ibp", "sabr", "pgd", "natural")
    measures = [objective_class(Train(objective=name)).validated_by for name in names]
    assert measures == ["interval", "interval", "crown", "crown", "attack", "attack"]


def test_statistics_of_the_warm_up_regulariser_and_their_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(6, 7, 5, 5, generator=generator, dtype=torch.float64)
    width = torch.rand(centre.shape, generator=generator, dtype=torch.float64)
    lower, upper = (centre - width).requires_grad_(True), (centre + width).requires_grad_(True)

    def plain(lower: Tensor, upper: Tensor) -> Tensor:
        centre = (lower + upper) / 2
        active, inactive = (lower > 0).double(), (upper < 0).double()
        spread = (centre - centre.mean()).square()
        parts = [upper - lower, centre * active, centre * inactive, spread * active, spread * inactive]
        return torch.stack([part.mean() for part in parts])

    found: Tensor = _Statistics.apply(lower, upper)  # type: ignore[no-untyped-call]
    wanted = plain(lower, upper)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(5, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad((found * weights).sum(), [lower, upper])
    theirs = torch.autograd.grad((wanted * weights).sum(), [lower, upper])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
