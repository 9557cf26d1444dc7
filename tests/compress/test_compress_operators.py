"""Compression of networks with curves, differences and moves of data: what is followed, what is left alone, and that nothing changes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from vsparse.graph import (
    Clip,
    Concat,
    Conv,
    DivConstant,
    Gemm,
    Graph,
    LeakyRelu,
    MulConstant,
    Neg,
    Node,
    Pad,
    Reshape,
    Sigmoid,
    Slice,
    Sub,
    Tanh,
    Transpose,
    validate,
)
from vsparse.stages.compress import compress
from vsparse.stages.compress.exact_values import ExactValues, from_fractions
from vsparse.stages.compress.rational import evaluate
from vsparse.stages.train.units import groups_of

MAP = (4, 5, 5)
CURVES = {
    "leaky": LeakyRelu(name="f", inputs=("a",), shape=MAP, slope=0.25),
    "clip": Clip(name="f", inputs=("a",), shape=MAP, lowest=0.125, highest=2.0),
    "neg": Neg(name="f", inputs=("a",), shape=MAP),
    "sigmoid": Sigmoid(name="f", inputs=("a",), shape=MAP),
    "tanh": Tanh(name="f", inputs=("a",), shape=MAP),
    "div": DivConstant(name="f", inputs=("a",), shape=MAP, constant="c"),
    "transpose": Transpose(name="f", inputs=("a",), shape=(5, 4, 5), order=(1, 0, 2)),
    "concat": Concat(name="f", inputs=("a", "a"), shape=(8, 5, 5), axis=0),
    "slice": Slice(name="f", inputs=("a",), shape=(2, 5, 5), starts=(0, 0, 0), stops=(4, 5, 5), steps=(2, 1, 1)),
    "pad": Pad(name="f", inputs=("a",), shape=(6, 5, 5), before=(1, 0, 0), after=(1, 0, 0), value=0.5),
    "sub": Sub(name="f", inputs=("a", "d"), shape=MAP),
}
FOLLOWED = {"leaky", "clip", "neg", "sub"}


def network(kind: str, seed: int) -> tuple[Graph, dict[str, np.ndarray]]:
    """Returns two convolutions with a curve between them and a linear layer, and masks that take the second unit of the first one."""
    rng = np.random.default_rng(seed)
    node = CURVES[kind]
    (channels, height, width) = node.shape
    nodes = (
        Conv(name="a", inputs=("x",), shape=MAP, weight="A", bias="ab", pads=(1, 1, 1, 1)),
        Conv(name="d", inputs=("x",), shape=MAP, weight="D", bias=None, pads=(1, 1, 1, 1)),
        node,
        Conv(name="b", inputs=("f",), shape=(3, height, width), weight="B", bias="bb"),
        Reshape(name="flat", inputs=("b",), shape=(3 * height * width,)),
        Gemm(name="y", inputs=("flat",), shape=(3,), weight="G", bias="gb"),
    )
    nodes = tuple(n for n in nodes if n.name != "d" or kind == "sub")
    shapes = {"A": (4, 2, 3, 3), "ab": (4,), "B": (3, channels, 1, 1), "bb": (3,), "G": (3, 3 * height * width), "gb": (3,)}
    shapes |= {"D": (4, 2, 3, 3)} if kind == "sub" else {}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    params |= {"c": np.array([0.3, -2, 5, 0.7], np.float32).reshape(4, 1, 1)} if kind == "div" else {}
    masks = {name: np.ones(params[name].shape, bool) for name in ("A", "ab", "B", *(["D"] if kind == "sub" else []))}
    for name in masks:
        if name != "B":
            masks[name][1] = False
    return validate(Graph("x", (2, 5, 5), nodes, "y", params)), masks


@pytest.mark.parametrize("kind", CURVES)
def test_nothing_changes_and_only_followed_units_go(kind: str) -> None:
    graph, masks = network(kind, 1)
    inputs = np.random.default_rng(2).random((8, 2, 5, 5)).astype(np.float32)
    result = compress(graph, masks, inputs=inputs)
    assert result.evidence.rational_inputs == (0 if kind in ("sigmoid", "tanh") else 2)
    assert result.evidence.rational_equal
    assert result.evidence.within_bound
    assert result.evidence.outputs == 3 * result.evidence.float_inputs
    first = next(node for node in result.packed.nodes if node.name == "a")
    assert first.shape[0] == (3 if kind in FOLLOWED else 4)


@pytest.mark.parametrize("kind", CURVES)
def test_a_changed_network_is_noticed_in_rationals_or_in_floats(kind: str) -> None:
    graph, _ = network(kind, 3)
    if kind in ("sigmoid", "tanh"):
        pytest.skip("has no rational values")
    x = np.random.default_rng(4).random((2, 5, 5)).astype(np.float32)
    other = {**graph.params, "A": graph.params["A"] * np.float32(1.0000001)}
    assert evaluate(graph, x) == evaluate(graph, x)
    assert evaluate(graph, x) != evaluate(replace(graph, params=other), x)


@pytest.mark.parametrize("kind", CURVES)
def test_training_removes_units_only_where_zero_stays_zero(kind: str) -> None:
    graph, _ = network(kind, 5)
    names = {group.name for group in groups_of(graph)}
    assert ("a" in names) == (kind in {"leaky", "neg", "sub"})  # this clip makes 0.125 of zero
    zero = replace(graph, nodes=tuple(replace(n, lowest=0.0) if isinstance(n, Clip) else n for n in graph.nodes))
    assert ("a" in {group.name for group in groups_of(zero)}) == (kind in FOLLOWED)


def test_rational_values_of_a_padding_are_as_wide_as_they_need_to_be() -> None:
    tenth, factor = np.float32(0.1), np.array(0.7, np.float32)
    nodes: list[Node] = [Pad(name="p", inputs=("x",), shape=(3,), before=(1,), after=(1,), value=float(tenth))]
    for i in range(4):
        nodes.append(MulConstant(name=f"m{i}", inputs=(nodes[-1].name,), shape=(3,), constant="c"))
    graph = Graph("x", (1,), tuple(nodes), nodes[-1].name, {"c": factor})
    wanted = [Fraction(float(value)) * Fraction(float(factor)) ** 4 for value in (tenth, np.float32(0.3), tenth)]
    assert evaluate(graph, np.array([0.3], np.float32)) == wanted


def test_the_scale_of_exact_values_stays_positive() -> None:
    """Integers stand for the order of the values: ReLU of −x looks at them alone."""
    x = from_fractions([Fraction(1, 3), Fraction(-2, 3)])
    assert (-x).fractions() == [Fraction(-1, 3), Fraction(2, 3)]
    assert (-x).scale > 0
    with pytest.raises(ValueError, match="not positive"):
        ExactValues(x.integers, -x.scale)
