"""The answer to a VNN-LIB query about an ONNX file: attack, CROWN, then input splitting or branch and bound on ReLUs.

`unsat` rests on float64 bounds with the contract's rounding alone, `sat` on an input that is in the box by exact arithmetic and whose
outputs, as ONNX Runtime computes them, are unsafe by exact arithmetic.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import inf, isfinite, prod
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds import Box, Rounding, crown, elided, interval, refine
from vsparse.contract import Contract
from vsparse.errors import InputError
from vsparse.files import read_bytes
from vsparse.graph import Graph, from_onnx
from vsparse.processor import require_kept
from vsparse.search.branch_and_bound import Limits, Prover, prove
from vsparse.search.goal import Goal
from vsparse.search.input_split import split_inputs
from vsparse.stages.verify.deployed import MAX_MODEL_BYTES, Runtime
from vsparse.stages.verify.query_attack import attack
from vsparse.stages.verify.query_goal import goal_of, rounded_away, rows_of
from vsparse.vnnlib import Case, Conjunction, Query, read_vnnlib, satisfied

Answered = Literal["unsat", "sat", "unknown", "timeout"]
# With so many inputs at most that are not fixed, cutting the box beats cutting ReLUs.
FEW_INPUTS = 16
MANY_INPUTS = 4096
SHORT_ROUNDS, LONG_ROUNDS = 2, 12
FEW_DOMAINS, MAX_DOMAINS = 256, 10_000_000
REAL = "contract real: this is about the network in real arithmetic, and about no device that computes with rounding"


@dataclass(frozen=True)
class Witness:
    """An input of the box and its outputs as ONNX Runtime computes them, float32, both flat."""

    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]

    def text(self) -> str:
        """Returns it as VNN-COMP writes counterexamples, every number exactly."""
        named = [(f"X_{i}", value) for i, value in enumerate(self.inputs)] + [(f"Y_{j}", value) for j, value in enumerate(self.outputs)]
        return "(" + "\n".join(f"({name} {Decimal(float(value)):f})" for name, value in named) + ")"


@dataclass(frozen=True)
class Answer:
    """The verdict on a query, and with `sat` its witness; `domains` counts what branch and bound looked at, `seconds` wall-clock time."""

    verdict: Answered
    contract: str
    witness: Witness | None
    seconds: float
    domains: int

    @property
    def note(self) -> str:
        """What must be known about the contract; empty where it is a device's."""
        return REAL if self.contract == "real" else ""

    def text(self) -> str:
        """Returns the verdict, the witness after it, and the note as a comment."""
        lines = [self.verdict, "" if self.witness is None else self.witness.text(), f"; {self.note}" if self.note else ""]
        return "\n".join(line for line in lines if line)

    def as_dict(self) -> dict[str, Any]:
        """Returns the answer as JSON values."""
        found = self.witness
        values = None if found is None else {"inputs": found.inputs.tolist(), "outputs": found.outputs.tolist()}
        return {
            "schema_version": 1,
            "verdict": self.verdict,
            "contract": self.contract,
            "note": self.note,
            "witness": values,
            "seconds": round(self.seconds, 3),
            "domains": self.domains,
        }


class _TimeIsUp(Exception):
    """Raised by the alarm, wherever the search is."""


