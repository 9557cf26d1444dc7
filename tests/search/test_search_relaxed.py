"""Float32 bounds of the search: the same numbers as `crown`, by both ways of evaluating them, and gradients that are theirs."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from search_nets import around, enclosed, gemms, residual

from vsparse.bounds import Choices, Rounding, crown, interval, refine, region
from vsparse.bounds.proof import ReluUnits
from vsparse.contract import CONTRACTS
from vsparse.graph.ir import Graph
from vsparse.perturbation import PerturbationSet
from vsparse.search.alpha import Effort, optimise, quantise, restore
from vsparse.search.dense import DenseRelaxation, applies
from vsparse.search.relaxed import Choice, GraphRelaxation, Relaxation


def random_choice(net: Relaxation, rows: int, seed: int) -> Choice:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, len(net.units))
    splits = torch.randint(-1, 2, shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.3)
    return Choice(torch.rand(shape, generator=generator), splits.float(), torch.rand(shape, generator=generator) * splits.abs())


def as_choices(graph: Graph, net: Relaxation, choice: Choice) -> Choices:
    """Returns a search's choice as that of `crown`."""
    slopes, splits, multipliers = {}, {}, {}
    starts = ReluUnits.of(graph).starts
    for (name, layer), start in zip(net.layers.items(), starts, strict=False):
        assert (net.units[layer.columns] - start).tolist() == layer.index.tolist()
        dense = torch.zeros(3, len(choice), layer.node.size, dtype=torch.float64)
        for i, part in enumerate((choice.slopes, choice.splits, choice.multipliers * choice.splits)):
            dense[i][:, layer.index] = part[:, layer.columns].double()
        slopes[name], splits[name], multipliers[name] = dense.view(3, 1, len(choice), *layer.node.shape)
    return Choices(slopes, splits, multipliers)


