"""Which search goes on, what ends one, and what makes it void."""

from __future__ import annotations

import os
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from verify_nets import Writer, dense_graph

from vsparse.answer import Answered
from vsparse.bounds import Box, Rounding, interval
from vsparse.contract import CONTRACTS
from vsparse.errors import SoundnessError
from vsparse.graph import Graph
from vsparse.search import input_split
from vsparse.search.input_split import split_inputs
from vsparse.search.specification import Specification
from vsparse.stages.verify import query, query_engines
from vsparse.stages.verify.query import answer_query
from vsparse.stages.verify.query_engines import take_turns
from vsparse.vnnlib import read_vnnlib

CASES = Path(__file__).parent / "cases"
SHARED = Path(os.environ.get("VSPARSE_DATA", "/nonexistent")).parent / "cases"


class Engine:
    """An engine that settles its case after so many seconds, and lets its estimate be measured from `measured` seconds on."""

    def __init__(self, clock: list[float], needs: float, measured: float = 0.0, starts_anew: bool = False) -> None:
        self.clock, self.needs, self.measured, self.starts_anew = clock, needs, measured, starts_anew
        self.possible, self.spent, self.problem = True, 0.0, None

    @property
    def estimate(self) -> float:
        return max(0.0, self.needs - self.spent) if self.spent > self.measured else inf

    def run(self, seconds: float, domains: int = 0) -> Answered | None:
        done = 0.0 if self.starts_anew else self.spent
        used = min(seconds, max(0.0, self.needs - done))
        self.clock[0] += used
        self.spent = done + used
        return "unsat" if self.spent >= self.needs else None


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize(
    ("cutting", "branching"), [(0.5, inf), (20.0, inf), (200.0, inf), (inf, 0.5), (inf, 20.0), (inf, 200.0), (50.0, 45.0)]
)
def test_the_engine_that_gets_on_has_most_of_the_time(monkeypatch: pytest.MonkeyPatch, cutting: float, branching: float, few: bool) -> None:
    clock = [0.0]
    monkeypatch.setattr(query_engines, "monotonic", lambda: clock[0])
    inputs, relus = Engine(clock, cutting, 0.3), Engine(clock, branching, 0.3, starts_anew=True)
    assert take_turns(inputs, relus, few=few, deadline=1e6) == "unsat"  # type: ignore[arg-type]  # what it needs of the two is there
    # The best engine alone would need this; the other's turns and new starts cost a few times as much at most.
    assert clock[0] <= 5 * min(cutting, branching) + 6


def test_where_one_engine_ends_the_other_goes_on() -> None:
    class Ended(Engine):
        def run(self, seconds: float, domains: int = 0) -> Answered | None:
            return "unknown"

    clock = [0.0]
    assert take_turns(Ended(clock, 1.0), Engine(clock, 30.0), few=True, deadline=1e12) == "unsat"  # type: ignore[arg-type]
    assert take_turns(Engine(clock, 30.0), Ended(clock, 1.0), few=False, deadline=1e12) == "unsat"  # type: ignore[arg-type]
    assert take_turns(Ended(clock, 1.0), Ended(clock, 1.0), few=True, deadline=1e12) == "unknown"  # type: ignore[arg-type]


def small_net() -> tuple[Graph, Rounding, Box, Specification]:
    rng = np.random.default_rng(5)
    layers = [((rng.normal(size=(b, a)) * 1.5 / a**0.5).tolist(), rng.normal(size=b).tolist()) for a, b in ((3, 16), (16, 16), (16, 1))]
    graph = dense_graph(3, *layers)
    rounding = Rounding(graph, CONTRACTS["fp32"])
    box: Box = torch.full((1, 1, 1, 3), -1.0, dtype=torch.float64), torch.ones(1, 1, 1, 3, dtype=torch.float64)
    x = torch.from_numpy(rng.uniform(-1, 1, size=(20000, 1, 1, 3)))
    least = float(interval(graph, rounding.params, (x, x))[graph.output][0].min())
    specification = Specification(
        torch.ones(1, 1, dtype=torch.float64), torch.tensor([least - 0.4]).double(), torch.zeros(1, dtype=torch.int64), 1
    )
    return graph, rounding, box, specification


