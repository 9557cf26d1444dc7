"""Moves of elements: all rules from what is executed; fast transposes against the derived one, and a new move that says nothing more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds import Choices, Rounding, crown, interval, last_layer_folding, refine
from vsparse.bounds.element_moves import MoveBounds, element_sources, move_rules
from vsparse.bounds.zonotope import lower_bounds, zonotope
from vsparse.contract import CONTRACTS
from vsparse.graph import Concat, Conv, Gemm, Graph, Move, Neg, Node, Pad, Relu, Reshape, Slice, Transpose, apply, run
from vsparse.graph.ir import Shape
from vsparse.search.dense import DenseRelaxation, applies
from vsparse.stages.compress.rational import evaluate

MAP = (2, 3, 4)
MOVES: dict[str, tuple[Node, list[Shape]]] = {
    "reshape": (Reshape(name="f", inputs=("a",), shape=(4, 6)), [MAP]),
    "transpose": (Transpose(name="f", inputs=("a",), shape=(4, 2, 3), order=(2, 0, 1)), [MAP]),
    "concat": (Concat(name="f", inputs=("a", "b"), shape=(2, 5, 4), axis=1), [MAP, (2, 2, 4)]),
    "slice": (Slice(name="f", inputs=("a",), shape=(1, 2, 2), starts=(1, 0, 1), stops=(2, 3, 4), steps=(1, 2, 2)), [MAP]),
    "pad": (Pad(name="f", inputs=("a",), shape=(2, 6, 5), before=(0, 1, 0), after=(0, 2, 1), value=0.5), [MAP]),
    "neg": (Neg(name="f", inputs=("a",), shape=MAP), [MAP]),
}


@pytest.mark.parametrize("kind", MOVES)
def test_the_transpose_by_views_is_the_one_that_follows_from_the_execution(kind: str) -> None:
    node, shapes = MOVES[kind]
    a = torch.randn(2, 3, node.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    derived = MoveBounds.transposed(move_rules(node), node, a, shapes)
    for fast, slow, shape in zip(move_rules(node).transposed(node, a, shapes), derived, shapes, strict=True):
        assert fast.shape == (2, 3, int(np.prod(shape)))
        assert torch.equal(fast, slow)


@pytest.mark.parametrize("kind", MOVES)
def test_sources_say_what_the_execution_does_and_no_element_goes_to_two_places(kind: str) -> None:
    node, shapes = MOVES[kind]
    rules, source = move_rules(node), element_sources(node, shapes)
    values = [torch.randn(1, *shape, dtype=torch.float64) for shape in shapes]
    pool = torch.cat([*(value.flatten() for value in values), torch.tensor([rules.constant(node) * rules.sign]).double()])
    assert torch.equal(rules.sign * pool[source], apply(node, {}, *values).flatten())
    assert rules.once
    kept = source[source >= 0]
    assert len(kept) == len(set(kept.tolist()))


@dataclass(frozen=True, kw_only=True)
class Pick(Move):
    """Elements of a flat input by number, some of them more than once, −1 for 0.5: a move that the package does not have."""

    index: tuple[int, ...]

    @property
    def fill(self) -> float:
        """The number in place of −1."""
        return 0.5

    def rearranged(self, *inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the elements."""
        return np.append(inputs[0], -1)[list(self.index)]


INDEX = (0, 5, 5, 3, 5, 1, 0, 7, 2)


def networks(seed: int) -> tuple[Graph, Graph]:
    """Returns a network that picks elements behind a ReLU, and one that does so by a matrix of zeros and ones."""
    rng = np.random.default_rng(seed)
    params = {
        "c": (rng.integers(-8, 9, (2, 1, 2, 2)) / 8).astype(np.float32),
        "b": (rng.integers(-8, 9, 2) / 8).astype(np.float32),
        "w": (rng.integers(-8, 9, (6, len(INDEX))) / 8).astype(np.float32),
        "v": (rng.integers(-8, 9, (3, 6)) / 8).astype(np.float32),
        "m": np.eye(8, dtype=np.float32)[list(INDEX)],
    }
    pick: Node = Pick(name="f", inputs=("r",), shape=(len(INDEX),), index=INDEX)
    nodes = (
        Conv(name="z", inputs=("x",), shape=(2, 2, 2), weight="c", bias="b"),
        Relu(name="a", inputs=("z",), shape=(2, 2, 2)),
        Reshape(name="r", inputs=("a",), shape=(8,)),
        pick,
        Gemm(name="h", inputs=("f",), shape=(6,), weight="w", bias=None),
        Relu(name="q", inputs=("h",), shape=(6,)),
        Gemm(name="y", inputs=("q",), shape=(3,), weight="v", bias=None),
    )
    moved = Graph("x", (1, 3, 3), nodes, "y", {name: value for name, value in params.items() if name != "m"})
    matrix = Gemm(name="f", inputs=("r",), shape=(len(INDEX),), weight="m", bias=None)
    return moved, replace(moved, nodes=tuple(matrix if node is pick else node for node in nodes), params=params)