NETS = {
    "gemms": lambda rng: gemms(rng, 4, 7, 6, 3),
    "residual": residual,
    "pool": lambda rng: residual(rng, pool=True),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_bounds_are_those_of_crown(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = NETS[name](rng)
    box = around(graph, rng, 0.3)
    rounding, boxes = enclosed(graph, box)
    rows = torch.from_numpy(rng.normal(0, 1, (5, 3)))
    nets: list[DenseRelaxation | GraphRelaxation] = [GraphRelaxation(graph, graph.tensors(), box, boxes)]
    nets += [DenseRelaxation(graph, rounding.params, box, boxes)] if applies(graph) else []
    assert applies(graph) == (name != "pool")
    for net in nets:
        assert len(net.units) > 3
        choice = random_choice(net, 5, seed)
        wanted = crown(graph, rounding.params, box, rows, boxes, None, as_choices(graph, net, choice))[0]
        found = net.evaluate(net.form(rows), choice, True)
        assert found.bound.double().numpy() == pytest.approx(wanted.numpy(), abs=2e-5)
        assert torch.equal(net.evaluate(net.form(rows), choice, False).bound, found.bound)


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_differences(name: str) -> None:
    rng = np.random.default_rng(7)
    graph = NETS[name](rng)
    box = around(graph, rng, 0.3)
    rounding, boxes = enclosed(graph, box)
    net = DenseRelaxation(graph, rounding.params, box, boxes) if applies(graph) else GraphRelaxation(graph, graph.tensors(), box, boxes)
    form = net.form(torch.from_numpy(rng.normal(0, 1, (1, 3))))
    choice = random_choice(net, 1, 1)
    found = net.evaluate(form, choice, True)
    step, checked = 2e-3, 0
    for part, gradient in (("slopes", found.to_slopes), ("multipliers", found.to_multipliers)):
        assert gradient is not None
        for unit in range(len(net.units)):
            ends = []
            for sign in (1, -1):
                moved = Choice(choice.slopes.clone(), choice.splits, choice.multipliers.clone())
                getattr(moved, part)[0, unit] += sign * step
                ends.append(float(net.evaluate(form, moved, False).bound))
            middle = float(found.bound)
            # The bound is concave and piecewise linear: where the two one-sided slopes agree, there is a gradient.
            right, left = (ends[0] - middle) / step, (middle - ends[1]) / step
            if abs(right - left) < 2e-2:
                assert float(gradient[0, unit]) == pytest.approx((right + left) / 2, abs=3e-2)
                checked += 1
    assert checked > len(net.units)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_what_has_not_changed_is_taken_over(layer: int) -> None:
    rng = np.random.default_rng(2)
    graph = residual(rng)
    box = around(graph, rng, 0.3)
    rounding, boxes = enclosed(graph, box)
    wide = DenseRelaxation(graph, rounding.params, box, boxes)
    name = ("z0", "t", "z2")[layer]
    # Half of the units of one layer become stable, of either sign.
    lower, upper = (end.clone().flatten() for end in boxes[name])
    lower[::4], upper[2::4] = lower[::4].clamp(min=0.0), upper[2::4].clamp(max=0.0)
    boxes[name] = (lower.view_as(boxes[name][0]), torch.maximum(lower, upper).view_as(boxes[name][1]))
    fresh, taken = DenseRelaxation(graph, rounding.params, box, boxes), DenseRelaxation(graph, rounding.params, box, boxes, wide)
    assert len(fresh.units) < len(wide.units)
    for part in ("inputs", "couplings", "constants"):
        assert float((getattr(fresh, part) - getattr(taken, part)).abs().max()) < 1e-6


def test_optimising_never_loses_and_is_kept_by_rounding() -> None:
    rng = np.random.default_rng(3)
    graph = residual(rng)
    box = around(graph, rng, 0.3)
    rounding, boxes = enclosed(graph, box)
    net = DenseRelaxation(graph, rounding.params, box, boxes)
    form = net.form(torch.eye(3, dtype=torch.float64))
    start = net.evaluate(form, net.choice(3), False).bound
    best, choice = optimise(net, form, net.choice(3), 1e9, Effort(steps=30))
    assert bool((best >= start).all())
    assert float((best - start).max()) > 0.01
    assert torch.equal(net.evaluate(form, choice, False).bound, best)
    rounded = Choice(restore(quantise(choice.slopes)), choice.splits, choice.multipliers)
    assert float((net.evaluate(form, rounded, False).bound - best).abs().max()) < 0.05


def test_rows_that_reach_their_threshold_are_left_alone() -> None:
    rng = np.random.default_rng(3)
    graph = gemms(rng, 4, 7, 6, 3)
    box = around(graph, rng, 0.3)
    rounding, boxes = enclosed(graph, box)
    net = DenseRelaxation(graph, rounding.params, box, boxes)
    form = net.form(torch.eye(3, dtype=torch.float64))
    start = net.evaluate(form, net.choice(3), False).bound
    best, choice = optimise(net, form, net.choice(3), start - torch.tensor([1.0, -1e9, 1.0]), Effort(steps=10))
    assert torch.equal(best[[0, 2]], start[[0, 2]])
    assert torch.equal(choice.slopes[[0, 2]], net.choice(3).slopes[[0, 2]])


def test_other_regions_are_searched_too() -> None:
    rng = np.random.default_rng(5)
    graph = residual(rng)
    x = torch.from_numpy(rng.uniform(0.2, 0.8, (1, 1, 4, 4)).astype(np.float32))
    place = region(x, PerturbationSet(norm="l2", epsilon=Fraction(1, 2)))
    rounding = Rounding(graph, CONTRACTS["real"])
    boxes = refine(graph, rounding.params, place, interval(graph, rounding.params, place, rounding), rounding)
    rows = torch.eye(3, dtype=torch.float64)
    net = GraphRelaxation(graph, graph.tensors(), place, boxes)
    found = net.evaluate(net.form(rows), net.choice(3), True)
    wanted = crown(graph, rounding.params, place, rows, boxes, rounding)[0]
    assert found.bound.double().numpy() == pytest.approx(wanted.numpy(), abs=1e-4)
    assert found.point is not None
    assert float((found.point - x.flatten()).norm(dim=1).max()) <= 0.5 + 1e-4
