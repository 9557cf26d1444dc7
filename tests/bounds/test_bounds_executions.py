"""What is bounded is executed: no execution may leave a bound, by not a single bit, and a bound that is wrong is named."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from brute_force import region
from graph_builder import CLASSES, net_for
from random_graphs import random_graph

from vsparse.bounds import Executions, Rounding, ball, crown, interval, last_layer_folding, refine
from vsparse.bounds.ball import Box
from vsparse.bounds.proof import BoundProof, BoundTree, leaf_bounds, tighten, tree_bounds
from vsparse.contract import CONTRACTS, contract
from vsparse.errors import GateError, InputError, SoundnessError
from vsparse.graph.ir import Gemm, Graph, Relu
from vsparse.graph.quantised import is_quantised


def two_relus() -> Graph:
    """y = relu(x0) − relu(x1), over x in [−1, 1]²."""
    nodes = (
        Gemm(name="z", inputs=("x",), shape=(2,), weight="i", bias=None),
        Relu(name="a", inputs=("z",), shape=(2,)),
        Gemm(name="y", inputs=("a",), shape=(1,), weight="w", bias=None),
    )
    return Graph("x", (2,), nodes, "y", {"i": np.eye(2, dtype=np.float32), "w": np.array([[1, -1]], np.float32)})


def bounded(graph: Graph, points: list[list[float]]) -> tuple[Rounding, Box, dict[str, Box], Executions]:
    rounding = Rounding(graph, contract("real"))
    box = (-torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    return rounding, box, interval(graph, rounding.params, box, rounding), Executions.of(graph, rounding.params, torch.tensor(points))


@pytest.mark.parametrize("name", CONTRACTS)
def test_float64_executions_stay_inside_without_any_tolerance(name: str) -> None:
    """Also on balls of radius 0, whose boxes are as wide as rounding alone makes them, and with weights that cancel."""
    held = 0
    for seed in range(8):
        rng = np.random.default_rng([seed, len(name)])
        graph = net_for(CONTRACTS[name], rng)
        try:
            rounding = Rounding(graph, CONTRACTS[name])
        except InputError:
            continue
        x, radius, clip = region(graph, rng)
        box = ball(torch.tensor(x), radius if seed % 2 else Fraction(0), clip)
        points = torch.cat([*box, *(box[0] + (box[1] - box[0]) * torch.tensor(rng.random(box[0].shape)).round() for _ in range(4))])
        executions = Executions.of(graph, rounding.params, points, torch.zeros(len(points), dtype=torch.int64))
        boxes = interval(graph, rounding.params, box, rounding)
        rows = torch.tensor(rng.normal(size=(4, CLASSES)))
        for enclosure in (boxes, refine(graph, rounding.params, box, boxes, rounding)):
            executions.check(enclosure, name)
            executions.check_rows(rows, crown(graph, rounding.params, box, rows, enclosure, rounding), name)
            executions.check_rows(rows, last_layer_folding(graph, rounding.params, rows, enclosure, rounding), name)
        held += bool(torch.isfinite(boxes[graph.output][0]).all())
    assert held >= 3


def test_the_error_term_of_real_arithmetic_holds_an_execution_once_more() -> None:
    """4,000 terms that cancel: float64's own rounding of the sum is charged, not left to luck."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 4000)).astype(np.float32)
    graph = Graph("x", (4000,), (Gemm(name="y", inputs=("x",), shape=(8,), weight="w", bias=None),), "y", {"w": weight})
    rounding = Rounding(graph, contract("real"))
    x = torch.tensor(rng.normal(size=(1, 4000)))
    error = rounding.error(graph.nodes[0], {"x": (x, x)}, (x.new_zeros(1, 8), x.new_zeros(1, 8)))
    size = x.abs() @ torch.tensor(np.abs(weight)).double().T
    assert bool((error >= (2 * 4000 + 20) * 2.0**-53 * size).all())
    values = [x @ rounding.params["w"][:, order].T for order in (torch.arange(4000),)]
    values += [(x[:, order] @ rounding.params["w"][:, order].T) for order in (torch.randperm(4000) for _ in range(20))]
    lower, upper = interval(graph, rounding.params, (x, x), rounding)["y"]
    assert all(bool(((value >= lower) & (value <= upper)).all()) for value in values)


