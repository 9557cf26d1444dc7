"""What proofs prove, by hand and by brute force, and that nothing that a proof may say makes a bound false."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from vsparse.bounds import Box, Rounding, interval, refine
from vsparse.bounds.proof import BoundProof, BoundTree, ReluUnits, leaf_bounds, tighten, tree_bounds
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.graph import run
from vsparse.graph.ir import Gemm, Graph, Relu

ROW = torch.tensor([1.0], dtype=torch.float64)


def ramp() -> tuple[Graph, Box]:
    """y = relu(x) − relu(x − 1/2) on [−1, 1]: its least value is 0."""
    params = {"w": [[1], [1]], "b": [0, -0.5], "v": [[1, -1]]}
    nodes = (
        Gemm(name="z", inputs=("x",), shape=(2,), weight="w", bias="b"),
        Relu(name="a", inputs=("z",), shape=(2,)),
        Gemm(name="y", inputs=("a",), shape=(1,), weight="v", bias=None),
    )
    graph = Graph("x", (1,), nodes, "y", {name: np.array(value, np.float32) for name, value in params.items()})
    return graph, (torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64))


def proof_of(tree: BoundTree, units: list[int] = [], sets: list[list[int]] = [], tightened: list[tuple[int, int, int]] = []) -> BoundProof:  # noqa: B006
    columns = np.array(tightened, dtype=np.int64).reshape(-1, 3).T
    return BoundProof(
        np.array(units, np.int32),
        np.array(sets, np.uint8).reshape(len(sets), len(units)),
        columns[0].astype(np.int32),
        columns[1].astype(np.uint8),
        columns[2].astype(np.int32),
        (tree,),
    )


def tree_of(nodes: list[int], sets: list[int], multipliers: list[float] = [], row: int = 0) -> BoundTree:  # noqa: B006
    return BoundTree(row, np.array(nodes, np.int32), np.array(sets, np.int32), np.array(multipliers, np.float32))


def bounds_of(graph: Graph, box: Box, proof: BoundProof) -> list[float]:
    rounding = Rounding(graph, CONTRACTS["real"])
    boxes = refine(graph, rounding.params, box, interval(graph, rounding.params, box, rounding), rounding)
    proof.check(graph)
    inner = tighten(graph, rounding, box, boxes, proof)
    return [bound for tree in proof.trees for bound in leaf_bounds(graph, rounding, box, inner, proof, tree, ROW).tolist()]


def test_slopes_by_hand() -> None:
    # relu(x) >= α·x, and relu(x − 1/2) <= (x + 1)/4 on [−3/2, 1/2]: y >= (α − 1/4)·x − 1/4, least −1/2 for α = 0 (the default, as
    # u = −l), −1/4 − |64/255 − 1/4| for α = 64/255.
    graph, box = ramp()
    assert bounds_of(graph, box, proof_of(tree_of([-1], [-1]))) == pytest.approx([-0.5])
    assert bounds_of(graph, box, proof_of(tree_of([-1], [0]), [0], [[64]])) == pytest.approx([-0.25 - abs(64 / 255 - 0.25)])
    # The slope of unit 1, whose coefficient is negative, changes nothing.
    assert bounds_of(graph, box, proof_of(tree_of([-1], [0]), [0, 1], [[64, 200]])) == pytest.approx([-0.25 - abs(64 / 255 - 0.25)])


def test_leaves_by_hand() -> None:
    # Unit 0 split, then unit 1 on both sides. z0 <= 0, z1 <= 0: y = 0. z0 <= 0, z1 >= 0 has no points; with β = 2 and 1:
    # y >= −(x − 1/2) + 2x − (x − 1/2) = 1. z0 >= 0, z1 <= 0 with β0 = 1: y >= x − x = 0. z0 >= 0, z1 >= 0: y = 1/2.
    graph, box = ramp()
    tree = tree_of([0, 1, -1, -1, 1, -1, -1], [-1] * 4, [0, 0, 2, 1, 1, 0, 0, 0])
    assert tree.paths == [[(0, -1), (1, -1)], [(0, -1), (1, 1)], [(0, 1), (1, -1)], [(0, 1), (1, 1)]]
    assert bounds_of(graph, box, proof_of(tree)) == pytest.approx([0, 1, 0, 0.5], abs=1e-12)
    # Without multipliers each leaf is bounded over all of the box: 0, 1/2 − x, x and 1/2.
    without = replace(tree, multipliers=np.zeros(8, np.float32))
    assert bounds_of(graph, box, proof_of(without)) == pytest.approx([0, -0.5, -1, 0.5], abs=1e-12)


def test_leaves_without_points_need_no_bound() -> None:
    graph, box = ramp()
    box = (box[0] * 0.25, box[1] * 0.25)  # z1 is negative throughout
    assert bounds_of(graph, box, proof_of(tree_of([1, -1, -1], [-1, -1], [0, 0]))) == pytest.approx([0, np.inf], abs=1e-12)


def test_tightened_tighten_boxes_in_order() -> None:
    rng = np.random.default_rng(0)
    graph, box = deep(rng)
    rounding = Rounding(graph, CONTRACTS["real"])
    boxes = refine(graph, rounding.params, box, interval(graph, rounding.params, box, rounding), rounding)
    units = ReluUnits.of(graph)
    sets = rng.integers(0, 256, (12, units.count)).tolist()
    tightened = [(unit, side, int(rng.integers(-1, 12))) for unit in range(5, units.count) for side in (0, 1)]
    proof = proof_of(tree_of([-1], [-1]), list(range(units.count)), sets, tightened)
    inner = tighten(graph, rounding, box, boxes, proof)
    values = run(graph, rounding.params, inside(box, 5000), keep=True)
    gained = 0.0
    for node in units.nodes:
        name = node.inputs[0]
        assert bool((inner[name][0] >= boxes[name][0]).all())
        assert bool((inner[name][1] <= boxes[name][1]).all())
        assert bool((values[name] >= inner[name][0] - 1e-12).all())
        assert bool((values[name] <= inner[name][1] + 1e-12).all())
        gained = max(gained, float((inner[name][0] - boxes[name][0]).max()))
    assert gained > 0
    backwards = proof_of(tree_of([-1], [-1]), list(range(units.count)), sets, list(reversed(tightened)))
    with pytest.raises(InputError, match="order"):
        tighten(graph, rounding, box, boxes, backwards)


def deep(rng: np.random.Generator) -> tuple[Graph, Box]:
    """Returns a random network 3 -> 5 -> 4 -> 4 -> 1 and a box."""
    sizes, nodes, params, name = (3, 5, 4, 4, 1), [], {}, "x"
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        params |= {f"w{i}": rng.normal(0, 1, (m, n)).astype(np.float32), f"b{i}": rng.normal(0, 0.3, m).astype(np.float32)}
        nodes.append(Gemm(name=f"z{i}", inputs=(name,), shape=(m,), weight=f"w{i}", bias=f"b{i}"))
        if i + 2 < len(sizes):
            nodes.append(Relu(name=f"a{i}", inputs=(f"z{i}",), shape=(m,)))
        name = nodes[-1].name
    centre = torch.from_numpy(rng.uniform(-0.5, 0.5, (1, 3)))
    return Graph("x", (3,), tuple(nodes), name, params), (centre - 0.5, centre + 0.5)


def inside(box: Box, count: int) -> Tensor:
    share = torch.rand(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share[::2] = share[::2].round()
    return box[0] + share * (box[1] - box[0])


def random_tree(rng: np.random.Generator, units: list[int]) -> list[int]:
    """Returns the nodes of a random tree in preorder that splits each unit once on a path at most."""
    if not units or rng.random() < 0.2:
        return [-1]
    unit = int(rng.choice(units))
    rest = [one for one in units if one != unit]
    return [unit, *random_tree(rng, rest[:3]), *random_tree(rng, rest[:3])]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("contract", ["real", "fp32", "bf16"])
def test_whatever_a_proof_says_its_bounds_hold(seed: int, contract: str) -> None:
    rng = np.random.default_rng(seed)
    graph, box = deep(rng)
    if contract == "bf16":
        graph = graph.with_params({k: torch.tensor(v).bfloat16().float().numpy() for k, v in graph.params.items()})
    rounding = Rounding(graph, CONTRACTS[contract])
    boxes = refine(graph, rounding.params, box, interval(graph, rounding.params, box, rounding), rounding)
    x = inside(box, 3000)
    values = run(graph, rounding.params, x, keep=True)
    flat = torch.cat([values[node.inputs[0]] for node in ReluUnits.of(graph).nodes], dim=1)
    output = values[graph.output][:, 0]
    for _ in range(4):
        nodes = random_tree(rng, list(range(13)))
        leaves = tree_of(nodes, [0] * nodes.count(-1))
        betas = rng.exponential(1, sum(map(len, leaves.paths))) * rng.integers(0, 2, sum(map(len, leaves.paths)))
        tree = tree_of(nodes, rng.integers(-1, 6, nodes.count(-1)).tolist(), betas.tolist())
        tightened = [(int(unit), int(side), int(rng.integers(-1, 6))) for unit in range(5, 13) for side in rng.integers(0, 2, 2)]
        units = sorted(rng.choice(13, 8, replace=False).tolist())
        proof = proof_of(tree, units, rng.integers(0, 256, (6, 8)).tolist(), tightened)
        proof.check(graph)
        inner = tighten(graph, rounding, box, boxes, proof)
        bounds = leaf_bounds(graph, rounding, box, inner, proof, tree, ROW)
        for path, bound in zip(tree.paths, bounds, strict=True):
            member = torch.ones(len(x), dtype=torch.bool)
            for unit, sign in path:
                member &= flat[:, unit] * sign >= 0
            assert bool((output[member] >= bound).all())
        assert tree_bounds(graph, rounding, box, boxes, proof, {0: ROW})[0] == float(bounds.min()) <= float(output.min())


def test_bounds_do_not_depend_on_the_memory() -> None:
    rng = np.random.default_rng(1)
    graph, box = deep(rng)
    rounding = Rounding(graph, CONTRACTS["fp32"])
    boxes = refine(graph, rounding.params, box, interval(graph, rounding.params, box, rounding), rounding)
    nodes = random_tree(np.random.default_rng(5), list(range(13)))
    tree = tree_of(nodes, [0] * nodes.count(-1))
    tree = replace(tree, multipliers=np.ones(sum(map(len, tree.paths)), np.float32))
    assert len(tree.leaf_set) > 4
    proof = proof_of(tree, list(range(13)), [[99] * 13], [(unit, 0, 0) for unit in range(5, 13)])
    found = [tree_bounds(graph, rounding, box, boxes, proof, {0: ROW}, memory)[0] for memory in (2**30, 2000)]
    assert found[0] == pytest.approx(found[1], abs=1e-12)


GOOD = tree_of([0, -1, -1], [0, -1], [0.5, 0.5])
NOT_PROOFS = {
    "nodes after the last leaf": proof_of(tree_of([-1, -1], [0, 0]), [0], [[9]]),
    "a leaf is missing": proof_of(tree_of([0, -1], [0], [0.5]), [0], [[9]]),
    "no nodes": proof_of(tree_of([], []), [0], [[9]]),
    "a unit twice on a path": proof_of(tree_of([0, 0, -1, -1, -1], [0, 0, 0], [0] * 5), [0], [[9]]),
    "a negative multiplier": proof_of(replace(GOOD, multipliers=np.array([0.5, -0.5], np.float32)), [0], [[9]]),
    "a multiplier that is no number": proof_of(replace(GOOD, multipliers=np.array([0.5, np.nan], np.float32)), [0], [[9]]),
    "too few multipliers": proof_of(replace(GOOD, multipliers=np.zeros(1, np.float32)), [0], [[9]]),
    "too few leaves": proof_of(replace(GOOD, leaf_set=np.zeros(1, np.int32)), [0], [[9]]),
    "an unknown slope set": proof_of(replace(GOOD, leaf_set=np.array([0, 1], np.int32)), [0], [[9]]),
    "an unknown unit split": proof_of(tree_of([2, -1, -1], [0, 0], [0, 0]), [0], [[9]]),
    "an unknown unit with slopes": proof_of(GOOD, [2], [[9]]),
    "units out of order": proof_of(GOOD, [1, 0], [[9, 9]]),
    "an unknown tightened bound": proof_of(GOOD, [0], [[9]], [(5, 0, 0)]),
    "an unknown side": proof_of(GOOD, [0], [[9]], [(0, 2, 0)]),
    "an unknown set of a tightened bound": proof_of(GOOD, [0], [[9]], [(0, 0, 1)]),
}


@pytest.mark.parametrize("name", NOT_PROOFS)
def test_what_is_no_proof_is_refused(name: str) -> None:
    graph, box = ramp()
    rounding = Rounding(graph, CONTRACTS["real"])
    boxes = interval(graph, rounding.params, box, rounding)
    with pytest.raises(InputError):
        tree_bounds(graph, rounding, box, boxes, NOT_PROOFS[name], {0: ROW})


def test_a_tree_of_an_unknown_row_is_refused() -> None:
    graph, box = ramp()
    rounding = Rounding(graph, CONTRACTS["real"])
    boxes = interval(graph, rounding.params, box, rounding)
    proof_of(GOOD, [0], [[9]]).check(graph)
    with pytest.raises(InputError, match="row 0"):
        tree_bounds(graph, rounding, box, boxes, proof_of(GOOD, [0], [[9]]), {1: ROW})