@pytest.mark.parametrize("contract", ["real", "fp32", "bf16"])
@pytest.mark.parametrize("seed", range(4))
def test_a_move_that_says_nothing_more_has_sound_rules_in_every_engine(seed: int, contract: str) -> None:
    graph, other = networks(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 1, 3, 3, generator=generator, dtype=torch.float64)
    box = x - 0.2, x + 0.2
    points = box[0] + (box[1] - box[0]) * torch.rand(400, 1, 3, 3, generator=generator, dtype=torch.float64).mul(1.5).sub(0.25).clamp(0, 1)
    values = run(graph, graph.tensors(torch.float64), points, keep=True)
    assert torch.equal(values["y"], run(other, other.tensors(torch.float64), points))
    rows = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    lowest = (values["y"] @ rows.T).amin(0)

    def bounds(one: Graph) -> list[Tensor]:
        rounding = Rounding(one, CONTRACTS[contract])
        boxes = interval(one, rounding.params, box, rounding)
        fine = refine(one, rounding.params, box, boxes, rounding)
        state = zonotope(one, box, rounding)
        for enclosure in (boxes, fine, state.boxes):
            for name, (lower, upper) in enclosure.items():
                assert bool((values[name] >= lower).all() & (values[name] <= upper).all()), name
        slopes = Choices({node.name: torch.full((1, 1, *node.shape), 0.5).double() for node in one.nodes if isinstance(node, Relu)})
        return [
            crown(one, rounding.params, box, rows, boxes, rounding)[0],
            crown(one, rounding.params, box, rows, fine, rounding)[0],
            crown(one, rounding.params, box, rows, fine, rounding, slopes)[0],
            last_layer_folding(one, rounding.params, rows, fine, rounding)[0],
            lower_bounds(state.output, rows[None])[0],
        ]

    for mine, theirs in zip(bounds(graph), bounds(other), strict=True):
        assert bool((mine <= lowest + 1e-9).all())
        # As a matrix it costs rounding; the move is exact, and never below.
        assert bool((mine >= theirs - 1e-12).all())
        assert contract != "real" or torch.allclose(mine, theirs, atol=1e-9)


def test_coefficients_that_come_together_are_counted() -> None:
    """Three outputs read element 5, so that three coefficients are added up for it in float64."""
    graph, _ = networks(0)
    rounding = Rounding(graph, CONTRACTS["real"])
    ones = {name: (-torch.ones(1, *graph.shape_of(name)).double(), torch.ones(1, *graph.shape_of(name)).double()) for name in "xzarfhqy"}
    # Magnitudes 1 of output and input; 16 roundings, one reader, and for the move 3 coefficients.
    assert rounding.coefficient_error("f", ones)[0, 0].item() == 2 * (16 + 1 + 3) * 2.0**-53
    assert rounding.coefficient_error("r", ones)[0, 0].item() == 2 * (16 + 1) * 2.0**-53
    rows = torch.eye(len(INDEX)).double()[None]
    (back,) = move_rules(graph.node("f")).transposed(graph.node("f"), rows.sum(1, keepdim=True), [(8,)])
    assert back.flatten().tolist() == [2, 1, 1, 1, 0, 3, 0, 1]


def test_the_search_and_exact_evaluation_take_it_too() -> None:
    graph, other = networks(1)
    assert applies(graph)
    x = torch.full((1, 1, 3, 3), 0.5, dtype=torch.float64)
    box = x - 0.2, x + 0.2
    found = []
    for one in (graph, other):
        rounding = Rounding(one, CONTRACTS["real"])
        net = DenseRelaxation(one, rounding.params, box, interval(one, rounding.params, box, rounding))
        rows = torch.eye(3, dtype=torch.float64)
        found.append(net.evaluate(net.form(rows), net.choice(3), False).bound)
        assert all(isinstance(value, Fraction) for value in evaluate(one, x[0].numpy()))
    assert torch.equal(*found)
    assert evaluate(graph, x[0].numpy()) == evaluate(other, x[0].numpy())


def test_the_constant_of_a_move_that_says_nothing_more() -> None:
    node = Pick(name="f", inputs=("x",), shape=(4,), index=(1, -1, 0, 1))
    graph = Graph("x", (2,), (node,), "f", {})
    rules, rounding = move_rules(node), Rounding(graph, CONTRACTS["fp32"])
    box = torch.tensor([[0.0, -1.0]]).double(), torch.tensor([[1.0, 2.0]]).double()
    assert torch.equal(rules.moved(node, 7.0, torch.tensor([[3.0, 4.0]])), torch.tensor([[4.0, 7.0, 3.0, 4.0]]))
    lower, upper = interval(graph, {}, box, rounding)["f"]
    # E of the input, which a device may flush to zero, moves with it.
    assert torch.allclose(lower, torch.tensor([[-1, 0.5, 0, -1]]).double(), atol=1e-30, rtol=0)
    assert torch.allclose(upper, torch.tensor([[2, 0.5, 1, 2]]).double(), atol=1e-30, rtol=0)
    rows = torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, -2.0, 0.0, -1.0]]).double()
    bound = crown(graph, {}, box, rows, {"x": box, "f": (lower, upper)}, rounding)
    assert torch.allclose(bound, torch.tensor([[-1.5, -5.0]]).double(), atol=1e-6)
    assert evaluate(graph, np.array([0.25, 2.0])) == [2, Fraction(1, 2), Fraction(1, 4), 2]
