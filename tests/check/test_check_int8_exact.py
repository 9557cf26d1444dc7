"""Quantised files that only `int8-exact` is about, and operators that read quantised values: the checker bounds them as the toolchain."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from check_artifacts import graph_of, samples
from test_check_bounds import by_the_toolchain, derive

from vsparse.errors import InputError
from vsparse.graph import Concat, FakeQuant, Gemm, Graph, LeakyRelu, QuantisedParameter, Sub
from vsparse.graph.quantised import check_integer_execution, integer_contract
from vsparse.perturbation import PerturbationSet
from vsparse.stages.export.quantise import quantise
from vsparse_check.refusal import NotConfirmed


def quantised(name: str, source: str, scale: float, size: int) -> FakeQuant:
    return FakeQuant(name=name, inputs=(source,), shape=(size,), scale=float(np.float32(scale)), zero_point=100, lowest=0, highest=255)


def joined(most: int = 127) -> Graph:
    """Two branches on grids of their own, their difference and a leaky ReLU, put together and quantised again."""
    rng = np.random.default_rng(0)
    sizes = {"a": (5, 6), "b": (5, 6), "c": (4, 10)}
    stored = {
        name: QuantisedParameter(rng.integers(-most, most + 1, size).astype(np.int8), np.full(size[0], 2.0**-8, np.float32))
        for name, size in sizes.items()
    }
    nodes = (
        quantised("q", "x", 1 / 128, 6),
        Gemm(name="za", inputs=("q",), shape=(5,), weight="a", bias=None),
        Gemm(name="zb", inputs=("q",), shape=(5,), weight="b", bias=None),
        quantised("qa", "za", 0.02, 5),
        quantised("qb", "zb", 0.03, 5),
        Sub(name="d", inputs=("qa", "qb"), shape=(5,)),
        quantised("qd", "d", 0.025, 5),
        LeakyRelu(name="l", inputs=("qb",), shape=(5,), slope=0.25),
        quantised("ql", "l", 0.015, 5),
        Concat(name="j", inputs=("qd", "ql"), shape=(10,), axis=0),
        quantised("qj", "j", 0.03, 10),
        Gemm(name="y", inputs=("qj",), shape=(4,), weight="c", bias=None),
    )
    return Graph("x", (6,), nodes, "y", {name: one.floats() for name, one in stored.items()}, stored)


def agrees(graph: Graph, x: np.ndarray, labels: np.ndarray, rules: str, epsilon: str) -> None:
    for method, values in by_the_toolchain(graph, x, labels, rules, PerturbationSet(epsilon=Fraction(epsilon))).items():
        found = derive(graph, x, labels, epsilon, method, rules=rules)
        assert np.isfinite(found).all()
        assert np.allclose(found, values.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_file_for_int8_fits_int8_exact_at_the_same_cost(kind):
    graph = quantise(graph_of(kind, 1), samples(graph_of(kind, 1), 64, 2)[0])
    agrees(graph, *samples(graph, 8, 1), "int8-exact", "1/200")


def test_what_reads_quantised_values_costs_in_the_checker_what_it_costs_the_toolchain():
    graph = joined()
    assert integer_contract(graph) == "int8-exact"
    x = np.random.default_rng(1).random((6, 6)).astype(np.float32)
    labels = np.arange(6) % 4
    agrees(graph, x, labels, "int8-exact", "1/100")
    agrees(joined(64), x, labels, "int8", "1/100")
    with pytest.raises(InputError, match=r"8-bit weights.*--contract int8-exact"):
        check_integer_execution(graph, "int8")
    with pytest.raises(NotConfirmed, match="8-bit weights"):
        derive(graph, x, labels, "1/100", "interval", rules="int8")


def test_a_part_of_a_concatenation_is_not_quantised_twice():
    graph = joined(64)
    twice = replace(graph, nodes=tuple(replace(node, inputs=("ql",)) if node.name == "j" else node for node in graph.nodes))
    twice = replace(twice, nodes=tuple(replace(node, shape=(5,)) if node.name in ("j", "qj") else node for node in twice.nodes))
    with pytest.raises(InputError, match="quantised already"):
        check_integer_execution(twice)