def answer_query(
    model: Path,
    property: Path,
    contract: Contract,
    *,
    timeout: float = inf,
    jobs: int = 1,
    seed: int = 0,
    started: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Answer:
    """Answers whether some input of a VNN-LIB property has the outputs that it asserts, under a numeric contract.

    `timeout` is in seconds from `started` (of `time.monotonic`; default: now). `progress` gets the number of domains looked at. Raises
    InputError for a model or property that cannot be read, that do not fit each other, or whose operators have no bounds.
    """
    started = monotonic() if started is None else started
    query = read_vnnlib(property)
    data = read_bytes(model, "model", MAX_MODEL_BYTES)
    graph = from_onnx(data, str(model))
    require_kept(contract, graph.storage)
    for what, wanted, has in (
        ("inputs", query.inputs, prod(graph.input_shape)),
        ("outputs", query.outputs, prod(graph.shape_of(graph.output))),
    ):
        if wanted != has:
            raise InputError(f"property {property} declares {wanted} {what} and model {model} has {has}; give the property of this model")
    search = _Search(data, graph, query, contract, started + timeout, jobs, seed, progress)
    try:
        with _one_thread(), _alarm(started + timeout):
            verdict = search.verdict()
    except _TimeIsUp:
        verdict = "timeout" if search.witness is None else "sat"
    return Answer(verdict, contract.name, search.witness, monotonic() - started, search.domains)


class _Search:
    """One query under way."""

    def __init__(
        self,
        model: bytes,
        graph: Graph,
        query: Query,
        contract: Contract,
        deadline: float,
        jobs: int,
        seed: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.graph, self.query, self.contract, self.deadline, self.jobs, self.seed = graph, query, contract, deadline, jobs, seed
        self.rounding = Rounding(graph, contract)
        self.params32 = graph.tensors(torch.float32)
        self.runtime = Runtime(model)
        self.progress = progress
        self.witness: Witness | None = None
        self.domains = 0

    def verdict(self) -> Answered:
        """Attacks every case for a short while, then proves them one by one."""
        parts = [_Part(self, case) for case in self.query.cases]
        if any(part.attack(SHORT_ROUNDS) for part in parts):
            return "sat"
        verdicts = [part.prove() for part in parts]
        if self.witness is not None:
            return "sat"
        if all(verdict == "unsat" for verdict in verdicts):
            return "unsat"
        return "timeout" if "timeout" in verdicts else "unknown"

    def accept(self, case: Case, point: Tensor) -> bool:
        """Keeps a float32 input [*shape] as the witness if it is one, and says so."""
        inputs = point.numpy().astype(np.float32)
        if not case.region.contains(inputs.ravel()):
            return False
        outputs = self.runtime.logits(inputs[None])[0].ravel()
        for conjunction in case.unsafe:
            if satisfied(conjunction, outputs) and self._unsafe_under_contract(conjunction, inputs):
                self.witness = Witness(inputs.ravel(), outputs)
                return True
        return False

    def _unsafe_under_contract(self, conjunction: Conjunction, inputs: NDArray[np.float32]) -> bool:
        """Whether every execution within the contract is unsafe too; ONNX Runtime's is one within fp32."""
        if self.contract.name == "fp32" or not conjunction:
            return True
        x = torch.from_numpy(inputs[None]).double()
        rows, _ = rows_of(self.query, conjunction)
        with torch.no_grad():
            boxes = interval(self.graph, self.rounding.params, (x, x), self.rounding)
            highest = -elided(self.graph, self.rounding.params, -rows, boxes, self.rounding)[0]
        size = torch.maximum(*(end.abs() for end in boxes[self.graph.output]))[0].tolist()
        return all(map(isfinite, size)) and all(
            isfinite(high) and Fraction(high) + rounded_away(constraint, size) <= constraint.bound
            for high, constraint in zip(highest.tolist(), conjunction, strict=True)
        )

    def count(self, domains: int) -> None:
        """Counts domains for the answer and the progress."""
        self.domains += domains
        if self.progress is not None:
            self.progress(self.domains)


class _Part:
    """One case of a query: a box, and the rows that must be proved on it."""

    def __init__(self, search: _Search, case: Case) -> None:
        self.search, self.case = search, case
        shape = (1, *search.graph.input_shape)
        lower, upper = (torch.from_numpy(end).view(shape) for end in case.region.outward())
        self.box: Box = lower, upper
        low, high = (torch.from_numpy(end).view(shape) for end in case.region.inward())
        self.inner: Box | None = (low, high) if bool((low <= high).all()) else None
        with torch.no_grad():
            self.boxes = interval(search.graph, search.rounding.params, self.box, search.rounding)
        self.prover: Prover | None = None
        self.goal = goal_of(search.query, case, self.boxes[search.graph.output])

    def accept(self, point: Tensor) -> bool:
        """Keeps a witness."""
        return self.search.accept(self.case, point)

    def attack(self, rounds: int) -> bool:
        """Seeks a witness by gradient descent."""
        if self.inner is None:
            return False
        low, high = self.inner
        if self.goal is None:
            return self.accept((low + (high - low) * 0.5).clamp(low, high)[0])
        one = self.search
        found = attack(
            one.graph, one.params32, self.inner, self.boxes, self.goal, self.accept, rounds=rounds, seed=one.seed, deadline=one.deadline
        )
        return found is not None

    def prove(self) -> Answered:
        """Proves that no output of the case is unsafe, or finds a witness after all."""
        one = self.search
        if one.witness is not None:
            return "sat"
        if self.goal is None:
            return "unknown"
        if monotonic() > one.deadline:
            return "timeout"
        free = sum(low < high for low, high in zip(self.case.region.lower, self.case.region.upper, strict=True))
        if free <= FEW_INPUTS and one.query.inputs <= MANY_INPUTS:
            return self._split_inputs(self.goal)
        with torch.no_grad():
            margins = elided(one.graph, one.rounding.params, self.goal.rows, self.boxes, one.rounding)
            margins = torch.fmax(margins, self._crown(self.goal))
            left = self._left(self.goal, margins)
            if left is None:
                return "unsat"
            self.boxes = refine(one.graph, one.rounding.params, self.box, self.boxes, one.rounding)
            left = self._left(left, self._crown(left))
        if left is None:
            return "unsat"
        # What a few domains prove needs no long attack, which costs as much as many domains.
        quick = self._split_relus(left, FEW_DOMAINS)
        if quick in ("unsat", "sat"):
            return quick
        if self.attack(LONG_ROUNDS):
            return "sat"
        return self._split_relus(left, MAX_DOMAINS)

    def _crown(self, goal: Goal) -> Tensor:
        one = self.search
        return crown(one.graph, one.rounding.params, self.box, goal.rows, self.boxes, one.rounding)

    def _left(self, goal: Goal, bounds: Tensor) -> Goal | None:
        """Returns the groups that bounds [1, R] of the rows do not prove, None where there are none."""
        open_ = (goal.best(bounds - goal.thresholds)[0] <= 0).nonzero().flatten()
        return goal.of(open_) if len(open_) else None

    def _split_inputs(self, goal: Goal) -> Answered:
        one, before = self.search, self.search.domains

        def progress(share: float, domains: int) -> None:
            one.count(before + domains - one.domains)

        found = split_inputs(
            one.graph,
            one.rounding,
            self.box,
            goal,
            deadline=one.deadline,
            inner=self.inner,
            accept=self.accept,
            jobs=one.jobs,
            progress=progress,
        )
        if found.proved:
            return "unsat"
        return "sat" if found.point is not None else "timeout" if found.timed_out else "unknown"

    def _split_relus(self, goal: Goal, domains: int) -> Answered:
        """Branch and bound for each group, with so many domains a row: one of its rows must be proved; the nearest to it come first."""
        one = self.search
        limits = Limits(domains=domains, seconds=max(0.0, one.deadline - monotonic()), jobs=one.jobs)
        if self.prover is None:
            self.prover = Prover(one.graph, one.rounding, self.box, self.boxes, limits)
        prover = self.prover
        prover.limits = limits
        with torch.no_grad():
            margins = self._crown(goal)[0] - goal.thresholds
        verdict: Answered = "unsat"
        for group in goal.best(margins[None])[0].argsort(descending=True).tolist():
            rows = (goal.group == group).nonzero().flatten()
            proved = False
            for i in rows[margins[rows].argsort(descending=True)].tolist():
                before = one.domains
                outcome = prove(
                    one.graph,
                    one.rounding,
                    self.box,
                    self.boxes,
                    goal.rows[i],
                    float(goal.thresholds[i]),
                    limits,
                    progress=lambda domains, lower, before=before: one.count(before + domains - one.domains),  # type: ignore[misc]
                    prover=prover,
                )
                if outcome.counterexample is not None and self.accept(outcome.counterexample):
                    return "sat"
                proved = outcome.proved
                if proved or outcome.timed_out:
                    break
            if not proved:
                verdict = "timeout" if outcome.timed_out or monotonic() > one.deadline else "unknown"
                break
        return verdict


@contextmanager
def _alarm(deadline: float) -> Iterator[None]:
    """Raises _TimeIsUp in the block at the deadline; outside of the main thread, where no alarm can ring, the search looks at the clock."""
    if deadline == inf or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> NoReturn:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, deadline - monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Leaves the threads to those who share out the work themselves: small operators lose more to them than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
