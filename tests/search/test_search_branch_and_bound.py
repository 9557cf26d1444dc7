"""Branch and bound against exact minima: it proves what is true, proves nothing else, and each leaf holds where it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from search_nets import around, enclosed, exact_minimum, gemms, points, residual

from vsparse.bounds.proof import leaf_bounds, tighten, tree_bounds
from vsparse.graph import run
from vsparse.search import relu_branching
from vsparse.search.branch_and_bound import Prover, prove
from vsparse.search.result import Limits
from vsparse.search.tree import Growing, Leaf, assemble


@pytest.mark.parametrize("seed", range(6))
def test_proves_just_below_the_minimum_and_never_above(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = gemms(rng, 3, 4, 4, 2)
    box = around(graph, rng, 0.6)
    rounding, boxes = enclosed(graph, box)
    row = torch.tensor([1.0, -1.0], dtype=torch.float64)
    least = exact_minimum(graph, box, row)
    below = prove(graph, rounding, box, boxes, row, least - 1e-3, Limits(domains=2000))
    assert below.proved
    assert least - 1e-3 < below.lower <= least + 1e-6
    above = prove(graph, rounding, box, boxes, row, least + 1e-3, Limits(domains=2000))
    assert not above.proved
    if above.counterexample is not None:
        x = above.counterexample.double().unsqueeze(0)
        assert bool(((x >= box[0]) & (x <= box[1])).all())
        assert float((run(graph, rounding.params, x) @ row)[0]) <= least + 1e-3 + 1e-5


@pytest.mark.parametrize("contract", ["real", "fp32"])
def test_each_leaf_holds_on_its_part(contract: str) -> None:
    rng = np.random.default_rng(11)
    graph = residual(rng)
    box = around(graph, rng, 0.25)
    rounding, boxes = enclosed(graph, box, contract)
    row = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    x = points(box, 4000, 1)
    values = run(graph, rounding.params, x, keep=True)
    outputs = values[graph.output] @ row
    # Somewhat below what random points reach, so that it is true and takes splits.
    threshold = float(outputs.min()) - 0.25
    outcome = prove(graph, rounding, box, boxes, row, threshold, Limits(domains=4000))
    assert outcome.proved
    assert outcome.proof is not None
    tree = outcome.proof.trees[0]
    assert len(tree.leaf_set) > 8
    inner = tighten(graph, rounding, box, boxes, outcome.proof)
    bounds = leaf_bounds(graph, rounding, box, inner, outcome.proof, tree, row)
    assert float(bounds.min()) == outcome.lower
    flat = torch.cat([values[name].flatten(1) for name in ("z0", "t", "z2")], dim=1)
    covered = torch.zeros(len(x), dtype=torch.int64)
    for path, bound in zip(tree.paths, bounds, strict=True):
        inside = torch.ones(len(x), dtype=torch.bool)
        for unit, sign in path:
            inside &= flat[:, unit] * sign >= 0
        assert bool((outputs[inside] >= bound).all())
        covered += inside
    assert bool((covered >= 1).all())


def test_a_search_gives_the_same_proof_every_time() -> None:
    def once() -> list[np.ndarray]:
        rng = np.random.default_rng(11)
        graph = residual(rng)
        box = around(graph, rng, 0.25)
        rounding, boxes = enclosed(graph, box)
        outcome = prove(graph, rounding, box, boxes, torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), -1.5, Limits(domains=4000))
        assert outcome.proof is not None
        tree = outcome.proof.trees[0]
        return [outcome.proof.slopes, outcome.proof.tightened_unit, tree.node_unit, tree.leaf_set, tree.multipliers]

    assert all(np.array_equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_jobs_share_domains_and_prove_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relu_branching, "WORTH_THREADS", 2)
    rng = np.random.default_rng(11)
    graph = residual(rng)
    box = around(graph, rng, 0.25)
    rounding, boxes = enclosed(graph, box)
    row = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    threshold = float((run(graph, rounding.params, points(box, 4000, 1)) @ row).min()) - 0.25
    outcome = prove(graph, rounding, box, boxes, row, threshold, Limits(domains=4000, jobs=3))
    assert outcome.proved
    assert outcome.proof is not None
    assert tree_bounds(graph, rounding, box, boxes, outcome.proof, {0: row})[0] == outcome.lower > threshold


def test_limits_end_a_search() -> None:
    rng = np.random.default_rng(11)
    graph = residual(rng)
    box = around(graph, rng, 0.25)
    rounding, boxes = enclosed(graph, box)
    row = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    threshold = float((run(graph, rounding.params, points(box, 4000, 1)) @ row).min()) - 0.25
    assert prove(graph, rounding, box, boxes, row, threshold, Limits(domains=4000)).domains > 8
    seen: list[int] = []
    few = prove(graph, rounding, box, boxes, row, threshold, Limits(domains=4), lambda domains, lower: seen.append(domains))
    assert not few.proved
    assert not few.timed_out
    assert few.counterexample is few.proof is None
    assert seen[0] == 0
    assert few.domains <= 8
    late = prove(graph, rounding, box, boxes, row, threshold, Limits(seconds=0.0))
    assert late.timed_out
    assert not late.proved


def test_rows_of_one_region_share_tightened_bounds_and_slope_sets() -> None:
    rng = np.random.default_rng(11)
    graph = residual(rng)
    box = around(graph, rng, 0.25)
    rounding, boxes = enclosed(graph, box)
    rows = {1: torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), 2: torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)}
    x = points(box, 2000, 1)
    threshold = min(float((run(graph, rounding.params, x) @ row).min()) for row in rows.values()) - 1.0
    prover = Prover(graph, rounding, box, boxes, Limits(domains=4000))
    outcome, _ = prover.settle(rows, threshold)
    assert outcome.proved
    assert outcome.proof is not None
    assert [tree.row for tree in outcome.proof.trees] == [1, 2]
    assert min(tree_bounds(graph, rounding, box, boxes, outcome.proof, rows).values()) == outcome.lower > threshold
    alone, _ = prover.settle(rows, threshold, branching=False)
    assert alone.domains == 0


def test_equal_slope_sets_are_stored_once() -> None:
    rng = np.random.default_rng(0)
    graph = gemms(rng, 3, 4, 4, 2)
    box = around(graph, rng, 0.6)
    rounding, boxes = enclosed(graph, box)
    prover = Prover(graph, rounding, box, boxes, Limits())
    tree = Growing()
    first, second = tree.grow(0, int(prover.net.units[0]))
    slopes = np.full(len(prover.net.units), 7, np.uint8)
    tree.leaves = {first: Leaf(slopes, np.ones(1, np.float32)), second: Leaf(slopes.copy(), np.zeros(1, np.float32))}
    proof = assemble(prover.base, prover.net.units, {4: tree})
    assert proof.slopes.shape == (1, len(prover.net.units))
    assert proof.trees[0].leaf_set.tolist() == [0, 0]
    assert proof.trees[0].paths == [[(int(prover.net.units[0]), -1)], [(int(prover.net.units[0]), 1)]]