def test_a_value_outside_is_named_with_its_layer_unit_and_box() -> None:
    _, _, boxes, executions = bounded(two_relus(), [[0.5, -0.5], [-1.0, 1.0]])
    executions.check(boxes, "interval")
    lower, upper = (end.clone() for end in boxes["a"])
    upper[0, 1] = 0.75
    with pytest.raises(
        SoundnessError, match=r'refined: unit 1 of "a" is 1\.0 in an execution of corner, outside of its box \[.*, 0\.75\]'
    ) as found:
        replace(executions, names=["middle", "corner"]).check({**boxes, "a": (lower, upper)}, "refined")
    assert isinstance(found.value, GateError)
    assert found.value.exit_code == 1


def test_boxes_without_a_value_are_a_contradiction_and_those_without_ends_hold_everything() -> None:
    _, _, boxes, executions = bounded(two_relus(), [[0.0, 0.0]])
    wide = torch.full((1, 2), torch.inf, dtype=torch.float64)
    executions.check({"z": (-wide, wide)}, "interval")
    nan = replace(executions, values={**executions.values, "z": torch.full((1, 2), torch.nan, dtype=torch.float64)})
    nan.check({"z": (-wide, wide)}, "interval")
    with pytest.raises(SoundnessError, match="is nan"):
        nan.check({"z": boxes["z"]}, "interval")
    # A row of the batch to which no point belongs is looked at too.
    two = (torch.tensor([[-1.0, -1.0], [0.5, -1.0]]).double(), torch.tensor([[1.0, 1.0], [0.25, 1.0]]).double())
    first = replace(executions, samples=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(SoundnessError, match=r'unit 0 of "z" has the box \[0\.5, 0\.25\] in row 1, whose lower end is above the upper one'):
        first.check({"z": two}, "interval")


def test_points_are_held_against_the_boxes_of_their_sample() -> None:
    graph = two_relus()
    rounding = Rounding(graph, contract("fp32"))
    x = torch.tensor([[0.25, 0.5], [-0.75, 0.75]])
    box = ball(x, Fraction(1, 8), (-1.0, 1.0))
    boxes = interval(graph, rounding.params, box, rounding)
    Executions.of(graph, rounding.params, x).check(boxes, "interval")
    Executions.of(graph, rounding.params, x.flip(0), torch.tensor([1, 0])).check(boxes, "interval")
    with pytest.raises(SoundnessError, match='unit 0 of "x"'):
        Executions.of(graph, rounding.params, x.flip(0)).check(boxes, "interval")
    both = Executions.of(graph, rounding.params, x) + Executions.of(graph, rounding.params, x + 1 / 16)
    assert both.samples is not None
    assert both.samples.tolist() == [0, 1, 0, 1]
    both.check(boxes, "interval")
    placed = Executions.of(graph, rounding.params, torch.cat([x, x[:1] + 1 / 8, x + 1])).placed(box)
    assert placed.samples is not None
    assert placed.samples.tolist() == [0, 1, 0]
    placed.check(boxes, "interval")


def test_a_proved_bound_above_a_value_is_a_contradiction() -> None:
    _, _, _, executions = bounded(two_relus(), [[0.5, 0.25], [-1.0, 1.0]])
    row = torch.ones(1, 1, dtype=torch.float64)
    executions.check_rows(row, torch.tensor([[-1.0]]).double(), "crown")
    for rows, lower in ((row, [[-0.999]]), (row.expand(2, 1, 1), [[0.25], [-0.999]])):
        with pytest.raises(SoundnessError, match=r'crown: row 0 over "y" is -1\.0 .*, below its proved lower bound -0\.999'):
            executions.check_rows(rows, torch.tensor(lower).double(), "crown")


def proof_of(units: list[int], node_unit: list[int], multipliers: list[float]) -> BoundProof:
    none = np.zeros(0, np.int32)
    tree = BoundTree(0, np.array(node_unit, np.int32), np.full(node_unit.count(-1), -1, np.int32), np.array(multipliers, np.float32))
    return BoundProof(np.array(units, np.int32), np.zeros((0, len(units)), np.uint8), none, np.zeros(0, np.uint8), none, (tree,))


def test_a_point_is_in_the_leaves_whose_splits_it_satisfies() -> None:
    #        u0
    #   -          +
    #   u1        leaf 2
    #  -   +
    # leaf 0  leaf 1
    tree = proof_of([0, 1], [0, 1, -1, -1, -1], [0.0] * 5).trees[0]
    assert [len(path) for path in tree.paths] == [2, 2, 1]
    at = torch.tensor([[-1.0, -1.0], [-1.0, 2.0], [1.0, 5.0], [0.0, 0.0], [torch.nan, 0.0]])
    assert sorted(tree.leaves_at(at)) == [(0, 0), (0, 3), (1, 1), (1, 3), (2, 2), (2, 3)]
    deep = BoundTree(0, np.array([3, 1, -1, 2, -1, -1, 0, -1, -1], np.int32), np.full(5, -1, np.int32), np.zeros(12, np.float32))
    rng = np.random.default_rng(0)
    values = torch.tensor(rng.integers(-1, 2, (40, 4)))
    wanted = [
        (leaf, point)
        for point, value in enumerate(values.tolist())
        for leaf, path in enumerate(deep.paths)
        if all(sign * value[unit] >= 0 for unit, sign in path)
    ]
    assert sorted(deep.leaves_at(values)) == sorted(wanted)


def test_leaves_are_held_against_the_points_inside_them() -> None:
    graph = two_relus()
    rounding, box, boxes, executions = bounded(graph, [[-0.5, 1.0], [0.5, 0.25]])
    proof = proof_of([0, 1], [0, -1, -1], [0.0, 0.0])
    row = torch.ones(1, dtype=torch.float64)
    args = (graph, rounding, box)
    assert tree_bounds(*args, boxes, proof, {0: row}, executions=executions)[0] == pytest.approx(-2, abs=1e-9)
    # A box that leaves out the points of the first leaf: the leaf counts as empty, or its bound is too high.
    for lower, upper in (([[0.25, -1.0]], [[1.0, 1.0]]), ([[-1.0, -1.0]], [[1.0, 0.125]])):
        wrong = {**boxes, "z": (torch.tensor(lower).double(), torch.tensor(upper).double())}
        with pytest.raises(SoundnessError, match="leaves of the tree of row 0: row 0"):
            leaf_bounds(*args, wrong, proof, proof.trees[0], row, executions=executions)
        assert len(leaf_bounds(*args, wrong, proof, proof.trees[0], row)) == 2


def test_tightened_bounds_are_held_against_executions() -> None:
    graph = two_relus()
    rounding, box, boxes, executions = bounded(graph, [[1.0, -1.0]])
    tightened = replace(
        proof_of([0], [-1], []),
        tightened_unit=np.array([0], np.int32),
        tightened_side=np.array([1], np.uint8),
        tightened_set=np.array([-1], np.int32),
        trees=(),
    )
    tight = tighten(graph, rounding, box, boxes, tightened, executions=executions)
    assert float(tight["z"][1][0, 0]) == pytest.approx(1, abs=1e-9)
    smaller = (box[0], box[1] * 0.5)  # what is proved over half of the box does not hold at its corner
    with pytest.raises(SoundnessError, match=r'tightened bounds: unit 0 of "z" is 1\.0'):
        tighten(graph, rounding, smaller, boxes, tightened, executions=executions)


def test_a_quantised_network_steps_where_its_bounds_allow_it() -> None:
    stepped = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        graph = net_for(CONTRACTS["int8"], rng)
        rounding = Rounding(graph, CONTRACTS["int8"])
        box = ball(torch.tensor(rng.random((2, *graph.input_shape)).astype(np.float32)), Fraction(1, 50))
        boxes = refine(graph, rounding.params, box, interval(graph, rounding.params, box, rounding), rounding)
        points = torch.cat([box[0] + (box[1] - box[0]) * torch.tensor(rng.random(box[0].shape)) for _ in range(20)])
        Executions.of(graph, rounding.params, points, torch.arange(2).repeat(20)).check(boxes, "crown")
        stepped += is_quantised(graph)
    assert stepped == 12


def test_values_are_those_of_the_deployed_weights() -> None:
    graph = random_graph(np.random.default_rng(4))
    rounding = Rounding(graph, contract("fp32"))
    executions = Executions.of(graph, rounding.params, torch.zeros(3, *graph.input_shape))
    assert len(executions) == 3
    assert set(executions.values) == {graph.input, *(node.name for node in graph.nodes)}
    assert all(value.dtype == torch.float64 for value in executions.values.values())
