"""A seeded part of `benchmarks/brute_force`: random networks of every operator under every contract, and the holes that it has found."""

from __future__ import annotations

import runpy
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from bound_mutations import MUTATIONS, mutated
from brute_force import NEVER_BOUNDED, Findings, attack, not_executed, operators
from graph_builder import KINDS, OPERATORS, net_for
from number_formats import round_to

from vsparse.bounds import Rounding, interval
from vsparse.bounds.ball import Box
from vsparse.contract import CONTRACTS
from vsparse.graph.ir import AveragePool, DivConstant, Graph, Node, Relu

RUN = Path(__file__).resolve().parents[2] / "benchmarks" / "brute_force" / "run.py"


def brute_force(contract: str, nets: int, seed: int = 0, devices: int = 3) -> Findings:
    found = Findings()
    for i in range(nets):
        rng = np.random.default_rng([seed, i, sum(map(ord, contract))])
        found.add(attack(net_for(CONTRACTS[contract], rng), CONTRACTS[contract], rng, devices))
    return found


@pytest.mark.parametrize("contract", CONTRACTS)
def test_no_execution_leaves_a_bound(contract: str) -> None:
    found = brute_force(contract, 10)
    assert found.violations == []
    assert found.nets - found.refused >= 8
    assert sum(found.values.values()) > 500
    assert found.margins > 100
    if not CONTRACTS[contract].exact:
        # E of int8-tensorrt allows n + 13 roundings, of which its kernels make 9 (docs/numerics.md, section 7.5).
        near = 0.1 if contract in ("int8-tensorrt", "int8-exact") else 0.5
        assert max(found.closest.values()) > near, "the simulated devices are too tame to test anything"


def test_every_operator_is_drawn() -> None:
    drawn: Counter[str] = Counter()
    for seed in range(150):
        for contract in ("fp32", "int8"):
            drawn.update(type(node).__name__ for node in net_for(CONTRACTS[contract], np.random.default_rng(seed)).nodes)
    known = operators() - NEVER_BOUNDED.keys()
    assert {"BatchNorm", "Conv", "FakeQuant", "Gather", "Tanh"} <= operators()
    assert known <= set(drawn), "add the operator to graph_builder.OPERATORS"
    assert min(drawn[name] for name in known) >= 5
    assert len(OPERATORS) > 10
    assert len(KINDS) > 5


def executed(*names: str) -> Findings:
    return Findings(values=Counter(dict.fromkeys(names, 1)), errors=Counter(dict.fromkeys(names, 1)))


def test_an_operator_that_was_not_executed_is_named_or_excused() -> None:
    all_of_them = operators() - NEVER_BOUNDED.keys()
    assert not_executed({"fp32": executed(*all_of_them - {"FakeQuant"}), "int8": executed("FakeQuant")}) == (NEVER_BOUNDED, [])
    excused, missing = not_executed({"fp32": executed(*all_of_them - {"FakeQuant", "Gather"})})
    assert set(excused) == {"BatchNorm", "FakeQuant"}
    assert missing == ["Gather was executed in no network", "Gather was never held against rational arithmetic"]
    excused, missing = not_executed({"int8": executed("Gemm")})
    assert set(excused) == operators() - {"FakeQuant"}
    assert missing == ["FakeQuant was executed in no network"]
    # In exact arithmetic there is no E to compare.
    one = executed(*all_of_them)
    one.errors.clear()
    assert not_executed({"real": one}) == (NEVER_BOUNDED, [])
    assert "Tanh was never held against rational arithmetic" in not_executed({"fp16": one})[1]


@pytest.mark.skipif(not RUN.exists(), reason="the benchmarks are not beside the tests")
@pytest.mark.parametrize("left_out", ["", "Gather"])
def test_the_benchmark_fails_where_an_operator_was_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left_out: str
) -> None:
    run = runpy.run_path(str(RUN))
    found = executed(*operators() - NEVER_BOUNDED.keys() - {left_out})
    monkeypatch.setitem(run["main"].__globals__, "MUTATIONS", {})
    monkeypatch.setitem(run["main"].__globals__, "attack_contract", lambda *arguments: found)
    monkeypatch.setattr("sys.argv", ["run.py", "--out", str(tmp_path / "results.json")])
    assert run["main"]() == int(bool(left_out))
    assert ("error: Gather was executed in no network" in capsys.readouterr().err) == bool(left_out)


@pytest.mark.parametrize("name", ["no error term", "half the rounding", "overflow is not looked for"])
def test_a_mutated_bound_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contract, _ = MUTATIONS[name]
    mutated(name, monkeypatch.setattr)
    for i in range(60):
        rng = np.random.default_rng([2, i])
        if attack(net_for(CONTRACTS[contract], rng), CONTRACTS[contract], rng).violations:
            return
    pytest.fail(f"{name}: not one violation in 60 networks")


def box_of(node: Node, shape: tuple[int, ...], value: float, contract: str, params: dict[str, np.ndarray] | None = None) -> Box:
    graph = Graph("x", shape, (node,), node.name, params or {})
    rounding = Rounding(graph, CONTRACTS[contract])
    x = torch.full((1, *shape), value, dtype=torch.float64)
    return interval(graph, rounding.params, (x, x), rounding)[node.name]


@pytest.mark.parametrize("make", [lambda: Relu(name="y", inputs=("x",), shape=(1,))])
def test_a_subnormal_input_may_be_read_as_zero(make: Callable[[], Node]) -> None:
    lower, upper = box_of(make(), (1,), 2.0**-130, "fp32")
    assert float(lower) <= 0 <= float(upper)
    assert float(box_of(make(), (1,), 2.0**-130, "real")[0]) > 0


def test_a_subnormal_dividend_may_be_read_as_zero() -> None:
    node = DivConstant(name="y", inputs=("x",), shape=(1,), constant="c")
    lower, _ = box_of(node, (1,), 2.0**-127, "fp32", {"c": np.array([2.0**-40], np.float32)})
    assert float(lower) <= 0


def test_the_stored_reciprocal_of_an_average_is_covered() -> None:
    # As a convolution with the weight 1/3 in bf16, accumulated in fp32 and stored in bf16.
    node = AveragePool(name="y", inputs=("x",), shape=(1, 1, 1), kernel=(3, 1), stride=(1, 1))
    third = float(round_to(1 / 3, "bf16"))
    for value in 1 + np.arange(128) / 128:
        device = float(round_to(3 * third * value, "bf16"))
        lower, upper = (float(end) for end in box_of(node, (1, 3, 1), value, "bf16"))
        assert Fraction(lower) <= Fraction(device) <= Fraction(upper)