def test_cutting_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, rounding, box, specification = small_net()
    whole = split_inputs(
        graph, rounding, box, specification, deadline=inf, memory_bytes=1
    )  # a domain at a time, so that there are many rounds
    assert whole.proved
    # The clock is looked at before each round: each call gets one.
    clock = [0]

    def monotonic() -> int:
        clock[0] += 1
        return clock[0]

    monkeypatch.setattr(input_split, "monotonic", monotonic)
    left, domains, settled = None, 0, []
    for _ in range(100):
        part = split_inputs(graph, rounding, box, specification, deadline=clock[0] + 1.5, start=left, memory_bytes=1)
        domains, left = domains + part.domains, part.left
        if left is None:
            break
        settled.append(left.settled)
        assert abs(left.settled + float(left.fraction.sum()) - 1) < 1e-9
    assert part.proved
    assert part.lower == whole.lower
    assert domains == whole.domains
    assert len(settled) >= 2
    assert settled == sorted(settled)


def test_a_search_that_is_told_that_it_is_stuck_ends() -> None:
    graph, rounding, box, specification = small_net()
    asked: list[torch.Tensor] = []
    found = split_inputs(graph, rounding, box, specification, deadline=inf, stuck=lambda points: asked.append(points) is None)
    assert (found.proved, found.point, found.left, found.timed_out) == (False, None, None, False)
    assert asked[0].shape == (1, 1, 1, 3)


def test_what_the_order_of_a_sum_decides_is_unknown_at_once() -> None:
    """A published trap: in real arithmetic the property holds, and some order of summation breaks it."""
    files = CASES / "order2_fc.onnx", CASES / "order2_fc.vnnlib"
    answer = answer_query(*files, CONTRACTS["fp32"])
    assert answer.verdict == "unknown"
    assert answer.domains == 0
    assert "no search can prove it" in answer.note
    assert answer_query(*files, CONTRACTS["real"], timeout=60).verdict == "unsat"


@pytest.mark.skipif(not (SHARED / "rul_small_window_20.onnx").exists(), reason="the failing inputs are not beside VSPARSE_DATA")
@pytest.mark.parametrize("contract", ["fp32", "real"])
def test_inputs_fixed_at_decimals_are_attacked(contract: str) -> None:
    model, prop = SHARED / "rul_small_window_20.onnx", SHARED / "rul_delta20_eps10.vnnlib.gz"
    answer = answer_query(model, prop, CONTRACTS[contract], timeout=60)
    assert answer.verdict == "sat"
    assert answer.witness is not None
    assert answer.witness.rounded > 100
    assert (answer.witness.exact is None) == (contract == "fp32")
    session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    (y,) = session.run(None, {source.name: answer.witness.inputs.reshape([side if isinstance(side, int) else 1 for side in source.shape])})
    assert y.ravel().tolist() == answer.witness.outputs.tolist()
    (case,) = {case.unsafe for case in read_vnnlib(prop).cases}
    assert any(all(one.holds(y.ravel()) for one in conjunction) for conjunction in case)


@pytest.mark.parametrize("place", ["intervals", "refined"])
def test_a_wrong_bound_voids_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    rng = np.random.default_rng(2)
    layers = [((rng.normal(size=(b, a)) * 1.5 / a**0.5).tolist(), rng.normal(size=b).tolist()) for a, b in ((20, 12), (12, 12), (12, 2))]
    model = Writer(tmp_path)(dense_graph(20, *layers))
    lines = [f"(declare-const X_{i} Real)(assert (>= X_{i} -1))(assert (<= X_{i} 1))" for i in range(20)]
    lines += ["(declare-const Y_0 Real)(declare-const Y_1 Real)(assert (<= Y_0 -9))"]
    (tmp_path / "p.vnnlib").write_text("\n".join(lines))
    owner: Any = query if place == "intervals" else query_engines
    name = "interval" if place == "intervals" else "refine"
    honest = getattr(owner, name)

    def wrong(*args: Any, **options: Any) -> dict[str, Box]:
        boxes = dict(honest(*args, **options))
        lower, upper = boxes["z1"]
        boxes["z1"] = upper - (upper - lower) * 1e-3, upper
        return boxes

    answer_query(model, tmp_path / "p.vnnlib", CONTRACTS["fp32"], timeout=20)
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(SoundnessError, match='"z1"'):
        answer_query(model, tmp_path / "p.vnnlib", CONTRACTS["fp32"], timeout=20)
