"""Runtimes fuse an affine operator with the additions that follow it; the error term covers that one longer sum."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnxruntime
import pytest
import torch

from vsparse.bounds import Rounding, interval
from vsparse.bounds.fusion import MOST_TERMS, one_sums
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.graph import to_onnx
from vsparse.graph.ir import Add, AddConstant, Conv, Gemm, Graph, Neg, Node, Relu
from vsparse.stages.export.runtime_hashes import Algebra
from vsparse.stages.export.runtime_reference import Reference

OMEGA = 2.0**24


def residual(n: int, second_reader: bool = False) -> Graph:
    """logits = W·x + r with r = R·x, W of ones: the sum of n small terms joins a residual of 2^24."""
    nodes = [
        Gemm(name="r", inputs=("input",), shape=(2,), weight="R", bias=None),
        Gemm(name="z", inputs=("input",), shape=(2,), weight="W", bias=None),
        Add(name="sum", inputs=("z", "r"), shape=(2,)),
    ]
    if second_reader:
        nodes += [Relu(name="relu", inputs=("z",), shape=(2,)), Add(name="logits", inputs=("sum", "relu"), shape=(2,))]
    weights = {"W": np.ones((2, n), np.float32), "R": np.zeros((2, n), np.float32)}
    weights["R"][:, 0] = OMEGA
    return Graph("input", (n,), tuple(nodes), nodes[-1].name, weights)


def accumulate(start: float, terms: np.ndarray) -> float:
    """Sums in float32 from a starting value, as a kernel does whose accumulator begins with the residual."""
    total = np.float32(start)
    for term in terms.astype(np.float32):
        total = np.float32(total + term)
    return float(total)


def test_a_residual_that_starts_the_accumulation_is_covered() -> None:
    n = 512
    graph = residual(n)
    rounding = Rounding(graph, CONTRACTS["fp32"])
    x = np.ones((1, n), np.float32)
    box = (torch.from_numpy(x).double(), torch.from_numpy(x).double())
    boxes = interval(graph, rounding.params, box, rounding)
    fused = accumulate(OMEGA, np.ones(n))
    exact = Fraction(int(OMEGA)) + n
    assert abs(Fraction(fused) - exact) > 500, "the trap must work: every 1 is absorbed by 2^24"
    lower, upper = (float(end[0, 0]) for end in boxes["sum"])
    assert lower <= fused <= upper
    assert abs(Fraction(fused) - exact) <= Fraction(float(rounding.error(graph.nodes[2], boxes, boxes["sum"])[0, 0]))


def test_a_constant_that_starts_the_accumulation_is_covered() -> None:
    n = 512
    nodes = (
        Gemm(name="z", inputs=("input",), shape=(1,), weight="W", bias=None),
        AddConstant(name="up", inputs=("z",), shape=(1,), constant="c"),
        AddConstant(name="logits", inputs=("up",), shape=(1,), constant="d"),
    )
    params = {"W": np.ones((1, n), np.float32), "c": np.array([OMEGA], np.float32), "d": np.array([-OMEGA], np.float32)}
    graph = Graph("input", (n,), nodes, "logits", params)
    rounding = Rounding(graph, CONTRACTS["fp32"])
    x = torch.ones((1, n), dtype=torch.float64)
    lower, upper = interval(graph, rounding.params, (x, x), rounding)["logits"]
    assert float(lower) <= accumulate(OMEGA, np.ones(n)) - OMEGA <= float(upper)
    assert float(lower) <= n <= float(upper)


def test_what_is_read_elsewhere_is_not_fused() -> None:
    assert "sum" in one_sums(residual(4))
    sums = one_sums(residual(4, second_reader=True))
    terms = sums["sum"]
    assert [node.name for node in terms.affine] == ["r"]
    assert terms.values == ("z",)
    assert "relu" not in sums


@pytest.mark.parametrize("seed", range(3))
def test_the_runtime_that_fuses_stays_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (8, 6, 6)
    nodes = (
        Conv(name="a", inputs=("input",), shape=shape, weight="A", bias="ab", pads=(1, 1, 1, 1)),
        Relu(name="ra", inputs=("a",), shape=shape),
        Conv(name="b", inputs=("ra",), shape=shape, weight="B", bias=None, pads=(1, 1, 1, 1)),
        Add(name="sum", inputs=("b", "ra"), shape=shape),
        Relu(name="out", inputs=("sum",), shape=shape),
    )
    params = {
        "A": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "ab": rng.normal(size=8).astype(np.float32) * 1e4,
        "B": rng.normal(size=(8, 8, 3, 3)).astype(np.float32),
    }
    graph = Graph("input", (3, 6, 6), nodes, "out", params)
    rounding = Rounding(graph, CONTRACTS["fp32"])
    x = rng.random((16, 3, 6, 6)).astype(np.float32)
    point = torch.from_numpy(x).double()
    lower, upper = (end.numpy() for end in interval(graph, rounding.params, (point, point), rounding)["out"])
    model = to_onnx(graph, 17, {}, "g").SerializeToString()
    for level in (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        got = session.run(None, {"input": x})[0]
        assert bool(((lower <= got) & (got <= upper)).all())


def test_long_rows_of_additions_are_refused_and_long_rows_of_negations_followed() -> None:
    def chain(length: int, kind: str) -> Graph:
        nodes: list[Node] = [Gemm(name="a0", inputs=("x",), shape=(2,), weight="W", bias=None)]
        for i in range(length):
            name, before = f"a{i + 1}", (f"a{i}",)
            added = AddConstant(name=name, inputs=before, shape=(2,), constant="c")
            nodes.append(added if kind == "add" else Neg(name=name, inputs=before, shape=(2,)))
        nodes.append(Add(name="y", inputs=(f"a{length}", "x"), shape=(2,)))
        return Graph("x", (2,), tuple(nodes), "y", {"W": np.ones((2, 2), np.float32), "c": np.ones(2, np.float32)})

    terms = one_sums(chain(5000, "neg"))["y"]
    assert [node.name for node in terms.affine] == ["a0"]
    assert terms.values == ("x",)
    assert Reference(chain(5000, "neg"), Algebra(), 1).output.shape == (1, 2)
    assert one_sums(chain(MOST_TERMS - 2, "add"))["y"].added == MOST_TERMS - 1
    with pytest.raises(InputError, match=f"more than {MOST_TERMS} terms"):
        one_sums(chain(5000, "add"))
