"""Answers to VNN-LIB queries: proved, refuted with a witness that replays, or honestly neither."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from verify_nets import Writer, dense_graph

from vsparse.bounds.ball import Box
from vsparse.contract import CONTRACTS, Contract
from vsparse.errors import InputError
from vsparse.graph import Graph
from vsparse.stages.verify.query import Answer, answer_query
from vsparse.stages.verify.query_goal import goal_of
from vsparse.vnnlib import Case, Constraint, Query, Region, read_vnnlib, satisfied, write_vnnlib

# y0 = x0 + x1, y1 = |x0 − x1|.
SUM_AND_DISTANCE = dense_graph(2, ([[1, 1], [1, -1], [-1, 1]], [10, 0, 0]), ([[1, 0, 0], [0, 1, 1]], [-10, 0]))


def region(*ends: tuple[str, str]) -> Region:
    return Region(tuple(Fraction(low) for low, _ in ends), tuple(Fraction(high) for _, high in ends))


def at_most(bound: str, *coefficients: int) -> Constraint:
    return Constraint(tuple((j, Fraction(c)) for j, c in enumerate(coefficients) if c), Fraction(bound))


def ask(folder: Path, graph: Graph, *cases: Case, contract: Contract | None = None, timeout: float = 60.0, seed: int = 0) -> Answer:
    model = Writer(folder)(graph)
    inputs, outputs = int(np.prod(graph.input_shape)), graph.shape_of(graph.output)[0]
    write_vnnlib(folder / "p.vnnlib", Query(inputs, outputs, cases))
    return answer_query(model, folder / "p.vnnlib", contract or CONTRACTS["fp32"], timeout=timeout, seed=seed)


def replayed(folder: Path, answer: Answer, graph: Graph) -> None:
    """Executes the witness as anyone would, and compares with the property in exact numbers."""
    assert answer.witness is not None
    assert answer.witness.inputs.dtype == np.float32
    session = onnxruntime.InferenceSession((folder / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: answer.witness.inputs.reshape(1, *graph.input_shape)})[0].ravel()
    assert outputs.tolist() == answer.witness.outputs.tolist()
    query = read_vnnlib(folder / "p.vnnlib")
    assert any(
        case.region.contains(answer.witness.inputs) and any(satisfied(unsafe, outputs) for unsafe in case.unsafe) for case in query.cases
    )


@pytest.mark.parametrize("contract", ["fp32", "real", "tf32"])
def test_bounds_of_a_sum_by_hand(tmp_path: Path, contract: str) -> None:
    """On [0, 1]² the sum is in [0, 2] and the distance in [0, 1]."""
    box = region(("0", "1"), ("0", "1"))
    for bound, verdict in (("-0.1", "unsat"), ("0.1", "sat")):
        answer = ask(tmp_path, SUM_AND_DISTANCE, Case(box, ((at_most(bound, 1, 0),),)), contract=CONTRACTS[contract])
        assert answer.verdict == verdict
        assert answer.contract == contract
        assert bool(answer.note) == (contract == "real")
        if verdict == "sat":
            replayed(tmp_path, answer, SUM_AND_DISTANCE)


def test_conjunction_needs_both(tmp_path: Path) -> None:
    """Sum <= 0.5 and distance >= 0.6 do not meet on [0, 1]², although each is possible; distance >= 0.4 does."""
    box = region(("0", "1"), ("0", "1"))
    for distance, verdict in (("-0.6", "unsat"), ("-0.4", "sat")):
        answer = ask(tmp_path, SUM_AND_DISTANCE, Case(box, ((at_most("0.5", 1, 0), at_most(distance, 0, -1)),)))
        assert answer.verdict == verdict
    replayed(tmp_path, answer, SUM_AND_DISTANCE)


def test_disjunctions_of_outputs_and_of_boxes(tmp_path: Path) -> None:
    never, sometimes = (at_most("-0.1", 1, 0),), (at_most("-0.9", 0, -1),)
    boxes = region(("0", "0.2"), ("0", "0.2")), region(("0", "1"), ("0.9", "1"))
    assert ask(tmp_path, SUM_AND_DISTANCE, *(Case(box, (never,)) for box in boxes)).verdict == "unsat"
    answer = ask(tmp_path, SUM_AND_DISTANCE, Case(boxes[0], (never, sometimes)), Case(boxes[1], (never, sometimes)))
    assert answer.verdict == "sat"
    replayed(tmp_path, answer, SUM_AND_DISTANCE)


def test_no_case_at_all_is_unsat_and_no_constraint_at_all_is_sat(tmp_path: Path) -> None:
    assert ask(tmp_path, SUM_AND_DISTANCE).verdict == "unsat"
    answer = ask(tmp_path, SUM_AND_DISTANCE, Case(region(("0", "1"), ("0", "1")), ((),)))
    assert answer.verdict == "sat"
    replayed(tmp_path, answer, SUM_AND_DISTANCE)


def test_a_box_between_two_floats_has_no_witness(tmp_path: Path) -> None:
    """1/10 is no float32, so that nothing can be replayed there; what holds at that very point is still proved."""
    box = region(("0.1", "0.1"), ("0.1", "0.1"))
    assert ask(tmp_path, SUM_AND_DISTANCE, Case(box, ((at_most("0.2", 1, 0),),)), timeout=5).verdict in ("unknown", "timeout")
    assert ask(tmp_path, SUM_AND_DISTANCE, Case(box, ((at_most("0.19", 1, 0),),))).verdict == "unsat"


def test_rounding_is_not_proved_away_and_not_called_a_violation(tmp_path: Path) -> None:
    """The sum of two numbers of [0.1, 0.1 + 2^-20] is at least 0.2: true in real arithmetic, not certain in float32."""
    box = region(("0.1", "0.100001"), ("0.1", "0.100001"))
    below = Case(box, ((at_most("0.1999999", 1, 0),),))
    assert ask(tmp_path, SUM_AND_DISTANCE, below, contract=CONTRACTS["real"]).verdict == "unsat"
    assert ask(tmp_path, SUM_AND_DISTANCE, below, timeout=1).verdict != "unsat"


def test_coefficients_without_a_double_of_their_own_make_the_proof_weaker_not_false() -> None:
    third = Constraint(((0, Fraction(1, 3)),), Fraction(1))
    case = Case(region(("0", "1")), ((third,),))
    outputs: Box = (torch.full((1, 1), -1e6, dtype=torch.float64), torch.full((1, 1), 10.0, dtype=torch.float64))
    goal = goal_of(Query(1, 1, (case,)), case, outputs)
    assert goal is not None
    row, threshold = Fraction(float(goal.rows[0, 0])), Fraction(float(goal.thresholds[0]))
    # Wherever the goal's row exceeds its threshold, the exact one does, out to the ends of the outputs.
    for y in (Fraction(-(10**6)), Fraction(10), 3 + Fraction(1, 10**9)):
        assert row * y <= threshold or y / 3 > 1
    assert threshold > 1


def test_a_bound_beyond_all_numbers_is_no_constraint() -> None:
    huge = Constraint(((0, Fraction(1)),), Fraction(10) ** 320)
    case = Case(region(("0", "1")), ((huge,),))
    outputs: Box = (torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    assert goal_of(Query(1, 1, (case,)), case, outputs) is None


def wide_net(rng: np.random.Generator, inputs: int) -> Graph:
    widths = (inputs, 12, 12, 3)
    layers = [((rng.normal(size=(b, a)) * 1.5 / np.sqrt(a)).tolist(), rng.normal(size=b).tolist()) for a, b in pairwise(widths)]
    return dense_graph(inputs, *layers)


@pytest.mark.parametrize("inputs", [3, 24])
def test_random_queries_against_sampling(tmp_path: Path, inputs: int) -> None:
    """By input splitting and by branch and bound on ReLUs: `unsat` never where sampling satisfies the query, every `sat` replays."""
    rng = np.random.default_rng(inputs)
    seen = []
    for trial in range(6):
        graph = wide_net(rng, inputs)
        centre = rng.uniform(-0.5, 0.5, size=inputs).astype(np.float32)
        radius = Fraction(1, 4) if inputs == 3 else Fraction(1, 10)
        ends = region(*((str(Fraction(float(c)) - radius), str(Fraction(float(c)) + radius)) for c in centre))
        rows = rng.normal(size=(3, 3)).round(2)
        low, high = ends.inward()
        x = np.concatenate([rng.uniform(low, high, size=(800, inputs)), np.where(rng.integers(0, 2, size=(800, inputs)) == 1, low, high)])
        outputs = execute(graph, x.astype(np.float32))
        # Thresholds around what is attained, so that both verdicts occur.
        offset = (outputs @ rows.T).min(0) + rng.uniform(-0.3 if inputs == 3 else -3, 0.1, size=3)
        constraints = []
        for row, threshold in zip(rows.tolist(), offset.tolist(), strict=True):
            coefficients = tuple((j, Fraction(str(c))) for j, c in enumerate(row) if c)
            constraints.append(Constraint(coefficients, Fraction(str(round(threshold, 6)))))
        unsafe = ((constraints[0],), (constraints[1], constraints[2]))
        answer = ask(tmp_path, graph, Case(ends, unsafe), contract=CONTRACTS["real"], timeout=3, seed=trial)
        sampled = any(satisfied(conjunction, y) for conjunction in unsafe for y in outputs[:: 1 if len(outputs) < 500 else 7])
        assert not (answer.verdict == "unsat" and sampled)
        if answer.verdict == "sat":
            replayed(tmp_path, answer, graph)
        seen.append(answer.verdict)
    assert {"sat", "unsat"} <= set(seen)


def execute(graph: Graph, x: np.ndarray) -> np.ndarray:
    from vsparse.graph import run

    values = run(graph, graph.tensors(torch.float32), torch.tensor(x.reshape(-1, *graph.input_shape)))
    assert isinstance(values, torch.Tensor)
    return values.numpy()


def test_the_same_seed_gives_the_same_witness(tmp_path: Path) -> None:
    case = Case(region(("0", "1"), ("0", "1")), ((at_most("0.3", 1, 0),),))
    first, second = (ask(tmp_path, SUM_AND_DISTANCE, case, seed=3).witness for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.inputs.tolist() == second.inputs.tolist()


def test_time_is_up(tmp_path: Path) -> None:
    case = Case(region(("0", "1"), ("0", "1")), ((at_most("-0.01", 1, 0),),))
    assert ask(tmp_path, SUM_AND_DISTANCE, case, timeout=0.0).verdict == "timeout"


def test_witness_is_written_exactly(tmp_path: Path) -> None:
    answer = ask(tmp_path, SUM_AND_DISTANCE, Case(region(("0.3", "0.7"), ("0.3", "0.7")), ((at_most("1", 1, 0),),)))
    lines = answer.text().splitlines()
    assert lines[0] == "sat"
    assert lines[1].startswith("((X_0 ")
    assert lines[-1].endswith("))")
    assert answer.witness is not None
    written = [Fraction(line.strip("()").split()[1]) for line in lines[1:]]
    assert written == [Fraction(float(v)) for v in (*answer.witness.inputs, *answer.witness.outputs)]


def test_property_of_another_network_is_refused(tmp_path: Path) -> None:
    model = Writer(tmp_path)(SUM_AND_DISTANCE)
    for inputs, outputs, what in ((3, 2, "3 inputs"), (2, 5, "5 outputs")):
        write_vnnlib(tmp_path / "p", Query(inputs, outputs, (Case(region(*[("0", "1")] * inputs), ((at_most("0", 1),),)),)))
        with pytest.raises(InputError, match=f"declares {what} and model"):
            answer_query(model, tmp_path / "p", CONTRACTS["fp32"])
