"""Input splitting: what it proves is true, what it finds is real, and it says when it can do neither."""

from __future__ import annotations

from time import monotonic

import numpy as np
import pytest
import torch

from vsparse.bounds import Rounding
from vsparse.contract import CONTRACTS
from vsparse.graph import run
from vsparse.graph.ir import Gemm, Graph, Relu
from vsparse.search.input_split import split_inputs
from vsparse.search.specification import Specification


def random_net(rng: np.random.Generator, inputs: int = 3) -> Graph:
    params = {}
    nodes: list[Gemm | Relu] = []
    last, width = "x", inputs
    for i, out in enumerate((8, 8, 3)):
        params[f"w{i}"] = (rng.normal(size=(out, width)) / np.sqrt(width)).astype(np.float32)
        params[f"b{i}"] = rng.normal(size=out).astype(np.float32)
        nodes.append(Gemm(name=f"z{i}", inputs=(last,), shape=(out,), weight=f"w{i}", bias=f"b{i}"))
        if i < 2:
            nodes.append(Relu(name=f"a{i}", inputs=(f"z{i}",), shape=(out,)))
        last, width = nodes[-1].name, out
    return Graph("x", (inputs,), tuple(nodes), last, params)


def box(inputs: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return -torch.ones(1, inputs, dtype=torch.float64), torch.ones(1, inputs, dtype=torch.float64)


def single(row: list[float], threshold: float) -> Specification:
    return Specification(torch.tensor([row], dtype=torch.float64), torch.tensor([threshold], dtype=torch.float64), torch.tensor([0]), 1)


def least(graph: Graph, specification: Specification, rng: np.random.Generator) -> float:
    """The least violation that many gradient descents find: no lower bound may exceed it."""
    params = graph.tensors(torch.float64)
    x = torch.tensor(rng.uniform(-1, 1, size=(1000, 3)))
    found = float("inf")
    for step in range(150):
        x.requires_grad_(True)
        violation = specification.best(specification.margins(run(graph, params, x))).amin(1)
        found = min(found, float(violation.detach().min()))
        (gradient,) = torch.autograd.grad(violation.sum(), x)
        x = (x.detach() - gradient.sign() * 0.3 * 0.95**step).clamp(-1, 1)
    return found


@pytest.mark.parametrize("contract", ["real", "fp32"])
def test_proves_thresholds_just_below_the_least_value_and_refutes_those_above(contract: str) -> None:
    rng = np.random.default_rng(3)
    proved = found = 0
    for _ in range(6):
        graph = random_net(rng)
        rounding = Rounding(graph, CONTRACTS[contract])
        row = rng.normal(size=3).tolist()
        lowest = least(graph, single(row, 0.0), rng)
        result = split_inputs(graph, rounding, box(), single(row, lowest - 0.05), deadline=monotonic() + 60)
        assert result.proved
        # What was proved is below what was sampled.
        assert 0 < result.lower <= 0.05 + 1e-9
        proved += 1
        inner = tuple(end.float() for end in box())
        result = split_inputs(
            graph, rounding, box(), single(row, lowest + 0.02), deadline=monotonic() + 60, inner=inner, accept=lambda x: True
        )
        assert not result.proved
        assert result.point is not None
        value = run(graph, graph.tensors(torch.float64), result.point[None].double())[0] @ torch.tensor(row, dtype=torch.float64)
        assert float(value) <= lowest + 0.02 + 1e-5
        found += 1
    assert proved == found == 6


def test_a_conjunction_is_refuted_by_mixing_its_rows() -> None:
    """y0 + y1 > 0 everywhere, so y0 <= 0 and y1 <= 0 never hold together, although each holds somewhere."""
    graph = Graph(
        "x",
        (2,),
        (
            Gemm(name="z", inputs=("x",), shape=(2,), weight="w", bias="b"),
            Relu(name="a", inputs=("z",), shape=(2,)),
            Gemm(name="y", inputs=("a",), shape=(2,), weight="v", bias="c"),
        ),
        "y",
        {
            "w": np.array([[1, 0], [0, 1]], np.float32),
            "b": np.array([2, 2], np.float32),
            "v": np.array([[1, -1], [-1, 1]], np.float32),
            "c": np.array([0.001, 0.001], np.float32),
        },
    )
    specification = Specification(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), torch.tensor([0, 0]), 1)
    result = split_inputs(graph, Rounding(graph, CONTRACTS["real"]), box(2), specification, deadline=monotonic() + 60)
    assert result.proved
    assert result.domains == 1
    assert result.lower <= 0.001 + 1e-9


def test_random_conjunctions_are_never_refuted_where_sampling_satisfies_them() -> None:
    rng = np.random.default_rng(9)
    verdicts = []
    for _ in range(8):
        graph = random_net(rng)
        rows = torch.tensor(rng.normal(size=(5, 3)))
        offset = torch.tensor(rng.normal(size=5))
        specification = Specification(rows, offset, torch.tensor([0, 0, 1, 1, 1]), 2)
        result = split_inputs(graph, Rounding(graph, CONTRACTS["real"]), box(), specification, deadline=monotonic() + 2)
        verdicts.append(result.proved)
        if result.proved:
            assert least(graph, specification, rng) > 0
    assert any(verdicts)
    assert not all(verdicts)


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    rng = np.random.default_rng(4)
    graph = random_net(rng)
    rounding = Rounding(graph, CONTRACTS["fp32"])
    row = [1.0, -1.0, 0.5]
    specification = single(row, least(graph, single(row, 0.0), rng) - 0.01)
    one, two = (split_inputs(graph, rounding, box(), specification, deadline=monotonic() + 60, jobs=jobs) for jobs in (1, 2))
    assert one.proved
    assert (one.lower, one.domains) == (two.lower, two.domains)


def test_a_threshold_that_is_attained_is_given_up_and_not_proved() -> None:
    """x >= 0 on [0, 1] attains its threshold 0: domains shrink to a point, and then there is nothing left to cut."""
    graph = Graph("x", (1,), (Gemm(name="y", inputs=("x",), shape=(1,), weight="w", bias=None),), "y", {"w": np.ones((1, 1), np.float32)})
    region = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    specification = Specification(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), torch.tensor([0]), 1)
    result = split_inputs(graph, Rounding(graph, CONTRACTS["real"]), region, specification, deadline=monotonic() + 2)
    assert not result.proved


def test_the_deadline_ends_it() -> None:
    rng = np.random.default_rng(5)
    graph = random_net(rng)
    result = split_inputs(graph, Rounding(graph, CONTRACTS["real"]), box(), single([1.0, 0, 0], 100.0), deadline=monotonic() - 1)
    assert result.timed_out
    assert not result.proved


def test_specification_of_some_groups() -> None:
    specification = Specification(
        torch.arange(8.0, dtype=torch.float64).view(4, 2), torch.arange(4.0, dtype=torch.float64), torch.tensor([0, 1, 1, 2]), 3
    )
    part = specification.of(torch.tensor([2, 1]))
    assert part.groups == 2
    assert part.rows.tolist() == [[2, 3], [4, 5], [6, 7]]
    assert part.group.tolist() == [1, 1, 0]
    margins = specification.margins(torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    assert specification.best(margins).tolist() == [[1, 7, 10]]
