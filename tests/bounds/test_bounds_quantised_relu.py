"""Quantised ReLUs bounded at once, and the input's own grid: against rationals, against every grid point, and against the checker."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product
from math import ceil, floor

import numpy as np
import pytest
import torch

from vsparse.bounds import Choices, Rounding, crown, interval, margin_rows, refine
from vsparse.bounds.backward import CrownPass
from vsparse.bounds.operators.quantised import TAU, pass_rectified
from vsparse.bounds.proof import tree_bounds
from vsparse.contract import CONTRACTS
from vsparse.graph import FakeQuant, Gemm, Graph, Relu, run
from vsparse.graph.to_onnx import to_onnx
from vsparse.search.branch_and_bound import prove
from vsparse.search.result import Limits
from vsparse.stages.export.quantise import quantise
from vsparse_check.arrays import Interval
from vsparse_check.model import Model
from vsparse_check.operators.quantised import quantise_backward
from vsparse_check.rules import BackwardContext, ChosenSlopes, SlopeTable

INT8 = CONTRACTS["int8"]


def quantised_relu(scale: float, zero: int, lowest: int) -> Graph:
    relu = Relu(name="r", inputs=("x",), shape=(1,))
    grid = FakeQuant(name="y", inputs=("r",), shape=(1,), scale=scale, zero_point=zero, lowest=lowest, highest=lowest + 255)
    return Graph("x", (1,), (relu, grid), "y", {})


def lines_of(graph: Graph, l: float, u: float, slope: int | None, split: int):
    """The lines (slope, intercept) below and above, as both checkers compute them; the slope of a proof is a byte."""
    relu, grid = graph.nodes
    found = []
    box = (torch.tensor([[l]], dtype=torch.float64), torch.tensor([[u]], dtype=torch.float64))
    choice = None if slope is None else torch.full((1, 1, 1), slope / 255, dtype=torch.float64)
    cut = torch.full((1, 1, 1), float(split), dtype=torch.float64)
    for a in (1.0, -1.0):
        state = CrownPass(graph, {}, {"x": box}, Choices(), torch.full((1, 1, 1), a, dtype=torch.float64), "y", True)
        pass_rectified(grid, relu, state.coefficients["y"], state, choice, cut)
        found.append((state.coefficients["x"].item() * a, state.constant.item() * a))
        assert not state.coefficients["r"].any()
    yield found
    model = Model(to_onnx(graph)) if grid.lowest == 0 else None
    if model is None:
        return
    op = next(one for one in model.ops if one.kind == "quantise")
    assert op.inputs == (model.input,)
    assert op.rectifier
    low, high = (max(l, 0.0), u) if split > 0 else (l, min(u, 0.0)) if split < 0 else (l, u)
    mine, parts = Interval(np.array([[low]]), np.array([[high]])), []
    table = SlopeTable(np.array([True]), np.array([[0 if slope is None else slope]], np.uint8))
    chosen = ChosenSlopes({op.rectifier: table}, np.array([-1 if slope is None else 0]))
    for a in (1.0, -1.0):
        bound = quantise_backward(op, np.array([[a]]), BackwardContext({model.input: mine}, {model.input: mine}, chosen))
        parts.append((bound.rows[0].item() * a, sum(bound.constants).item() * a))
    yield parts


def test_lines_hold_for_every_step_a_device_may_take_of_a_relu():
    """With and without the ReLU before the clamp, for chosen slopes and splits, at the ends of where each step may be taken."""
    rng = np.random.default_rng(3)
    for trial in range(300):
        scale = float(np.float32(2.0 ** rng.uniform(-6, 3)))
        graph = quantised_relu(scale, 0, (0, 0, -128)[trial % 3])
        last = graph.nodes[1].steps[1]
        width = 10.0 ** rng.uniform(-1, 2.6)
        l, u = sorted(scale * (rng.uniform(-0.3, 1) * width + rng.uniform(-1, 1, 2) * width))
        if trial % 5 == 0:
            l = scale * (round(l / scale) + 0.5)
            u = max(l, u)
        slope, split = (None if trial % 4 == 0 else int(rng.integers(256))), int(rng.integers(-1, 2))
        if (split > 0 and u < 0) or (split < 0 and l > 0):
            continue
        lo, hi = Fraction(max(l, 0.0) if split > 0 else l), Fraction(min(u, 0.0) if split < 0 else u)
        s, near = Fraction(scale), Fraction(1, 2) + Fraction(TAU) / 2
        steps = [min(max(k, 0), last) for k in (ceil(lo / s - near), floor(hi / s + near))]
        for (below, under), (above, over) in lines_of(graph, l, u, slope, split):
            for k in range(steps[0], steps[1] + 1):
                left = lo if k == 0 else max(lo, s * (k - near))
                right = hi if k == last else min(hi, s * (k + near))
                for x in (left, right) if left <= right else ():
                    assert Fraction(below) * x + Fraction(under) <= s * k <= Fraction(above) * x + Fraction(over), (trial, k)


def small_net(seed: int) -> tuple[Graph, np.ndarray]:
    """Three inputs on grids of few steps in a small box, two hidden layers with units of either sign."""
    rng = np.random.default_rng(seed)
    sizes = (3, 6, 5, 3)
    params, nodes, before = {}, [], "x"
    for i, (n, m) in enumerate(pairwise(sizes)):
        params[f"w{i}"] = rng.normal(size=(m, n)).astype(np.float32)
        params[f"b{i}"] = (0.2 * rng.normal(size=m)).astype(np.float32)
        nodes.append(Gemm(name=f"z{i}", inputs=(before,), shape=(m,), weight=f"w{i}", bias=f"b{i}"))
        before = f"z{i}"
        if m != 3:
            nodes.append(Relu(name=f"r{i}", inputs=(before,), shape=(m,)))
            before = f"r{i}"
    graph = Graph("x", (3,), tuple(nodes), before, params)
    return quantise(graph, rng.random((64, 3), dtype=np.float32)), rng.random(3).astype(np.float32)


def corners_and_steps(graph: Graph, centre: np.ndarray, epsilon: float):
    """The box around a point, and every input of it whose integers differ."""
    lower, upper = np.clip(centre - epsilon, 0, 1).astype(np.float32), np.clip(centre + epsilon, 0, 1).astype(np.float32)
    scale = graph.nodes[0].scale
    each = [np.arange(np.rint(low / scale), np.rint(high / scale) + 1) for low, high in zip(lower, upper, strict=True)]
    points = np.array(list(product(*each))) * scale
    return lower, upper, np.clip(points, lower, upper)


@pytest.mark.parametrize("seed", range(5))
def test_no_grid_point_of_a_small_network_lies_below_a_bound(seed):
    """Exhaustive: every integer input of the box, against boxes, CROWN, and what a search proves with slopes, splits and leaves."""
    graph, centre = small_net(seed)
    lower, upper, points = corners_and_steps(graph, centre, 0.025)
    rounding = Rounding(graph, INT8)
    box = tuple(torch.tensor(end[None], dtype=torch.float64) for end in (lower, upper))
    boxes = refine(graph, rounding.params, box, interval(graph, rounding.params, box, rounding), rounding)
    values = run(graph, rounding.params, torch.from_numpy(points), keep=True)
    for name, (low, high) in boxes.items():
        assert bool((values[name] >= low - 1e-9).all()), name
        assert bool((values[name] <= high + 1e-9).all()), name
    rows = margin_rows(torch.tensor([0]), 3)[0]
    margins = (values[graph.output] @ rows.T).amin(0)
    plain = crown(graph, rounding.params, box, rows, boxes, rounding)[0]
    assert bool((plain <= margins + 1e-9).all())
    # The input's grid is known exactly: behind it a linear map is as tight as its interval.
    first = graph.nodes[1].name
    unit = torch.eye(6, dtype=torch.float64)
    exact = crown(graph, rounding.params, box, unit, boxes, rounding, target=first)[0]
    assert torch.allclose(exact, interval(graph, rounding.params, box, rounding)[first][0][0], atol=1e-5)
    for row, least, before in list(zip(rows, margins.tolist(), plain.tolist(), strict=True))[:1]:
        threshold = before + 0.6 * (least - before)
        found = prove(graph, rounding, box, boxes, row, threshold, Limits(domains=8))
        if found.proof is not None:
            proved = tree_bounds(graph, rounding, box, boxes, found.proof, {0: row}).get(0, before)
            assert proved <= least + 1e-9
        assert prove(graph, rounding, box, boxes, row, least + 1e-4, Limits(domains=8)).proved is False


def test_inactive_units_cost_no_half_step():
    """A unit between −3 and 1 whose lower line is 0: nothing of the staircase is lost below, and the line above starts at 0."""
    (found, checked) = lines_of(quantised_relu(0.25, 0, 0), -3.0, 1.0, None, 0)
    for (below, under), (above, over) in (found, checked):
        assert (below, under) == (0.0, pytest.approx(0.0, abs=1e-9))
        assert above * -3.0 + over == pytest.approx(0.0, abs=1e-9)
        assert above * (0.25 * (3.5 - TAU)) + over == pytest.approx(1.0)
